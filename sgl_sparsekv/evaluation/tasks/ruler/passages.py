"""Passages and questions: SQuAD and HotpotQA from the user's files, or small generated sets."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Asked:
    """One question of a set.

    Attributes:
        text: the question.
        answers: each of them is right.
        gold: the passages it is about, by number; all of them are in its document.
        more: passages of the same article.
    """

    text: str
    answers: tuple[str, ...]
    gold: tuple[int, ...]
    more: tuple[int, ...] = ()


@dataclass(frozen=True)
class Passages:
    """A set of questions.

    Attributes:
        name: for the header of the results.
        texts: every passage once.
        questions: in the order of the file.
    """

    name: str
    texts: tuple[str, ...]
    questions: tuple[Asked, ...]


def read_squad(path: Path) -> Passages:
    """Questions with an answer, of a file in the form of SQuAD's `dev-v2.0.json`.

    Raises:
        ValueError: the file is missing or has another form.
    """
    return _read(path, "squad", "SQuAD's dev-v2.0.json", _squad)


def read_hotpotqa(path: Path) -> Passages:
    """All questions of a file in the form of HotpotQA's `hotpot_dev_distractor_v1.json`.

    Raises:
        ValueError: the file is missing or has another form.
    """
    return _read(path, "hotpotqa", "HotpotQA's hotpot_dev_distractor_v1.json", _hotpotqa)


_Parts = tuple[tuple[str, ...], tuple[Asked, ...]]


def _read(path: Path, what: str, form: str, parse: Callable[[Any], _Parts]) -> Passages:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ValueError(f"{what} must be a file, got {str(path)!r}: {error.strerror}") from None
    try:
        texts, questions = parse(json.loads(content))
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        reason = f"{type(error).__name__}: {error}"
        raise ValueError(
            f"{what} must have the form of {form}, got {str(path)!r}: {reason}"
        ) from None
    if not questions:
        raise ValueError(f"{what} must hold a question with an answer, got {str(path)!r}")
    mark = hashlib.sha256(content).hexdigest()[:12]
    return Passages(f"{path.name}, sha256 {mark}", texts, questions)


def _squad(data: Any) -> _Parts:
    articles = [article["paragraphs"] for article in data["data"]]
    texts = tuple(sorted({p["context"] for paragraphs in articles for p in paragraphs}))
    numbers = {text: i for i, text in enumerate(texts)}
    questions = []
    for paragraphs in articles:
        near = tuple(dict.fromkeys(numbers[p["context"]] for p in paragraphs))
        for paragraph in paragraphs:
            gold = numbers[paragraph["context"]]
            more = tuple(i for i in near if i != gold)
            questions += [
                Asked(_text(q["question"]), _answers(q["answers"]), (gold,), more)
                for q in paragraph["qas"]
                if not q.get("is_impossible", False)
            ]
    return texts, tuple(questions)


def _hotpotqa(data: Any) -> _Parts:
    entries = [
        (entry, [f"{title}\n{''.join(p)}" for title, p in entry["context"]]) for entry in data
    ]
    texts = tuple(sorted({text for _, passages in entries for text in passages}))
    numbers = {text: i for i, text in enumerate(texts)}
    questions = [
        Asked(
            _text(entry["question"]),
            (_text(entry["answer"]),),
            tuple(dict.fromkeys(numbers[text] for text in passages)),
        )
        for entry, passages in entries
    ]
    return texts, tuple(questions)


def _answers(entries: Any) -> tuple[str, ...]:
    found = tuple(dict.fromkeys(_text(entry["text"]) for entry in entries))
    if not found:
        raise ValueError("a question that is not impossible has no answer")
    return found


def _text(value: Any) -> str:
    if not isinstance(value, str) or not value:
        raise ValueError(f"a question or an answer is {value!r}")
    return value
