"""The scheduler's report reaches the response once, as a plain dict, and only there."""

import asyncio
import json
from collections.abc import AsyncGenerator
from types import SimpleNamespace
from typing import Any

import pytest

from sgl_sparsekv.backend import request_table
from sgl_sparsekv.config import ServerOptions
from sgl_sparsekv.serving import echo, reports
from sgl_sparsekv.serving.front_end import FrontEnd

REPORT = {"method": "quest", "decode_steps": 3, "rejected": None}


def batch(*finished: bool) -> SimpleNamespace:
    requests = [
        SimpleNamespace(rid=f"r{i}", finished=lambda value=value: value)
        for i, value in enumerate(finished)
    ]
    return SimpleNamespace(output_reqs=requests, customized_info={}, rust_server_mode=False)


class Request:
    """As much of SGLang's `Req` as the table reads."""

    def __init__(self, rid: str) -> None:
        self.rid = rid
        self.sampling_params = SimpleNamespace(custom_params=None)
        self.input_embeds, self.retraction_count, self.origin_input_ids = None, 0, [1, 2, 3]


@pytest.fixture
def table(monkeypatch: pytest.MonkeyPatch) -> request_table.RequestTable:
    made = request_table.RequestTable(ServerOptions())
    monkeypatch.setattr(request_table, "_active", made)
    for row, rid in enumerate(("r0", "r1")):
        made.note(row, Request(rid))
    return made


def test_only_finished_requests_are_reported(table: request_table.RequestTable) -> None:
    payload = batch(False, True)
    echo.attach_reports(lambda b, **k: None, payload, dp_rank=0)
    waiting, done = payload.customized_info["sparsekv"]
    assert waiting == [] and done[0]["method"] == "quest" and done[0]["budget"] == 2048


def test_nothing_is_attached_without_our_backend_or_an_end(
    table: request_table.RequestTable, monkeypatch: pytest.MonkeyPatch
) -> None:
    running = batch(False, False)
    echo.attach_reports(lambda b, **k: None, running, dp_rank=0)
    monkeypatch.setattr(request_table, "_active", None)
    stock = batch(True)
    echo.attach_reports(lambda b, **k: None, stock, dp_rank=0)
    assert running.customized_info == {} and stock.customized_info == {}


def test_what_is_wrapped_gets_all_that_sglang_gave(
    table: request_table.RequestTable, manager: Any, front_end: FrontEnd
) -> None:
    """And its result is SGLang's, but for reports."""

    def original(*args: Any, **options: Any) -> tuple[Any, ...]:
        return (*args, options)

    payload, stock = batch(False, True), serving_of(SimpleNamespace())
    assert echo.attach_reports(original, payload, 1, rank=2) == (payload, 1, {"rank": 2})
    assert echo.add_to_stream(original, stock, 1, rank=2) == (stock, 1, {"rank": 2})
    passed: list[Any] = []
    state, meta = SimpleNamespace(obj=SimpleNamespace()), {"id": "r0"}
    info = {"other": [1, 2], "sparsekv": [[], [REPORT]]}
    echo.take_report(lambda *args: passed.append(args), manager, meta, state, info, 1, "stop")
    assert passed == [(manager, meta, state, {"other": [1, 2]}, 1, "stop")]
    assert meta == {"id": "r0", "sparsekv": REPORT}
    assert not front_end.reports, "it streams nothing"


def take(
    info: dict[str, Any], stream: bool = False, manager: Any = None
) -> tuple[dict[str, Any], list[Any]]:
    meta: dict[str, Any] = {"id": "r0"}
    passed: list[Any] = []
    state = SimpleNamespace(obj=SimpleNamespace(stream=stream))
    echo.take_report(lambda *args: passed.append(args), manager, meta, state, info, 1, None)
    return meta, passed


def test_the_front_end_gets_a_plain_dict() -> None:
    meta, passed = take({"sparsekv": [[], [REPORT]]})
    assert meta["sparsekv"] == REPORT and passed == []


def test_other_values_go_the_way_of_sglang() -> None:
    meta, passed = take({"sparsekv": [[], []], "theirs": [[1], [2]]})
    assert "sparsekv" not in meta and passed[0][3] == {"theirs": [[1], [2]]}


def outputs(*reports: Any) -> list[dict[str, Any]]:
    return [{"meta_info": {"sparsekv": report} if report else {}} for report in reports]


def serving_of(manager: Any) -> SimpleNamespace:
    """SGLang's handler of an OpenAI route."""
    return SimpleNamespace(tokenizer_manager=manager)


def test_openai_responses_carry_it_in_metadata(manager: Any) -> None:
    serving = serving_of(manager)
    one = SimpleNamespace(metadata={"weight_version": "1"})
    echo.add_to_response(one, serving, None, outputs(REPORT), 0)
    assert one.metadata == {"weight_version": "1", "sparsekv": REPORT}
    two = SimpleNamespace(metadata=None)
    echo.add_to_response(two, serving, None, outputs(REPORT, REPORT), 0)
    assert two.metadata == {"sparsekv": [REPORT, REPORT]}
    none = SimpleNamespace(metadata=None)
    echo.add_to_response(none, serving, None, outputs(None), 0)
    assert none.metadata is None
    echo.add_to_response(SimpleNamespace(error="x"), serving, None, outputs(REPORT), 0)


