"""Pipeline stages and replicas: two processes tell what one tells, each at its own endpoint."""

import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from sgl_sparsekv.models.documents import chain_document
from sgl_sparsekv.serving.subscribe import TraceCollector
from sgl_sparsekv.serving.trace import SelectionRecord, rank_endpoint
from sgl_sparsekv.tooling.servers import ServerProcess

from .client import Ask, ask_for, generate_all, metric, wrong_answers
from .fleet import Fleet

pytestmark = pytest.mark.soak
OPTIONS = {"method": "quest", "budget": 256, "dense_layers": 1}
COUNTED = ("tokens_attended_total", "tokens_in_context_total", "units_summarised_total")


@pytest.fixture
def asks() -> list[Ask]:
    """Eight questions over one document of 3k tokens."""
    document = chain_document(3000, num_questions=8, num_hops=8, seed=31)
    return [ask_for(document, question, OPTIONS) for question in document.questions]


@pytest.fixture
def stages(fleet: Fleet) -> Iterator[ServerProcess]:
    """One replica in two pipeline stages, one layer and two."""
    yield fleet.get("two_stages")
    fleet.stop("two_stages")


@pytest.fixture
def replicas(fleet: Fleet) -> Iterator[ServerProcess]:
    """Two replicas behind one front end."""
    yield fleet.get("two_replicas")
    fleet.stop("two_replicas")


def ask_all(
    fleet: Fleet, server: ServerProcess, asks: list[Ask], at: int
) -> tuple[list[dict[str, object]], list[SelectionRecord], list[float]]:
    """Reports of the answers, what two endpoints published of them, and what metrics counted."""
    first, heard = fleet.trace_endpoint(at), list[SelectionRecord]()
    before = [metric(server.url, name) for name in COUNTED]
    with TraceCollector([first, rank_endpoint(first, 1)]) as collector:
        time.sleep(1.0)  # a ZMQ publisher sends nothing to who has not joined yet
        answers = generate_all(server.url, asks[:1]) + generate_all(server.url, asks[1:])
        while (record := collector.receive(1.0)) is not None:
            heard.append(record)
        assert collector.lost == 0
    assert wrong_answers(asks, answers) == []
    counted = [metric(server.url, name) - was for name, was in zip(COUNTED, before, strict=True)]
    return [answer["meta_info"]["sparsekv"] for answer in answers if answer], heard, counted


def test_stages_tell_what_one_process_tells(
    fleet: Fleet, ours: ServerProcess, stages: ServerProcess, asks: list[Ask]
) -> None:
    """Layers keep their numbers, the first layers are dense once, and everything counts once."""
    one, _, counted_by_one = ask_all(fleet, ours, asks, at=0)
    two, heard, counted_by_two = ask_all(fleet, stages, asks, at=4)
    assert two == one
    assert counted_by_two[:2] == counted_by_one[:2]
    assert counted_by_two[2] >= 3000 // 16
    assert {(r.pp_rank, r.layer, r.method) for r in heard} == {
        (0, 0, "full"), (1, 1, "quest"), (1, 2, "quest"),
    }  # fmt: skip


def test_watch_shows_both_replicas(fleet: Fleet, replicas: ServerProcess, asks: list[Ask]) -> None:
    """Each publishes what its own requests read; the counters are those of both."""
    first = fleet.trace_endpoint(6)
    command = [sys.executable, "-m", "sgl_sparsekv.cli", "watch", first, rank_endpoint(first, 1)]
    watch = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    reports, heard, counted = ask_all(fleet, replicas, asks, at=6)
    watch.terminate()
    shown = str(watch.communicate(timeout=60)[0])
    by_replica = {dp: {r.rid for r in heard if r.dp_rank == dp} for dp in (0, 1)}
    assert all(by_replica.values()) and not by_replica[0] & by_replica[1]
    assert all(any(rid[:12] in shown for rid in rids) for rids in by_replica.values())
    assert counted[0] == sum(int(str(report["tokens_attended"])) for report in reports)
