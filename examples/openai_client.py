"""The `openai` package against a sparsekv server: options per request, whole answers and streams.

Serve a model with --attention-backend sparsekv, then: python examples/openai_client.py URL
Options travel in `extra_body`; the report comes back in `metadata` of the answer or last chunk.
"""

import argparse
from typing import Any

import openai

from sgl_sparsekv.models.documents import chain_document


def sparse(**options: Any) -> dict[str, Any]:
    """`extra_body` with these options."""
    return {"custom_params": {"sparsekv": options}}


def show(name: str, answer: str, report: dict[str, Any]) -> None:
    """What was answered, and what it took."""
    share = report["tokens_attended"] / max(report["tokens_in_context"], 1)
    print(
        f"{name}: {answer.strip()[:60]!r}\n"
        f"    {report['method']}, budget {report['budget']}: {report['decode_steps']} decode steps "
        f"read {share:.1%} of the KV cache"
    )


def whole(client: openai.OpenAI, prompt: str, tokens: int) -> None:
    """Completions: the same prompt, read twice; the second prefill comes from the cache."""
    for options in ({"method": "full"}, {"method": "quest", "budget": 512}):
        answer = client.completions.create(
            model="default",
            prompt=prompt,
            max_tokens=tokens,
            temperature=0,
            extra_body=sparse(**options),
        )
        show("whole", answer.choices[0].text, answer.metadata["sparsekv"])


def streamed(client: openai.OpenAI, document: str, question: str, tokens: int) -> None:
    """Chat, streamed: the chunk that ends the answer carries the report."""
    stream = client.chat.completions.create(
        model="default",
        messages=[{"role": "user", "content": f"{document} {question}"}],
        max_tokens=tokens,
        temperature=0,
        stream=True,
        extra_body=sparse(method="quest", budget=0.1),
    )
    answer, report = "", None
    for chunk in stream:
        answer += (chunk.choices[0].delta.content or "") if chunk.choices else ""
        report = (getattr(chunk, "metadata", None) or {}).get("sparsekv", report)
    assert report is not None, "the server did not say what it read"
    show("streamed", answer, report)


def refused(client: openai.OpenAI) -> None:
    """A wrong option is a 400 that names it."""
    try:
        client.completions.create(
            model="default", prompt="hello", max_tokens=1, extra_body=sparse(budget=-1)
        )
    except openai.BadRequestError as error:
        print(f"refused: {error.status_code} {error.message}")


def main() -> None:
    """Ask in three ways."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("url", help="of a server, e.g. http://localhost:30000")
    parser.add_argument("--tokens", type=int, default=4096, help="length of the document (4096)")
    args = parser.parse_args()
    client = openai.OpenAI(base_url=f"{args.url}/v1", api_key="none")
    document = chain_document(args.tokens, num_questions=1, num_hops=8, seed=5)
    question = document.questions[0]
    print(f"expected: {question.answer!r}")
    whole(client, document.prompt(question), len(question.answer_tokens))
    streamed(client, document.text, question.suffix, len(question.answer_tokens))
    refused(client)


if __name__ == "__main__":
    main()
