"""The CPU's part of `docs/results.md`: runs of `bench.kernels` and `bench.serve.decode`."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.tables import number, table, tokens

Result = dict[str, Any]
INTRO = """\
One layer of Llama-3.1-8B (32 query heads, 8 KV heads of 128, bfloat16), and a whole server. Times
are milliseconds, the least of the repeats. A floor is what must be read over the bandwidth of
summing a large buffer; the peer is SGLang's own `torch_native`; both in the same run. From
`kernels-cpu-20261121-152408` on, another buffer is read before each call: no cache holds anything
of the call before, as in a step of a whole model; earlier runs repeat an op. From
`kernels-cpu-20261128-162600` on, keys cluster as a language model's do, the same for all methods;
before they were noise, 64 % of whose clusters have less than 4 tokens, of a model's 0.3 %. `choose`
is score, select and what the rest weighs, in one. How the kernels work and what made them fast:
[CPU kernels](cpu_kernels.md)."""
OP_NAMES = {
    "decode_sparse": "decode, sparse",
    "decode_dense": "decode, dense",
    "decode_covering": "decode, a share covered",
    "same_bytes": "decode, as many bytes",
    "decode_view": "decode, a view",
    "same_tokens": "decode dense, as many tokens",
    "shared_sparse": "decode, on one prefix",
    "alone_sparse": "decode, row by row",
    "shared_dense": "decode dense, on one prefix",
    "alone_dense": "decode dense, row by row",
    "shared_score": "score, on one prefix",
    "alone_score": "score, row by row",
    "shared_attend": "attend, on one prefix",
    "alone_attend": "attend, row by row",
    "summarise": "summarise that prompt",
    "index": "index that prompt",
}


@dataclass(frozen=True)
class Bound:
    """What rows of one op must reach.

    Attributes:
        op: op that is judged.
        field: `speedup` (over the peer), `of_floor`, `of_prefill` (a share), `of_quest`,
            `of_same_bytes` (of a fixed budget), `of_same_tokens` (of a dense step over as many),
            `of_alone` (of the same rows one after the other) or `of_32k` (its own time at 32k).
        limit: the bound; `speedup` is at least that, the others at most.
        contexts: contexts that are judged, from the first to the last.
        method: the only method that is judged; None: any.
        batch: the only number of rows that is judged; None: any.
    """

    op: str
    field: str
    limit: float
    contexts: tuple[int, int] = (0, 1 << 30)
    method: str | None = None
    batch: int | None = None

    @property
    def words(self) -> str:
        """As a reader says it."""
        if self.field == "of_prefill":
            return f"<= {self.limit:.0%} of the prefill"
        if self.field == "of_quest":
            return f"<= {self.limit:g} times quest's"
        if self.field == "of_same_bytes":
            return f"<= {self.limit:g} times a fixed budget of as many bytes"
        if self.field == "of_same_tokens":
            return f"<= {self.limit:g} times a dense step over as many tokens"
        if self.field == "of_alone":
            return f"<= {self.limit:g} times the same rows one after the other"
        if self.field == "of_32k":
            return f"<= {self.limit:g} times its time at 32k"
        if self.field == "speedup":
            return f">= {self.limit:g} times the peer"
        return f"<= {self.limit:g} times the floor"

    def judges(self, row: Result) -> bool:
        """Whether a row is one of those it bounds."""
        inside = self.contexts[0] <= row["context"] <= self.contexts[1]
        alike = self.method in (None, row["method"]) and self.batch in (None, row["batch"])
        return inside and alike and row["op"] == self.op

    def met(self, value: float) -> bool:
        """Whether the bound is reached."""
        return value >= self.limit if self.field == "speedup" else value <= self.limit


K = 1024
BOUNDS = (
    Bound("decode_sparse", "speedup", 50, (32 * K, 128 * K - 1), "quest"),
    Bound("decode_sparse", "speedup", 80, (128 * K, 1 << 30), "quest"),
    Bound("decode_sparse", "of_floor", 2, (32 * K, 1 << 30), "quest"),
    Bound("decode_sparse", "of_quest", 1, (32 * K, 1 << 30), "clusterkv"),
    Bound("decode_sparse", "of_quest", 1, (32 * K, 1 << 30), "pqcache"),
    Bound("decode_sparse", "of_quest", 1, (32 * K, 1 << 30), "residual_pq"),
    Bound("decode_sparse", "of_32k", 1.5, (128 * K, 1 << 30), "quest_two_level"),
    Bound("decode_covering", "of_same_bytes", 1.1, (32 * K, 1 << 30)),
    Bound("decode_view", "of_same_tokens", 1.3, (32 * K, 32 * K)),
    Bound("shared_sparse", "of_alone", 1 / 4, (128 * K, 128 * K), batch=32),
    Bound("shared_dense", "of_alone", 1 / 8, (128 * K, 128 * K), batch=32),
    Bound("decode_dense", "of_floor", 2),
    Bound("prefill", "speedup", 3),
    Bound("summarise", "of_prefill", 0.03),
    Bound("index", "of_prefill", 0.1),
)


def cpu_part(folder: Path) -> str:
    """Targets by the newest run of each kind, then every run, newest first."""
    kernels = _read(folder, "kernels-*.json")
    served = _read(folder, "serve-*.json")
    parts = ["## CPU", INTRO, *_targets(kernels, served)]
    parts += [_kernels(*one) for one in kernels] + [_served(*one) for one in served]
    if not kernels and not served:
        parts.append("No run on a CPU is in `bench/results/`: not measured yet.")
    return "\n\n".join(parts)


def _read(folder: Path, pattern: str) -> list[tuple[str, Result]]:
    """Runs by name of their file, newest first."""
    found = [(path.name, json.loads(path.read_text())) for path in folder.glob(pattern)]
    return sorted(found, key=lambda one: (_header(one[1])["when"], one[0]), reverse=True)


def _header(result: Result) -> dict[str, Any]:
    """Where and when a run of either kind was made."""
    header: dict[str, Any] = result["header"] if "header" in result else result["environment"]
    return header


def _targets(kernels: list[tuple[str, Result]], served: list[tuple[str, Result]]) -> list[str]:
    """Bounds that the newest runs must reach; a shape that was not run has no line."""
    found: list[list[object]] = []
    rows = kernels[0][1]["rows"] if kernels else []
    for bound in BOUNDS:
        for row in rows:
            value = _value(bound.field, row, rows) if bound.judges(row) else None
            if value is not None:
                name = OP_NAMES.get(row["op"], row["op"])
                if row["method"] not in ("quest", "dense"):
                    name = f"{name}: {row['method']}"
                shape = (name, tokens(row["context"]), row["batch"])
                text = f"{value:.3%}" if bound.field == "of_prefill" else number(value)
                found.append([*shape, bound.words, text, "met" if bound.met(value) else "missed"])
    for _, one in served[:1]:
        shape = (f"whole server, {one['layers']} layers", tokens(one["context"]), one["batch"])
        verdict = "met" if one["passed"] else "missed"
        found.append([*shape, f">= {one['target']:g} times the peer", one["ratio"], verdict])
    return [table(["", "context", "batch", "target", "reached", ""], found)] if found else []


def _value(field: str, row: Result, rows: list[Result]) -> float | None:
    """A row's figure; where it is no field of the row, its time over that of another row.

    That is the median over the turns where the run kept it, else the least over the least.
    """
    told = ("of_quest", "of_same_bytes", "of_same_tokens", "of_alone")
    if field in told and row.get("ratio"):
        ratio: float = row["ratio"]
        return ratio
    shape = {key: row[key] for key in ("op", "method", "context", "batch")}
    others = {
        "of_prefill": {"op": "prefill", "context": row["context"]},
        "of_quest": shape | {"method": "quest"},
        "of_same_bytes": shape | {"op": "same_bytes"},
        "of_same_tokens": shape | {"op": "same_tokens"},
        "of_32k": shape | {"context": 32 * K},
    }
    if field not in others:
        found: float | None = row[field]
        return found
    same = others[field]
    other = [one["ms"] for one in rows if same.items() <= one.items()]
    return row["ms"] / other[0] if other else None


def _kernels(name: str, result: Result) -> str:
    """One run of `bench.kernels`."""
    head = result["header"]
    rows = [
        [
            OP_NAMES.get(row["op"], row["op"]),
            *(row["method"], tokens(row["context"]), row["batch"], tokens(row["budget"])),
            *(row["ms"], row["median_ms"], row["floor_ms"], row["of_floor"]),
            *((row["peer_ms"], row["speedup"]) if row["peer"] == "torch_native" else (None, None)),
        ]
        for row in result["rows"]
    ]
    where = (
        f"{_environment(head)}; {head['threads']} threads, read bandwidth "
        f"{number(head['read_gb_per_s'])} GB/s, load {number(head['load_average'])} before and "
        f"{number(head['load_average_end'])} after; page {result['rows'][0]['page_size']}."
    )
    columns = ["op", "method", "context", "batch", "budget", "ms", "median", "floor", "of floor"]
    body = table([*columns, "torch_native", "speed-up"], rows)
    return "\n\n".join([f"### Kernels, `bench/results/{name}`", where, body])


def _served(name: str, result: Result) -> str:
    """One run of `bench.serve.decode`."""
    columns = ["", "tokens/s", "ms a step", "KV read", "ratio"]
    rows = [
        [
            *(row["name"], row["tokens_per_s"], row["step_ms"], f"{row['kv_read_fraction']:.1%}"),
            f"{row['ratio']:.2f}x",
        ]
        for row in result["rows"]
    ]
    if result["batch"] > 1:
        columns.append(f"tokens/s, {result['batch']} at once")
        rows = [
            [*line, row["batch_tokens_per_s"]]
            for line, row in zip(rows, result["rows"], strict=True)
        ]
    where = (
        f"{_environment(result['environment'])}. {result['layers']} layers of "
        f"{result.get('shape', 'qwen2.5-0.5b')}'s shape, "
        f"{result['context']:,} tokens of context, budget {result['budget']:,}; tokens/s and step "
        "are medians."
    )
    heading = f"### Whole server, `bench/results/{name}`"
    return "\n\n".join([heading, where, table(columns, rows)])


def _environment(found: Result) -> str:
    return (
        f"{found['when'][:10]}, {found['machine']}, SGLang {found['sglang']}, torch "
        f"{found['torch']}, commit {found['commit']}"
    )
