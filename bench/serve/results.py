"""Results of a sweep, one file per run; never overwritten, checked when read.

Also read by `bench.report`, from `bench/results/serving-*.json`.
"""

import json
import types
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, TypeVar, Union, get_args, get_origin

from bench.serve.grid import Point

SCHEMA = 1
BENCH = "serving"
Kind = TypeVar("Kind")


@dataclass(frozen=True)
class Header:
    """Where and with what a run was done.

    Attributes:
        environment: machine, versions, commit, time; `tooling.environment`.
        device: `cpu` or `cuda`.
        gpu: GPUs by the driver's names; empty on a CPU.
        model: what was served, in words.
        command: the whole run, as typed.
        servers: command line of each server.
        differences: what the servers' flags differ in, a sentence each.
        goodput: limits in milliseconds.
        grid: what was asked for.
        load_average: of a minute, before and after.
        seconds: the whole run.
    """

    environment: dict[str, Any]
    device: str
    gpu: list[str]
    model: str
    command: list[str]
    servers: dict[str, list[str]]
    differences: list[str]
    goodput: dict[str, float]
    grid: dict[str, Any]
    load_average: list[float]
    seconds: float


@dataclass(frozen=True)
class Row:
    """One measured point; None where the tool of that workload does not tell.

    Attributes:
        workload: one of `grid.WORKLOADS`.
        variant: name of the way of decoding.
        server: which server.
        method: selection method; None on a dense peer.
        budget: tokens per request and KV head; None where everything is read.
        context: tokens of the prompt, or of the shared prefix.
        concurrency: requests at a time; 0 with a rate.
        rate: requests offered per second.
        requests: requests that were answered: all that were sent.
        tokens_per_s: generated tokens over the wall time, prefill included.
        requests_per_s: answered requests over the wall time.
        seconds: wall time.
        command: what was run.
        tool: the tool's own result.
        ttft_ms: median milliseconds to the first token.
        ttft_p99_ms: its 99th percentile.
        itl_ms: median milliseconds between tokens.
        itl_p99_ms: its 99th percentile.
        tpot_ms: median over requests of the mean milliseconds per token after the first.
        cached_tokens: tokens of a prompt found in the radix cache, mean over requests.
        kv_read: tokens attended over tokens in context, of all decode steps of the point; None on
            a dense peer, which counts nothing and reads everything.
        goodput_share: share of requests within the limits.
        goodput_per_s: requests within the limits over the wall time.
    """

    workload: str
    variant: str
    server: str
    method: str | None
    budget: int | None
    context: int
    concurrency: int
    rate: float | None
    requests: int
    tokens_per_s: float
    requests_per_s: float
    seconds: float
    command: list[str]
    tool: dict[str, Any]
    ttft_ms: float | None = None
    ttft_p99_ms: float | None = None
    itl_ms: float | None = None
    itl_p99_ms: float | None = None
    tpot_ms: float | None = None
    cached_tokens: float | None = None
    kv_read: float | None = None
    goodput_share: float | None = None
    goodput_per_s: float | None = None

    @classmethod
    def of(cls, point: Point, **found: Any) -> "Row":
        """What was found at a point, by the names of the other fields."""
        one = point.variant
        return cls(
            *(point.workload, one.name, one.server, one.method, one.budget),
            *(point.context, point.concurrency, point.rate),
            **found,
        )


@dataclass(frozen=True)
class Failure:
    """A point without a measurement.

    Attributes:
        point: which.
        reason: one sentence.
    """

    point: str
    reason: str


@dataclass(frozen=True)
class Result:
    """One run."""

    header: Header
    rows: list[Row]
    failures: list[Failure]


def save(result: Result, path: Path, places: Mapping[str, str] | None = None) -> None:
    """Write one run.

    Args:
        result: of it.
        path: a new file.
        places: how folders and programs of this machine are called in command lines.

    Raises:
        FileExistsError: the file is there.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    found = {"schema": SCHEMA, "bench": BENCH, **asdict(result)}
    written = json.dumps(found, indent=1, allow_nan=False) + "\n"
    for place, name in (places or {}).items():
        written = written.replace(place, name)
    with path.open("x") as file:
        file.write(written)


def load(path: Path) -> Result:
    """One run as it was saved.

    Raises:
        ValueError: it is not of this schema; says which field.
    """
    found = json.loads(path.read_text())
    for key, must in (("bench", BENCH), ("schema", SCHEMA)):
        if found.get(key) != must:
            raise ValueError(f"{key} must be {must} in {path}, got {found.get(key)}")
    return Result(
        _checked(Header, found["header"], path),
        _all(Row, found["rows"], path),
        _all(Failure, found["failures"], path),
    )


def as_row(found: dict[str, Any]) -> Row:
    """A row from what JSON made of it."""
    return Row(**found)


def _all(kind: type[Kind], found: Sequence[dict[str, Any]], path: Path) -> list[Kind]:
    return [_checked(kind, one, path) for one in found]


def _checked(kind: type[Kind], found: dict[str, Any], path: Path) -> Kind:
    """A dataclass with exactly its fields, each of its type.

    Raises:
        ValueError: a field is missing, unknown, or of another type.
    """
    types_of = {field.name: field.type for field in fields(kind)}  # type: ignore[arg-type]
    if set(found) != set(types_of):
        wrong = ", ".join(sorted(set(found) ^ set(types_of)))
        raise ValueError(
            f"{kind.__name__} must have its own fields in {path}, got or lacks {wrong}"
        )
    for name, value in found.items():
        if not _is(value, types_of[name]):
            raise ValueError(f"{kind.__name__}.{name} must be {types_of[name]} in {path}: {value}")
    return kind(**found)


def _is(value: object, kind: Any) -> bool:
    """Whether JSON gave what a field holds."""
    origin, inner = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        return any(_is(value, one) for one in inner)
    if kind is Any:
        return True
    if kind is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if origin is list:
        return isinstance(value, list) and all(_is(one, inner[0]) for one in value)
    if origin is dict:
        return isinstance(value, dict) and all(_is(one, inner[1]) for one in value.values())
    return isinstance(value, kind) and not (kind is int and isinstance(value, bool))
