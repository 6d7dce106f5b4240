"""Which model is asked what: a folder SGLang can load, a document, and questions about it."""

import json
from pathlib import Path

from .scenario import Question, Scenario

HOPS = 9
"""Words of an answer of the analytic model: one from prefill, eight from decode."""


def build_scenario(model: str, context: int, questions: int, seed: int, out: Path) -> Scenario:
    """Write the model if it has to be written, and draw a document and questions.

    Args:
        model: `analytic`, `trained`, or the folder of a model that one of them was saved to.
        context: tokens of the document.
        questions: how many.
        seed: of the document and the questions.
        out: where the model is written, in a folder of its own.

    Raises:
        ValueError: the model is unknown, or the document cannot hold so many questions.
    """
    from ..models import LOST, chain_document, needle_document

    path = _folder(model, out)
    if LOST in _vocabulary(path):
        document = chain_document(context, questions, HOPS, seed)
    else:
        document = needle_document(context, questions, seed=seed)
    asked = tuple(
        Question(f" {question.suffix}", question.answer_tokens, question.positions)
        for question in document.questions
    )
    return Scenario(model, path, document.text, document.num_tokens, asked)


def _folder(model: str, out: Path) -> Path:
    if model in ("analytic", "trained"):
        from transformers.utils import logging

        from ..models import save_analytic, save_trained

        logging.disable_progress_bar()
        (save_analytic if model == "analytic" else save_trained)(out / "model")
        return out / "model"
    if (Path(model) / "tokenizer.json").is_file():
        return Path(model)
    raise ValueError(f"model must be analytic, trained or a folder with one of them, got {model!r}")


def _vocabulary(path: Path) -> dict[str, int]:
    text = (path / "tokenizer.json").read_text()
    vocabulary: dict[str, int] = json.loads(text)["model"]["vocab"]
    return vocabulary
