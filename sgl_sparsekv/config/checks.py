"""Rules that values of options are held against, and how a message shows a value."""

from typing import Any


def check_int(name: str, value: object, low: int, high: int = 2**31 - 1) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise ValueError(f"{name} must be an integer in [{low}, {high}], got {shown(value)}")


def check_bool(name: str, value: object) -> None:
    if not isinstance(value, bool):
        raise ValueError(f"{name} must be true or false, got {shown(value)}")


def check_choice(name: str, value: object, choices: tuple[object, ...]) -> None:
    if value not in choices:
        raise ValueError(f"{name} must be one of {listed(choices)}, got {shown(value)}")


def listed(names: Any) -> str:
    return ", ".join(str(name) for name in names)


def shown(value: object, limit: int = 60, quote: bool = True) -> str:
    """A value as it may stand in an error message: short, on one line."""
    # A huge string or list is cut before it is formatted.
    if isinstance(value, (str, list, dict)) and len(value) > limit:
        head = value[:limit] if isinstance(value, str) else type(value).__name__
        return f"{head!r}... ({len(value)} long)"
    bare = isinstance(value, str) and not quote and value.isprintable()
    text = str(value) if bare else repr(value)
    return text if len(text) <= 2 * limit else text[: 2 * limit] + "..."
