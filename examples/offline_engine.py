"""No server: sgl.Engine with sparse decoding, and one batch whose requests read in different ways.

python examples/offline_engine.py MODEL       with MODEL a folder or a name; `--engine JSON` for
more arguments of sgl.Engine, on a CPU e.g. '{"device": "cpu", "max_total_tokens": 16384}'
"""

import argparse
import json
import os
from typing import Any

import sglang as sgl

from sgl_sparsekv.models.documents import chain_document

SERVER_OPTIONS = {"method": "quest", "budget": 1024, "methods": ["full", "quest", "streaming"]}
"""What a request that names nothing gets. The engine takes no flags, so they go by environment."""
ASKED: tuple[dict[str, Any], ...] = (
    {},
    {"method": "full"},
    {"budget": 256, "telemetry": True},
    {"method": "streaming", "budget": 256, "telemetry": True},
)


def sampling(options: dict[str, Any], tokens: int) -> dict[str, Any]:
    """Sampling parameters of one request of the batch."""
    return {
        "temperature": 0,
        "max_new_tokens": tokens,
        "ignore_eos": True,
        "custom_params": {"sparsekv": options},
    }


def main() -> None:
    """One document, one question, four ways to read it, all in one call."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", help="folder or name of a model")
    parser.add_argument("--tokens", type=int, default=4096, help="length of the document (4096)")
    parser.add_argument("--engine", type=json.loads, default={}, metavar="JSON")
    args = parser.parse_args()
    os.environ.setdefault("SGL_SPARSEKV_CONFIG", json.dumps(SERVER_OPTIONS))
    document = chain_document(args.tokens, num_questions=1, num_hops=8, seed=7)
    question = document.questions[0]
    engine = sgl.Engine(model_path=args.model, attention_backend="sparsekv", **args.engine)
    answers = engine.generate(
        [document.prompt(question)] * len(ASKED),
        [sampling(options, len(question.answer_tokens)) for options in ASKED],
    )
    engine.shutdown()
    print(f"expected: {question.answer!r}")
    for options, answer in zip(ASKED, answers, strict=True):
        report = answer["meta_info"]["sparsekv"]
        share = report["tokens_attended"] / max(report["tokens_in_context"], 1)
        print(f"{options} -> {report['method']}, budget {report['budget']}")
        print(f"    {answer['text'].strip()!r}, {share:.1%} of the KV cache read")
        if report["telemetry"] is not None:
            print(f"    {json.dumps(report['telemetry'])}")


if __name__ == "__main__":
    main()
