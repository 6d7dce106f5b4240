"""Counters of one process: always as plain numbers, and for Prometheus under `--enable-metrics`.

`docs/metrics.md` lists the same names; a test compares the two.
"""

from dataclasses import dataclass
from functools import cache
from threading import Lock
from typing import Any

PREFIX = "sparsekv:"


@dataclass(frozen=True)
class Metric:
    """One exported series.

    Attributes:
        name: as Prometheus shows it, with the prefix.
        kind: "counter" or "gauge".
        label: its only label, or "".
        text: what it counts.
    """

    name: str
    kind: str
    label: str
    text: str

    @property
    def short(self) -> str:
        """Name without the prefix, the key in a snapshot."""
        return self.name.removeprefix(PREFIX)


STEPS = Metric("sparsekv:steps_total", "counter", "method", "Decode steps of requests, by method.")
BATCH_STEPS = Metric(
    "sparsekv:batch_steps_total",
    "counter",
    "graph",
    "Decode steps of whole batches on a GPU, by what ran: dense or sparse.",
)
ATTENDED = Metric(
    "sparsekv:tokens_attended_total", "counter", "", "Tokens read in decode, over layers."
)
IN_CONTEXT = Metric(
    "sparsekv:tokens_in_context_total",
    "counter",
    "",
    "Tokens that dense attention would have read, over layers.",
)
METADATA_BYTES = Metric("sparsekv:metadata_bytes", "gauge", "", "Bytes of page metadata.")
SUMMARISED = Metric(
    "sparsekv:units_summarised_total", "counter", "", "Units whose page metadata was computed."
)
SHARED = Metric(
    "sparsekv:units_shared_total", "counter", "", "Units whose page metadata came with a prefix."
)
FROM_SPARSER = Metric(
    "sparsekv:tokens_from_sparser_total",
    "counter",
    "",
    "Tokens of prefix hits that a request which reads less had generated.",
)
FREED = Metric(
    "sparsekv:tokens_freed_total",
    "counter",
    "",
    "Tokens of running requests that were given back, as their views do not read them.",
)
INDEXED = Metric(
    "sparsekv:segments_indexed_total", "counter", "method", "Segments whose record was built."
)
EVICTED = Metric(
    "sparsekv:segments_evicted_total", "counter", "method", "Records that gave way to another."
)
UNINDEXED = Metric(
    "sparsekv:segments_unindexed_total",
    "counter",
    "method",
    "Whole segments that found no room for a record in a step, and are scored by their keys.",
)
MASS = Metric(
    "sparsekv:attention_mass_total",
    "counter",
    "method",
    "Attention mass that selections covered, summed over the query heads that were sampled.",
)
MASS_SAMPLES = Metric(
    "sparsekv:attention_mass_samples_total",
    "counter",
    "method",
    "Query heads that were sampled, in layers and steps of requests that ask for telemetry.",
)
REJECTED = Metric(
    "sparsekv:rejected_options_total", "counter", "field", "Requests answered 400, by field."
)
CHECKED = Metric("sparsekv:checked_units_total", "counter", "", "Units compared with their keys.")
STALE = Metric(
    "sparsekv:stale_units_total", "counter", "", "Compared units whose metadata was wrong."
)
TRACE_DROPPED = Metric(
    "sparsekv:trace_dropped_total", "counter", "", "Trace records dropped, the queue being full."
)
METRICS = (
    STEPS,
    BATCH_STEPS,
    ATTENDED,
    IN_CONTEXT,
    METADATA_BYTES,
    SUMMARISED,
    SHARED,
    FROM_SPARSER,
    FREED,
    INDEXED,
    EVICTED,
    UNINDEXED,
    MASS,
    MASS_SAMPLES,
    REJECTED,
    CHECKED,
    STALE,
    TRACE_DROPPED,
)


