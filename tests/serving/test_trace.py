"""The trace never waits, counts what it drops, and arrives as it was published."""

import asyncio
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from sgl_sparsekv.serving import trace
from sgl_sparsekv.serving.metrics import ServingMetrics
from sgl_sparsekv.serving.subscribe import TraceCollector, subscribe
from sgl_sparsekv.serving.trace import SelectionRecord, TracePublisher, decode, encode

PATIENCE = 20.0
"""Seconds; only a failure waits so long."""


def record(step: int, rid: str = "a", layer: int = 0) -> SelectionRecord:
    return SelectionRecord(step, layer, rid, "quest", 640, [[0, 3], [0, 5]], 16, 0)


@pytest.fixture
def endpoint(tmp_path: Path) -> str:
    return f"ipc://{tmp_path}/trace"


@pytest.fixture
def publisher(endpoint: str) -> Iterator[TracePublisher]:
    made = TracePublisher(endpoint)
    yield made
    made.close()


def publish_until_heard(publisher: TracePublisher, collector: TraceCollector) -> SelectionRecord:
    """A subscription takes effect a moment after it was made."""
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        publisher.publish(record(0))
        heard = collector.receive(0.05)
        if heard is not None:
            return heard
    raise AssertionError("nothing arrived")


def test_records_arrive_as_published(publisher: TracePublisher, endpoint: str) -> None:
    with TraceCollector(endpoint) as collector:
        assert publish_until_heard(publisher, collector) == record(0)
        sent = [record(step) for step in range(1, 200)]
        for each in sent:
            assert publisher.publish(each)
        got = []
        while len(got) < len(sent) and (heard := collector.receive(PATIENCE)) is not None:
            if heard.step:
                got.append(heard)
        assert got == sent and collector.lost == 0


def test_one_request_can_be_followed(publisher: TracePublisher, endpoint: str) -> None:
    with TraceCollector(endpoint) as everything, TraceCollector(endpoint, rid="b") as one:
        publish_until_heard(publisher, everything)
        deadline = time.monotonic() + PATIENCE
        heard = None
        while heard is None and time.monotonic() < deadline:
            publisher.publish(record(1, "a"))
            publisher.publish(record(1, "b"))
            heard = one.receive(0.05)
        assert heard is not None and heard.rid == "b"


def test_asynchronous_subscription_ends_cleanly(publisher: TracePublisher, endpoint: str) -> None:
    async def follow() -> SelectionRecord:
        async def keep_publishing() -> None:
            while True:
                publisher.publish(record(7))
                await asyncio.sleep(0.01)

        task = asyncio.create_task(keep_publishing())
        records = subscribe(endpoint)
        first = await asyncio.wait_for(anext(records), PATIENCE)
        await records.aclose()  # type: ignore[attr-defined]
        task.cancel()
        return first

    assert asyncio.run(follow()) == record(7)


def test_a_full_queue_drops_and_counts_and_does_not_wait(
    endpoint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(TracePublisher, "_run", lambda self: self._wake.wait() and None)
    metrics = ServingMetrics()
    publisher = TracePublisher(endpoint, capacity=4, metrics=metrics)
    began = time.monotonic()
    taken = [publisher.publish(record(step)) for step in range(10_000)]
    assert time.monotonic() - began < 2.0
    assert sum(taken) == 4 and publisher.dropped == 9996
    assert metrics.snapshot()["trace_dropped_total"] == 9996
    publisher._socket.close()


def test_losses_are_counted_by_rank(endpoint: str) -> None:
    """Each process numbers its own messages: replicas, stages and ranks in turn are no gap."""
    with TraceCollector(endpoint) as collector:
        for number in range(3):
            for dp, pp, tp in ((0, 0, 0), (0, 0, 1), (0, 1, 0), (1, 0, 0)):
                collector._note((dp, pp, tp), number)
        assert collector.lost == 0
        collector._note((1, 0, 0), 5)
        assert collector.lost == 2


def test_records_of_before_ranks_had_three_numbers_can_be_read() -> None:
    """A recording is kept for long."""
    old = (
        b'{"step":1,"layer":2,"rid":"a","method":"quest","length":640,"units":[[0]],'
        b'"unit_size":16,"tp_rank":1}'
    )
    found = decode(old)
    assert (found.dp_rank, found.pp_rank, found.tp_rank) == (0, 0, 1)
    new = SelectionRecord(1, 2, "a", "quest", 640, [[0]], 16, 1, dp_rank=3, pp_rank=2)
    assert decode(encode(new)) == new


def test_nobody_listening_costs_nothing(publisher: TracePublisher) -> None:
    for step in range(1000):
        publisher.publish(record(step))
    publisher.close(timeout=PATIENCE)
    assert not publisher._thread.is_alive() and not publisher._waiting
    assert not publisher.publish(record(1))


def test_arrays_are_taken_as_they_are() -> None:
    padded = np.array([[0, 3, -1], [0, 5, -1]], dtype=np.int32)
    array = SelectionRecord(1, 2, "a", "quest", 640, padded, 16, 0)
    assert decode(encode(array)).units == [[0, 3], [0, 5]]
    strided = SelectionRecord(1, 2, "a", "quest", 640, padded[:, ::2], 16, 0)
    assert decode(encode(strided)).units == [[0], [0]]


@pytest.mark.parametrize("endpoint_given", ["nonsense", "http://x:1", "tcp://256.0.0.1:1"])
def test_an_endpoint_that_cannot_be_bound_is_named(endpoint_given: str) -> None:
    with pytest.raises(ValueError, match="trace must be a ZMQ endpoint"):
        TracePublisher(endpoint_given)


def test_ranks_get_endpoints_of_their_own() -> None:
    assert trace.rank_endpoint("tcp://*:5560", 0) == "tcp://*:5560"
    assert trace.rank_endpoint("tcp://127.0.0.1:5560", 3) == "tcp://127.0.0.1:5563"
    assert trace.rank_endpoint("ipc:///tmp/x", 1) == "ipc:///tmp/x-1"
