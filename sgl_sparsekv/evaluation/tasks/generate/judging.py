"""Verdicts on what was said freely: a quotation, a call of a tool."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from ..likeness import alike, prefix


class Judge(Protocol):
    """What an answer is worth, by name; every number from 0 to 1."""

    def __call__(self, said: str) -> dict[str, float]:
        """Judge it."""
        ...


@dataclass(frozen=True)
class Anything:
    """Text of one's own: nothing about it is right or wrong."""

    def __call__(self, said: str) -> dict[str, float]:
        """See `Judge`."""
        return {}


@dataclass(frozen=True)
class Quotation:
    """A passage, word for word.

    Attributes:
        wanted: what is right.
    """

    wanted: str

    def __call__(self, said: str) -> dict[str, float]:
        """`alike`: edit similarity; `prefix`: share that is right up to the first wrong letter."""
        said, wanted = said.strip(), self.wanted.strip()
        return {"alike": alike(said, wanted), "prefix": prefix(said, wanted)}


@dataclass(frozen=True)
class ToolCall:
    """A call as one JSON object, every parameter an integer.

    Attributes:
        start: of the object, given to the model; what it says follows.
        name: of the tool.
        parameters: that its schema has; all of them required, no other one allowed.
    """

    start: str
    name: str
    parameters: Sequence[str]

    def __call__(self, said: str) -> dict[str, float]:
        """`valid`: JSON of a call's form; `fits`: and of this tool's schema."""
        call = first_object(self.start + said)
        valid = isinstance(call, dict) and isinstance(call.get("arguments"), dict)
        valid = valid and isinstance(call.get("name"), str) and len(call) == 2
        return {"valid": float(valid), "fits": float(valid and self._fits(call))}

    def _fits(self, call: dict[str, Any]) -> bool:
        given = call["arguments"]
        whole = all(type(value) is int for value in given.values())
        return bool(call["name"] == self.name and whole and {*given} == {*self.parameters})


def first_object(text: str) -> Any:
    """The JSON value that a text begins with; None if there is none. What follows is no matter."""
    try:
        return json.JSONDecoder().raw_decode(text)[0]
    except ValueError:
        return None
