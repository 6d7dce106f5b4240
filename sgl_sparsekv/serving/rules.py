"""What a value of a request may be: a test and the words in which a refusal states it.

`fields.py` gives every field of a request one of these.
"""

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

WORDS = 1 << 16
"""Longest text that is no prompt, in characters: grammars, cache keys, names of adapters."""
INT32 = 2**31 - 1
INT64 = 2**63 - 1


@dataclass(frozen=True)
class Limits:
    """What a server can hold; rules name these in braces.

    Attributes:
        vocab_size: token ids are below it.
        context: longest request in tokens, prompt and answer together.
        hidden_size: channels of an embedding.
        labels: names of metric labels that requests may set.
    """

    vocab_size: int
    context: int
    hidden_size: int = 0
    labels: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Rule:
    """What one field must be.

    Attributes:
        text: the rule in words.
        holds: whether a value obeys it.
        each: prompts of a batch may have one value each, in a list.
        optional: null leaves the field to SGLang's default.
    """

    text: str
    holds: Callable[[Any, Limits], bool]
    each: bool = False
    optional: bool = True

    def check(self, name: str, value: Any, limits: Limits) -> None:
        """Refuse a value that breaks the rule.

        Raises:
            ValueError: names field, rule and value.
        """
        if (value is None and self.optional) or self.holds(value, limits):
            return
        raise ValueError(f"{name} must be {self.words(limits)}, got {short(value)}")

    def words(self, limits: Limits) -> str:
        """The rule, with this server's numbers."""
        return self.text.replace("{vocab}", str(limits.vocab_size)).replace(
            "{context}", str(limits.context)
        )


def free(why: str, each: bool = False) -> Rule:
    """Anything that SGLang's own types let through; `why` says why no tensor is reached by it."""
    return Rule(why, lambda value, limits: True, each)


def absent(why: str) -> Rule:
    """A field that SGLang fills in itself."""
    return Rule(f"left out ({why})", lambda value, limits: not value)


def whole(low: int, high: int, each: bool = False) -> Rule:
    """An integer."""
    return Rule(f"an integer in [{low}, {high}]", lambda value, _: is_whole(value, low, high), each)


def up_to(name: str, low: int = 0, each: bool = False) -> Rule:
    """An integer up to one of the server's limits: "vocab" or "context"."""

    def holds(value: Any, limits: Limits) -> bool:
        return is_whole(value, low, limits.vocab_size if name == "vocab" else limits.context)

    return Rule(f"an integer in [{low}, {{{name}}}]", holds, each)


def number(low: float, high: float) -> Rule:
    """A finite number."""
    return Rule(f"a number in [{low:g}, {high:g}]", lambda value, _: is_number(value, low, high))


def flag(each: bool = False) -> Rule:
    """True or false."""
    return Rule("true or false", lambda value, _: isinstance(value, bool), each)


def one_of(*values: Any, each: bool = False) -> Rule:
    """One of a few values."""
    listed = ", ".join(map(repr, values))
    return Rule(
        f"one of {listed}",
        lambda value, _: any(value is v or (isinstance(v, str) and value == v) for v in values),
        each,
    )


def text(longest: int = WORDS, each: bool = False) -> Rule:
    """A text that can be written as UTF-8."""
    return Rule(
        f"a text of at most {longest} characters", lambda value, _: is_text(value, longest), each
    )


def texts(most: int, longest: int) -> Rule:
    """One text, or a list of some."""

    def holds(value: Any, limits: Limits) -> bool:
        listed = value if isinstance(value, (list, tuple)) else [value]
        return len(listed) <= most and all(is_text(entry, longest) for entry in listed)

    return Rule(f"a text, or at most {most}, of at most {longest} characters each", holds)


def mapping(keys: dict[str, Rule] | None = None) -> Rule:
    """An object; with `keys`, of these and no others."""

    def holds(value: Any, limits: Limits) -> bool:
        if not isinstance(value, dict) or not all(is_text(key, WORDS) for key in value):
            return False
        return keys is None or all(
            key in keys and (entry is None or keys[key].holds(entry, limits))
            for key, entry in value.items()
        )

    if keys is None:
        return Rule("an object", holds)
    return Rule(
        "an object of " + ", ".join(f"{key} ({rule.text})" for key, rule in keys.items()), holds
    )


def is_whole(value: Any, low: int, high: int) -> bool:
    """Whether it is an integer in [low, high]; true and false are none."""
    return isinstance(value, int) and not isinstance(value, bool) and low <= value <= high


def is_number(value: Any, low: float, high: float) -> bool:
    """Whether it is a finite number in [low, high]."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and low <= value <= high


def is_text(value: Any, longest: int) -> bool:
    """Whether it is a text that can be sent on; halves of surrogate pairs cannot."""
    return isinstance(value, str) and len(value) <= longest and not _SURROGATE.search(value)


def is_token(value: Any, limits: Limits) -> bool:
    """Whether it is a token id."""
    return is_whole(value, 0, limits.vocab_size - 1)


def is_finite(value: Any) -> bool:
    """Whether it is a number that float32 holds."""
    return is_number(value, -3e38, 3e38) and math.isfinite(value)


def short(value: object) -> str:
    """A value as it may stand in a message: one line, not long."""
    if isinstance(value, (str, list, tuple, dict, set)) and len(value) > 60:
        if not isinstance(value, str):
            return f"{type(value).__name__} of {len(value)}"
        return f"{value[:60]!r}... ({len(value)} long)"
    if isinstance(value, int) and not isinstance(value, bool) and value.bit_length() > 200:
        return f"an integer of {value.bit_length()} bits"
    shown = repr(value)
    return shown if len(shown) <= 120 else shown[:120] + "..."


_SURROGATE = re.compile("[\ud800-\udfff]")