class ServingMetrics:
    """Counts what a server did; safe to call from several threads."""

    def __init__(self, prometheus: bool = False, registry: Any = None) -> None:
        """Start at zero.

        Args:
            prometheus: also keep Prometheus objects. Only where SGLang has set
                `PROMETHEUS_MULTIPROC_DIR`, and on one rank of a replica, or reads count twice.
            registry: Prometheus registry; None takes the process's own.
        """
        self._lock = Lock()
        self._values: dict[tuple[Metric, str], float] = {}
        self._exported = _prometheus_objects(registry) if prometheus else {}

    def steps(self, method: str, rows: int) -> None:
        """Count one decode step of `rows` requests that use `method`."""
        self._add(STEPS, rows, method)

    def batch_step(self, dense: bool) -> None:
        """A decode step of a batch runs dense or sparse."""
        self._add(BATCH_STEPS, 1, "dense" if dense else "sparse")

    def read(self, attended: float, in_context: int) -> None:
        """Count tokens read, and tokens there were to read."""
        self._add(ATTENDED, attended)
        self._add(IN_CONTEXT, in_context)

    def metadata_bytes(self, size: int) -> None:
        """Set the bytes of page metadata."""
        with self._lock:
            self._values[METADATA_BYTES, ""] = size
        if METADATA_BYTES in self._exported:
            self._exported[METADATA_BYTES].set(size)

    def summarised(self, units: int) -> None:
        """Count units whose metadata was computed."""
        self._add(SUMMARISED, units)

    def shared(self, units: int) -> None:
        """Count units whose metadata came with a prefix hit."""
        self._add(SHARED, units)

    def from_sparser(self, tokens: int) -> None:
        """Count tokens of a prefix hit that a request which reads less had generated."""
        self._add(FROM_SPARSER, tokens)

    def freed(self, tokens: int) -> None:
        """Count tokens of running requests that were given back."""
        self._add(FREED, tokens)

    def segments(self, method: str, indexed: int, evicted: int, unindexed: int) -> None:
        """Count segments of a method that a step indexed, threw out, or found no room for."""
        self._add(INDEXED, indexed, method)
        self._add(EVICTED, evicted, method)
        self._add(UNINDEXED, unindexed, method)

    def covered(self, method: str, mass: float, samples: int) -> None:
        """Count attention mass that selections of a method covered, over `samples` query heads."""
        self._add(MASS, mass, method)
        self._add(MASS_SAMPLES, samples, method)

    def rejected(self, field: str) -> None:
        """Count a request that was refused for `field`."""
        self._add(REJECTED, 1, field)

    def checked(self, units: int, stale: int) -> None:
        """Count units compared with their keys, and those found wrong."""
        self._add(CHECKED, units)
        self._add(STALE, stale)

    def trace_dropped(self, records: int) -> None:
        """Count trace records that were dropped."""
        self._add(TRACE_DROPPED, records)

    def snapshot(self) -> dict[str, Any]:
        """Every metric by its name without the prefix; labelled ones as {label: count}."""
        with self._lock:
            values = dict(self._values)
        shown: dict[str, Any] = {metric.short: {} if metric.label else 0 for metric in METRICS}
        for (metric, label), value in values.items():
            if metric.label:
                shown[metric.short][label] = value
            else:
                shown[metric.short] = value
        return shown

    def _add(self, metric: Metric, amount: float, label: str = "") -> None:
        if not amount:
            return
        with self._lock:
            key = (metric, label)
            self._values[key] = self._values.get(key, 0) + amount
        exported = self._exported.get(metric)
        if exported is not None:
            (exported.labels(label) if metric.label else exported).inc(amount)


_process: ServingMetrics | None = None


def process_metrics(prometheus: bool = False) -> ServingMetrics:
    """The metrics of a scheduler process, which serves one engine and ends with it."""
    global _process
    if _process is None:
        _process = ServingMetrics(prometheus)
    return _process


@cache
def _prometheus_objects(registry: Any) -> dict[Metric, Any]:
    """One set per registry: what engines of one process count stands under one name."""
    # prometheus_client picks its value class when it is imported: not before SGLang has set
    # PROMETHEUS_MULTIPROC_DIR, so never at the top of a module.
    import prometheus_client

    target = registry if registry is not None else prometheus_client.REGISTRY
    made: dict[Metric, Any] = {}
    for metric in METRICS:
        labels = [metric.label] if metric.label else []
        if metric.kind == "gauge":
            made[metric] = prometheus_client.Gauge(
                metric.name, metric.text, labels, multiprocess_mode="livesum", registry=target
            )
        else:
            made[metric] = prometheus_client.Counter(
                metric.name, metric.text, labels, registry=target
            )
    return made