def event(rid: str, index: int, finish: str | None = None, **more: Any) -> str:
    choice = {"index": index, "delta": {"content": "a"}, "finish_reason": finish}
    text = json.dumps({"id": rid, "choices": [choice], **more}, separators=(",", ":"))
    return f"data: {text}\n\n"


def through(chunks: list[str], manager: Any) -> list[str]:
    async def generate(serving: object) -> AsyncGenerator[str, None]:
        for chunk in chunks:
            yield chunk

    async def collect() -> list[str]:
        return [chunk async for chunk in echo.add_to_stream(generate, serving_of(manager))]

    return asyncio.run(collect())


def test_the_chunk_that_ends_a_choice_carries_it(manager: Any) -> None:
    take({"sparsekv": [[], [REPORT]]}, stream=True, manager=manager)
    chunks = [event("r0", 0), event("r0", 0), event("r0", 0, "stop"), "data: [DONE]\n\n"]
    seen = through(chunks, manager)
    assert seen[:2] == chunks[:2] and seen[3] == chunks[3]
    assert json.loads(seen[2].removeprefix("data: "))["metadata"] == {"sparsekv": REPORT}


def test_choices_of_one_response_keep_their_own_report(manager: Any, front_end: FrontEnd) -> None:
    # Chat ends every choice under the id of the one that came last.
    front_end.reports.put("a", {"which": 0})
    front_end.reports.put("b", {"which": 1})
    seen = through(
        [event("a", 0), event("b", 1), event("a", 0), event("b", 0, "stop"), event("b", 1, "stop")],
        manager,
    )
    ends = [json.loads(chunk.removeprefix("data: "))["metadata"]["sparsekv"] for chunk in seen[3:]]
    assert ends == [{"which": 0}, {"which": 1}]


def test_metadata_that_is_there_stays_beside_the_report(manager: Any, front_end: FrontEnd) -> None:
    front_end.reports.put("a", REPORT)
    (seen,) = through([event("a", 0, "stop", metadata={"weight_version": "1"})], manager)
    found = json.loads(seen.removeprefix("data: "))["metadata"]
    assert found == {"weight_version": "1", "sparsekv": REPORT}


@pytest.mark.parametrize(
    ("chunks", "parsed"),
    [
        ([event("a", 0)] * 5 + [event("a", 0, "stop")], 2),
        ([event("a", 1), event("a", 1), event("a", 0), event("a", 0)], 4),
        (['data: {"choices":[],"usage":{}}\n\n', "data: [DONE]\n\n"], 0),
        (['event: x\ndata: {"finish_reason":"stop"}\n\n', ': "index":0, \n\n'], 0),
    ],
)
def test_chunks_are_parsed_only_where_something_may_be_learnt(
    manager: Any, monkeypatch: pytest.MonkeyPatch, chunks: list[str], parsed: int
) -> None:
    """One for each choice and its end; while choice 0 is alone, none between."""
    read: list[str] = []
    loads = echo.orjson.loads
    monkeypatch.setattr(echo.orjson, "loads", lambda text: read.append(text) or loads(text))
    assert through(chunks, manager) == chunks
    assert len(read) == parsed


@pytest.mark.parametrize(
    "chunk",
    [
        'data: {"error":{"message":"\\"finish_reason\\":\\"x\\""}}\n\n',
        'data: {"choices":[],"usage":{"finish_reason":"x"}}\n\n',
        'data: {"index":3, broken "finish_reason":"stop"\n\n',
        'event: sglext_ids\ndata: {"finish_reason":"stop"}\n\n',
        event("unknown", 0, "stop"),
    ],
)
def test_events_that_are_not_ours_pass_unchanged(manager: Any, chunk: str) -> None:
    assert through([chunk], manager) == [chunk]


def test_a_stock_stream_is_the_very_same_object() -> None:
    marker = object()
    stock = serving_of(SimpleNamespace())
    assert echo.add_to_stream(lambda serving: marker, stock) is marker


def test_reports_nobody_fetches_are_forgotten(front_end: FrontEnd) -> None:
    """The oldest first, by their number and by their size; those that are fetched as well."""
    for i in range(3 * reports.MOST):
        front_end.reports.put(str(i), REPORT)
    assert len(front_end.reports) == reports.MOST
    assert front_end.reports.take("0") is None and front_end.reports.take(str(3 * reports.MOST - 1))
    large = {"map": "x" * (reports.MOST_BYTES // 3)}
    for i in range(5):
        front_end.reports.put(f"large {i}", large)
        assert front_end.reports.size <= reports.MOST_BYTES
    assert len(front_end.reports) == 2
    assert front_end.reports.take("large 2") is None
    assert json.loads(front_end.reports.take("large 4") or "") == large
    assert json.loads(front_end.reports.take("large 3") or "") == large
    assert front_end.reports.size == len(front_end.reports) == 0
    front_end.reports.put("alone", {"map": "x" * reports.MOST_BYTES})
    assert front_end.reports.take("alone") is not None
