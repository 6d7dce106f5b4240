"""What requests of KV-Compress's vLLM name, in our terms, so that its users can bring them along.

| theirs | ours |
|---|---|
| `max_cache_tokens` | `budget` in tokens; -1: not named |
| `target_compression_rate` | `budget` as a share of the context; 1.0: not named |
| `protected_window_size` | `window` |
| `compress_once` | `renew_every` 0, or as it is |

They ask for method `kvcompress` by being there.
"""

from collections.abc import Mapping
from typing import Any

from .checks import check_bool, check_int, shown

METHOD = "kvcompress"
OURS = {
    "max_cache_tokens": "budget",
    "target_compression_rate": "budget",
    "protected_window_size": "window",
    "compress_once": "renew_every",
}
"""Their names, and which of ours each sets."""


def translated(raw: Mapping[str, Any]) -> dict[str, Any]:
    """A request's options with ours in place of theirs.

    Raises:
        ValueError: one of theirs is wrong, or two names set the same option.
    """
    theirs = {name: raw[name] for name in OURS if name in raw}
    own = {name: value for name, value in raw.items() if name not in OURS}
    if not theirs:
        return own
    if own.setdefault("method", METHOD) != METHOD:
        raise ValueError(
            f"{next(iter(theirs))} must be left out with method {shown(own['method'])}: it is an "
            f"option of {METHOD}"
        )
    set_by: dict[str, str] = {name: name for name in own}
    for name, value in theirs.items():
        found = _value(name, value)
        if found is None:
            continue
        option = OURS[name]
        if option in set_by:
            raise ValueError(f"{name} must be left out beside {set_by[option]}: both set {option}")
        own[option], set_by[option] = found, name
    return own


def _value(name: str, value: Any) -> int | float | None:
    """What one of theirs makes of ours; None: nothing."""
    if name == "compress_once":
        check_bool(name, value)
        return 0 if value else None
    if name == "target_compression_rate":
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if not number or not 0 < value <= 1:
            raise ValueError(f"{name} must be a fraction in (0, 1], got {shown(value)}")
        return None if value == 1 else float(value)
    if name == "max_cache_tokens" and value == -1:
        return None
    check_int(name, value, 0 if name == "protected_window_size" else 1)
    return int(value)
