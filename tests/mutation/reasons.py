"""Why mutants may live: patterns of changes, each with the reason that stands in the docs."""

import re
from dataclasses import dataclass
from fnmatch import fnmatch

from .survivors import Survivor


@dataclass(frozen=True)
class Reason:
    """A kind of mutant that no test needs to see.

    Attributes:
        where: file and function that it is about, `*` for any.
        change: pattern to be found in `old -> new`.
        why: in one sentence, without a full stop.
    """

    where: str
    change: str
    why: str

    def explains(self, one: Survivor) -> bool:
        """Whether a survivor is of this kind."""
        place = f"{one.file}:{one.function}"
        return fnmatch(place, self.where) and bool(
            re.search(self.change, f"{one.old} -> {one.new}")
        )


REASONS = (
    Reason("*", r"strict=(True|False)\).* -> .*(strict=\w+|, )\)", "lists of equal length"),
    Reason("*:HeldScores.load", r"shape\[-1\].*shape\[\+1\]", "the last of two dimensions"),
    Reason("*summary.py:ranking", r"-> sign = (-2|-1 if .* else 2)", "a sign, no size"),
    Reason("*summary.py:ranking", r"key=str\) -> ", "the order of what is equal in every figure"),
)
"""The first that fits is given."""


def reason_for(one: Survivor) -> str | None:
    """Why a survivor may live, or None: then a test is missing."""
    return next((reason.why for reason in REASONS if reason.explains(one)), None)
