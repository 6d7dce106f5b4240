"""Checks of JSON from files that anyone may have written."""

from typing import Any

Wanted = dict[str, type | None]
"""Field -> what it holds: a number above 0 for `float`, a whole one from 0 on for `int`, text for
`str`; a list, a dict or a bool; None: a number or null."""
_MOST = 1e200
"""Beyond it nothing is measured, and powers of ten overflow."""
_NAMES: dict[type | None, str] = {
    float: "a number above 0",
    int: "a whole number from 0 on",
    str: "text",
    list: "a list",
    dict: "an object",
    bool: "true or false",
    None: "a number or null",
}


def check(found: Any, wanted: Wanted, what: str) -> dict[str, Any]:
    """An object that has fields of the right kind; others may be there too.

    Raises:
        ValueError: says which field is missing or wrong.
    """
    if not isinstance(found, dict):
        raise ValueError(f"{what} must be an object")
    for name, kind in wanted.items():
        if name not in found:
            raise ValueError(f"{what} must have {name}")
        if not _is(found[name], kind):
            raise ValueError(f"{name} of {what} must be {_NAMES[kind]}, got {found[name]!r:.40}")
    return found


def check_all(found: Any, wanted: Wanted, what: str) -> list[dict[str, Any]]:
    """Rows of a file, at least one.

    Raises:
        ValueError: see `check`.
    """
    if not isinstance(found, list) or not found:
        raise ValueError(f"{what}s must be a list with something in it")
    return [check(one, wanted, f"{what} {i}") for i, one in enumerate(found, 1)]


def check_known(found: dict[str, Any], wanted: Wanted, what: str) -> dict[str, Any]:
    """As `check`, of those fields that are there and not null."""
    there = {name: kind for name, kind in wanted.items() if found.get(name) is not None}
    return check(found, there, what)


def numbers(found: Any, what: str) -> list[float]:
    """A list of numbers.

    Raises:
        ValueError: it is none.
    """
    if not isinstance(found, list) or any(one is None or not _is(one, None) for one in found):
        raise ValueError(f"{what} must be numbers, got {found!r:.40}")
    return found


def _is(value: Any, kind: type | None) -> bool:
    if kind in (float, int, None):
        if value is None:
            return kind is None
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            return False
        if kind is int:
            return isinstance(value, int) and 0 <= value < _MOST
        return abs(value) < _MOST and (kind is None or value > 0)
    assert kind is not None
    return isinstance(value, kind)
