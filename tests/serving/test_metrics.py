"""Counters count with and without Prometheus, and the documentation lists exactly these."""

import re
from pathlib import Path
from threading import Thread

import pytest

from sgl_sparsekv.serving.front_end import FrontEnd
from sgl_sparsekv.serving.metrics import METRICS, ServingMetrics

DOC = Path(__file__).parents[2] / "docs" / "metrics.md"


def use(metrics: ServingMetrics) -> None:
    metrics.steps("quest", 3)
    metrics.steps("full", 1)
    metrics.batch_step(dense=False)
    metrics.batch_step(dense=True)
    metrics.batch_step(dense=False)
    metrics.read(100, 400)
    metrics.summarised(7)
    metrics.shared(5)
    metrics.from_sparser(6)
    metrics.segments("clusterkv", 4, 2, 0)
    metrics.segments("pqcache", 0, 0, 3)
    metrics.covered("quest", 1.75, 2)
    metrics.covered("quest", 0.0, 1)
    metrics.rejected("budget")
    metrics.freed(32)
    metrics.checked(10, 2)
    metrics.metadata_bytes(4096)
    metrics.trace_dropped(1)


EXPECTED = {
    "steps_total": {"quest": 3, "full": 1},
    "batch_steps_total": {"sparse": 2, "dense": 1},
    "tokens_attended_total": 100,
    "tokens_in_context_total": 400,
    "metadata_bytes": 4096,
    "units_summarised_total": 7,
    "units_shared_total": 5,
    "tokens_from_sparser_total": 6,
    "tokens_freed_total": 32,
    "segments_indexed_total": {"clusterkv": 4},
    "segments_evicted_total": {"clusterkv": 2},
    "segments_unindexed_total": {"pqcache": 3},
    "attention_mass_total": {"quest": 1.75},
    "attention_mass_samples_total": {"quest": 3},
    "rejected_options_total": {"budget": 1},
    "checked_units_total": 10,
    "stale_units_total": 2,
    "trace_dropped_total": 1,
}


def test_plain_counters() -> None:
    metrics = ServingMetrics()
    assert set(metrics.snapshot()) == {metric.short for metric in METRICS}
    use(metrics)
    assert metrics.snapshot() == EXPECTED


def test_prometheus_shows_the_same_numbers() -> None:
    from prometheus_client import CollectorRegistry, generate_latest

    registry = CollectorRegistry()
    metrics = ServingMetrics(prometheus=True, registry=registry)
    use(metrics)
    lines = generate_latest(registry).decode().splitlines()
    series = {
        line.rsplit(" ", 1)[0]: float(line.rsplit(" ", 1)[1]) for line in lines if line[0] != "#"
    }
    for metric in METRICS:
        value = EXPECTED[metric.short]
        wanted = value.items() if isinstance(value, dict) else [("", value)]
        for label, count in wanted:
            suffix = f'{{{metric.label}="{label}"}}' if metric.label else ""
            assert series[metric.name + suffix] == count


def test_no_count_is_lost_between_threads() -> None:
    metrics = ServingMetrics()
    threads = [
        Thread(target=lambda: [metrics.rejected("sink") for _ in range(2000)]) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert metrics.snapshot()["rejected_options_total"] == {"sink": 8000}


@pytest.mark.parametrize(
    ("message", "field"),
    [
        ("sparsekv.budget must be a number", "budget"),
        ("request 3 of the batch: sparsekv.method must be one of", "method"),
        ("input_ids[1][2] must be a token id", "input_ids"),
        ("stop_token_ids must be token ids", "stop_token_ids"),
        ("sparse would be ignored here; it belongs in custom_params.sparsekv", "misplaced"),
        ("sparsekv.anything_a_client_makes_up is not an option", "unknown"),
    ],
)
def test_refusals_have_few_labels(front_end: FrontEnd, message: str, field: str) -> None:
    front_end.count_refusal(message)
    assert front_end.metrics.snapshot()["rejected_options_total"] == {field: 1}


def test_the_documentation_lists_the_metrics() -> None:
    rows = re.findall(r"^\| `(sparsekv:\w+)` \| (\w+) \| (.*?) \|", DOC.read_text(), re.MULTILINE)
    documented = {(name, kind, label.strip("`")) for name, kind, label in rows}
    assert documented == {(metric.name, metric.kind, metric.label) for metric in METRICS}
