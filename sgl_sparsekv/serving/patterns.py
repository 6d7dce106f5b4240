"""Regular expressions and grammars that stop a server when they are worked on without end.

Stop expressions are searched by the scheduler with Python's `re` after every token.
"""

import re
import warnings
from re import _parser  # type: ignore[attr-defined]
from typing import Any

MOST_PATTERNS, LONGEST_PATTERN = 32, 256
"""As SGLang bounds them itself."""
MOST_REPEATS = 2
"""Open repeats of a pattern: a search through n characters takes up to n to one more than that."""
_LONG_REPEAT = 16
_BRACKETS = re.compile(r"[()\[\]{}]")


def is_patterns(value: Any) -> bool:
    """Whether it is one pattern, or a list of some, that can be searched in reasonable time."""
    listed = value if isinstance(value, (list, tuple)) else [value]
    return len(listed) <= MOST_PATTERNS and all(_is_harmless(pattern) for pattern in listed)


def nesting(text: str) -> int:
    """How many brackets stand in each other at most, of any kind."""
    depth = deepest = 0
    for bracket in _BRACKETS.findall(text):
        depth = depth + 1 if bracket in "([{" else max(0, depth - 1)
        deepest = max(deepest, depth)
    return deepest


def _is_harmless(pattern: Any) -> bool:
    if not isinstance(pattern, str) or len(pattern.encode(errors="replace")) > LONGEST_PATTERN:
        return False
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            parsed = _parser.parse(pattern)
            re.compile(pattern)
    except (re.error, RecursionError, OverflowError):
        return False
    depth, repeats = _repeats(parsed)
    return depth <= 1 and repeats <= MOST_REPEATS


def _repeats(parsed: Any) -> tuple[int, int]:
    """How deep long repeats stand in each other, and how many there are."""
    depth, count = 0, 0
    for operation, argument in parsed:
        own = str(operation) in ("MAX_REPEAT", "MIN_REPEAT") and argument[1] > _LONG_REPEAT
        inner = [_repeats(part) for part in _parts(argument)]
        deepest = max((d for d, _ in inner), default=0)
        depth = max(depth, deepest + own)
        count += sum(c for _, c in inner) + own
    return depth, count


def _parts(argument: Any) -> list[Any]:
    """Patterns within an operation's argument."""
    if isinstance(argument, _parser.SubPattern):
        return [argument]
    if isinstance(argument, (list, tuple)):
        return [part for entry in argument for part in _parts(entry)]
    return []
