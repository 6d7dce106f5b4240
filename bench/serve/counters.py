"""The share of the KV cache that decode read, by a server's own counters."""

import json
import urllib.request
from typing import Any

_READ, _THERE = "tokens_attended_total", "tokens_in_context_total"
_TIMEOUT_SECONDS = 60


class KvRead:
    """Counts from where it is made."""

    def __init__(self, url: str) -> None:
        """Note the counters of a server as they are now.

        Args:
            url: of any server; one without our backend counts nothing.
        """
        self._url = url
        self._before = _counters(url)

    def share(self) -> float | None:
        """Tokens attended over tokens in context since then; None if nothing was counted."""
        if self._before is None:
            return None
        now = _counters(self._url)
        assert now is not None
        read, there = (b - a for a, b in zip(self._before, now, strict=True))
        return read / there if there else None


def _counters(url: str) -> tuple[int, int] | None:
    with urllib.request.urlopen(f"{url}/server_info", timeout=_TIMEOUT_SECONDS) as answer:
        return totals(json.load(answer))


def totals(info: dict[str, Any]) -> tuple[int, int] | None:
    """Tokens attended and tokens in context, over all ranks; None without our backend."""
    states = [state["sparsekv"] for state in info["internal_states"] if "sparsekv" in state]
    if not states:
        return None
    read, there = (sum(state["counters"][name] for state in states) for name in (_READ, _THERE))
    return read, there
