"""Recorded traces: written by `sparsekv watch --record`, or by `sparsekv watch --json > FILE`.

One record of `serving.trace` per line. `--record` puts a header before them, which says what was
listened to, where and with which versions, and a last line that says what got lost.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..serving.trace import SelectionRecord, encode
from .fields import check

SCHEMA = 1
_FIELDS = {"step": int, "layer": int, "rid": str, "method": str, "length": float}
_MORE = {"units": list, "unit_size": float, "tp_rank": int}
_NEWER = {"dp_rank": int, "pp_rank": int}
"""Fields that older recordings lack."""


def claims(content: dict[str, Any]) -> bool:
    """Whether a first line is of a trace."""
    return content.get("kind") == "trace" or {*_FIELDS, *_MORE} <= content.keys()


def record(
    endpoints: Sequence[str],
    path: Path,
    environment: dict[str, Any],
    wanted: Callable[[SelectionRecord], bool],
) -> tuple[int, int]:
    """Write what a server publishes until interrupted.

    Args:
        endpoints: where to connect.
        path: a new file.
        environment: machine, versions, commit, date; for the header.
        wanted: whether a record is written.

    Returns:
        Records written, and records that got lost on the way.

    Raises:
        ValueError: the file is there, or an endpoint is none.
    """
    from ..serving.subscribe import TraceCollector

    if path.exists():
        raise ValueError(f"{path} is there already, --record names another")
    count = 0
    with TraceCollector(list(endpoints)) as collector, path.open("xb") as file:
        head = {"kind": "trace", "schema": SCHEMA, "endpoints": [*endpoints]}
        file.write(json.dumps({**head, "environment": environment}).encode() + b"\n")
        try:
            while True:
                one = collector.receive(0.5)
                if one is None:
                    file.flush()
                elif wanted(one):
                    file.write(encode(one) + b"\n")
                    count += 1
        except KeyboardInterrupt:
            pass  # how a person says that it was enough
        file.write(json.dumps({"kind": "end", "lost": collector.lost}).encode() + b"\n")
        return count, collector.lost


def records(path: Path) -> Iterator[SelectionRecord]:
    """Records of a file, in its order; half a last line, of a writer that was killed, is no record.

    Raises:
        ValueError: a line is none.
    """
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if not line.endswith(b"\n"):
                return
            found = _parsed(line, number)
            if "kind" not in found:
                yield _record(found, number)


def ending(path: Path) -> int | None:
    """How many records got lost on the way, by the last line; None where it does not say."""
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - 200))
        last = file.read().splitlines()[-1:]
    try:
        found = json.loads(last[0]) if last else None
    except ValueError:
        return None
    lost = found.get("lost") if isinstance(found, dict) and found.get("kind") == "end" else None
    return lost if isinstance(lost, int) else None


def _parsed(line: bytes, number: int) -> dict[str, Any]:
    import orjson

    try:
        found = orjson.loads(line)
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise ValueError(f"must be JSON lines, line {number} is not")
    return found


def _record(found: dict[str, Any], number: int) -> SelectionRecord:
    """A record from its line; padding is removed from its units, which become arrays."""
    newer = {name: kind for name, kind in _NEWER.items() if name in found}
    check(found, {**_FIELDS, **_MORE, **newer}, f"line {number}")
    names = SelectionRecord.__dataclass_fields__
    if extra := ", ".join(sorted(found.keys() - names.keys())):
        raise ValueError(f"line {number} must be a record of this version, got {extra} too")
    heads = found["units"]
    if not heads or not all(isinstance(head, list) for head in heads):
        raise ValueError(f"units of line {number} must be a list per KV head")
    return SelectionRecord(**{**found, "units": [_units(head, number) for head in heads]})


def _units(head: list[Any], number: int) -> npt.NDArray[np.int32]:
    try:
        found = np.asarray(head)
    except ValueError:
        found = np.empty(0, object)
    if (head and found.dtype.kind != "i") or found.ndim != 1 or (found >= 1 << 31).any():
        raise ValueError(f"units of line {number} must be whole numbers")
    return found[found >= 0].astype(np.int32)
