"""A small set in LongBench's form that the package's `trained` model can answer."""

import json
from collections.abc import Sequence
from pathlib import Path

from .datasets import SYNTHETIC

PROMPTS = "dataset2prompt.json"
ROOM = 32
"""Tokens kept free for question and answer."""


def write_synthetic(
    folder: Path, lengths: Sequence[int] = (2048, 4096), questions: int = 8, seed: int = 0
) -> None:
    """Write `facts.jsonl` and the files of its prompt and answer length.

    Args:
        folder: made if it is not there; files of these names are written anew.
        lengths: tokens of the prompts with their answers, one document each.
        questions: of each document.
        seed: of the first document; the next one has the next seed.

    Raises:
        ValueError: a length is too short for its facts.
    """
    from ....models import needle_document

    lines, longest = [], 1
    for i, length in enumerate(lengths):
        document = needle_document(length - ROOM, questions, seed=seed + i)
        for k, question in enumerate(document.questions):
            longest = max(longest, len(question.answer_tokens))
            entry = {
                "input": question.suffix,
                "context": document.text,
                "answers": [question.answer],
                "length": len(document.text.split()),
                "dataset": SYNTHETIC,
                "language": "en",
                "all_classes": None,
                "_id": f"{SYNTHETIC}-{i}-{k}",
            }
            lines.append(json.dumps(entry) + "\n")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{SYNTHETIC}.jsonl").write_text("".join(lines), encoding="utf-8")
    (folder / PROMPTS).write_text(json.dumps({SYNTHETIC: "{context} {input}"}) + "\n")
    (folder / "dataset2maxlen.json").write_text(json.dumps({SYNTHETIC: longest}) + "\n")
