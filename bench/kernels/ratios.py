"""How long one call takes beside another of the same turn: a disturbance meets both."""

from collections.abc import Mapping, Sequence
from statistics import quantiles
from typing import Any

Key = tuple[str, str]
"""Op and method."""
SAME = {
    "decode_covering": "same_bytes",
    "decode_view": "same_tokens",
    **{f"shared_{op}": f"alone_{op}" for op in ("sparse", "dense", "score", "attend")},
}
"""Op -> one of the same method that reads as much, or does as much for each row by itself."""


def peer_of(key: Key) -> Key | None:
    """What a step must not be slower than; None: nothing."""
    op, method = key
    if op in SAME:
        return SAME[op], method
    return ("decode_sparse", "quest") if op == "decode_sparse" and method != "quest" else None


def beside(times: Mapping[Key, Sequence[float]], key: Key) -> dict[str, Any]:
    """The peer and quartiles of the time over the peer's, turn by turn; {} without a peer."""
    peer = peer_of(key)
    if peer is None or peer not in times:
        return {}
    found = [own / other for own, other in zip(times[key], times[peer], strict=True)]
    low, middle, high = quantiles(found, n=4, method="inclusive")
    name = peer[1] if peer[0] == key[0] else peer[0]
    return {"beside": name, "ratio": middle, "ratio_spread": [low, high]}
