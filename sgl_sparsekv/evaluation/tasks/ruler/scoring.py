"""How RULER judges an answer: which of the right texts occur in it, whatever their case."""

import re
from collections.abc import Sequence

_CONTROL = re.compile(r"[\x00-\x1f]")


def string_match_all(said: str, references: Sequence[str]) -> float:
    """Share of the references that occur, 0 to 1."""
    return sum(_occurs(text, said) for text in references) / len(references)


def string_match_part(said: str, references: Sequence[str]) -> float:
    """1 if any reference occurs, else 0."""
    return float(any(_occurs(text, said) for text in references))


METRICS = {"string_match_all": string_match_all, "string_match_part": string_match_part}


def _occurs(text: str, said: str) -> bool:
    return text.lower() in _CONTROL.sub("\n", said.strip()).strip().lower()
