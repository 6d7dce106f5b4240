"""One long document, four readers: forks of one program share its prefix, each decodes its own way.

Serve a model with --attention-backend sparsekv, then: python examples/frontend_shared_prefix.py URL
Whether answers are right can be told for the model that `sparsekv model analytic DIR` writes.
"""

import argparse
from typing import Any

import sglang as sgl

from sgl_sparsekv.models.documents import chain_document
from sgl_sparsekv.serving.frontend import SparseKVEndpoint, sparse_gen

READERS = (
    {"method": "full"},
    {"method": "quest", "budget": 512},
    {"method": "quest", "budget": 0.03},
    {"method": "streaming", "budget": 512},
)
"""Options of each branch: a dense one, tokens, a share of the context, and one that looks away."""


@sgl.function
def read_in_branches(s: Any, document: str, question: str, tokens: int) -> None:
    """Every branch continues the document with the same question and reads what it may."""
    s += document
    branches = s.fork(len(READERS))
    for branch, options in zip(branches, READERS, strict=True):
        branch += " " + question
        branch += sparse_gen(
            "answer", sparsekv=options, max_tokens=tokens, temperature=0, ignore_eos=True
        )
    s["answers"] = [(branch["answer"], branch.get_meta_info("answer")) for branch in branches]


def describe(answer: str, expected: tuple[str, ...], info: dict[str, Any]) -> str:
    """One line of the table."""
    report = info["sparsekv"]
    right = sum(a == b for a, b in zip(answer.split(), expected, strict=False))
    share = report["tokens_attended"] / max(report["tokens_in_context"], 1)
    mass = (report["telemetry"] or {}).get("attention_mass")
    covered = f"{mass['mean']:10.1%}{mass['least']:9.1%}" if mass else "   no figure here"
    return (
        f"{report['method']:<11}{report['budget']:>7}{info['cached_tokens']:>9}"
        f"{share:>10.1%}{covered}   {right} of {len(expected)}"
    )


def main() -> None:
    """Ask once, read four times, print what each reading cost and found."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("url", help="of a server, e.g. http://localhost:30000")
    parser.add_argument("--tokens", type=int, default=8192, help="length of the document (8192)")
    args = parser.parse_args()
    document = chain_document(args.tokens, num_questions=1, num_hops=8, seed=3)
    question = document.questions[0]
    endpoint = SparseKVEndpoint(args.url, telemetry=True)
    endpoint.cache_prefix(document.text)  # else the branch that comes first prefills it
    state = read_in_branches.run(
        document.text, question.suffix, len(question.answer_tokens), backend=endpoint
    )
    print(f"{args.tokens} tokens, then: {question.suffix!r} -> {question.answer!r}")
    print("method      budget   cached   KV read   covered    least   right tokens")
    for answer, info in state["answers"]:
        print(describe(answer, question.answer_tokens, info))
    print("cached: prompt tokens taken from the radix cache, page metadata with them.")
    print("covered: share of the attention that fell on what was read, mean and least.")


if __name__ == "__main__":
    main()
