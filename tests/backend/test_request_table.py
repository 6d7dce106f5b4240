"""What the scheduler knows of its requests, and what each is told that it read."""

import gc
from array import array
from collections.abc import Iterator
from dataclasses import asdict
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from sgl_sparsekv.backend import request_table
from sgl_sparsekv.backend.request_table import (
    RequestEntry,
    RequestTable,
    activate,
    active_table,
    note_batch,
)
from sgl_sparsekv.backend.telemetry import RARELY, SAMPLE_EVERY
from sgl_sparsekv.config import RequestOptions, ServerOptions


def request(**more: Any) -> Any:
    """SGLang's own, holding nothing."""
    from sglang.srt.managers.schedule_batch import Req
    from sglang.srt.sampling.sampling_params import SamplingParams

    return Req("one", "", array("q", [1, 2, 3]), SamplingParams(), **more)


@pytest.mark.parametrize(("embeds", "counted"), [([[0.5, 1.0]] * 3, 2), (None, 5)])
def test_steps_whose_output_was_thrown_away_are_not_told(
    sglang: None, embeds: list[list[float]] | None, counted: int
) -> None:
    """SGLang restarts a retracted prompt of embeddings at zero, and goes on with any other."""
    table, req = RequestTable(ServerOptions()), request(input_embeds=embeds)
    table.note(4, req)
    for _ in range(3):
        table.record(4, attended=10, in_context=100, length=50)
    table.entry(4).telemetry.steps = 3
    req.output_ids.extend([7, 7, 7])
    req.reset_for_retract()
    for row in (6, 6):
        table.note(row, req)
        table.record(row, attended=10, in_context=100, length=50)
    report = table.report("one")
    assert report is not None and report["decode_steps"] == counted
    assert (report["tokens_attended"], report["tokens_in_context"]) == (10 * counted, 100 * counted)
    assert table.entry(6).telemetry.steps == (0 if embeds else 3)
    assert len(req.output_ids) == (0 if embeds else 3), "as SGLang does it"


class Request:
    """As much of SGLang's `Req` as the table reads."""

    def __init__(self, rid: str, options: Any = None, row: int | None = None) -> None:
        self.rid, self.extend_end, self.origin_input_ids = rid, 100, range(90)
        custom = None if options is None else {"sparsekv": options}
        self.sampling_params = SimpleNamespace(custom_params=custom)
        self.kv = SimpleNamespace(req_pool_idx=row)
        self.input_embeds: Any = None
        self.retraction_count = 0


def report_of(table: RequestTable, rid: str) -> dict[str, Any]:
    found = table.report(rid)
    assert found is not None
    return found


def test_a_request_gets_its_options_and_others_the_servers() -> None:
    server = ServerOptions(request=RequestOptions(budget=512))
    table, own, plain = RequestTable(server), Request("own", {"budget": 1024}), Request("plain")
    table.note(3, own)
    table.note(5, plain)
    assert table.entry(3).options.budget == 1024 and table.entry(3).rid == "own"
    assert table.entry(5).options is server.request
    nobody = table.entry(4)
    assert (nobody.rid, nobody.options, nobody.serial) == ("", server.request, -1)
    assert table.of(own) is table.entry(3) and table.of(Request("own")) is None
    assert table.report("nobody") is None and table.rejected_count == 0


@pytest.mark.parametrize("custom", (None, {"other": 1}, "text", ["sparsekv"]))
def test_parameters_of_others_are_left_alone(custom: Any) -> None:
    table, request = RequestTable(ServerOptions()), Request("one")
    request.sampling_params.custom_params = custom
    table.note(0, request)
    assert table.entry(0).rejected is None and table.entry(0).options == RequestOptions()


def test_options_that_do_not_parse_are_dropped_counted_and_told() -> None:
    table = RequestTable(ServerOptions())
    for row, budget in enumerate((-1, 4096, "many")):
        table.note(row, Request(f"r{row}", {"budget": budget}))
    assert table.rejected_count == 2
    assert table.entry(0).options == RequestOptions()
    rejected = [report_of(table, f"r{row}")["rejected"] for row in range(3)]
    assert rejected[1] is None and "budget must be" in rejected[0] and "'many'" in rejected[2]


def test_a_request_counts_on_wherever_it_lies_and_is_told_apart_by_its_serial() -> None:
    """Another of the same id is another; the last one of an id is reported."""
    table, first, second = RequestTable(ServerOptions()), Request("same"), Request("same")
    table.note(1, first)
    table.record(1, 10, 100, 50)
    table.note(2, first)
    table.record(2, 20, 200, 51)
    assert table.entry(2) is table.of(first) and table.entry(2).decode_steps == 2
    table.note(1, second)
    assert [table.entry(row).serial for row in (1, 2)] == [1, 0]
    assert report_of(table, "same")["decode_steps"] == 0
    assert table.entry(1) is table.of(second)


def test_a_report_tells_options_steps_and_tokens() -> None:
    table, request = RequestTable(ServerOptions()), Request("one", {"telemetry": True})
    table.note(0, request)
    table.record(0, 10, 100, 50)
    table.record(0, 15, 110, 51)
    entry, report = table.entry(0), report_of(table, "one")
    entry.tokens_from_sparser = 7
    assert report == {
        **asdict(entry.options), "decode_steps": 2, "tokens_attended": 25,
        "tokens_in_context": 210, "tokens_from_sparser": None, "tokens_freed": 0,
        "telemetry": entry.telemetry.report(2), "view": None, "rejected": None,
    }  # fmt: skip
    assert entry.report()["tokens_from_sparser"] == 7
    table.note(1, Request("two"))
    assert report_of(table, "two")["telemetry"] is None, "it did not ask"


def test_what_views_list_is_counted_by_layers_and_told_for_a_head() -> None:
    table = RequestTable(ServerOptions())
    table.note(0, Request("one"))
    table.record(0, 25, 100, 50)
    for tokens in (30, 12):
        table.entry(0).read(tokens, heads=4)
    assert report_of(table, "one")["tokens_attended"] == 25 + round(42 / 4)


@pytest.mark.parametrize("asked", ({"telemetry": True}, {"kept_map": True}, {}))
def test_a_view_is_told_to_who_asked_for_it(asked: dict[str, Any]) -> None:
    table = RequestTable(ServerOptions())
    table.note(0, Request("one", asked))
    table.entry(0).view = SimpleNamespace(told=lambda: {"made": 3})  # type: ignore[assignment]
    assert report_of(table, "one")["view"] == ({"made": 3} if asked else None)


def test_a_request_is_asked_for_its_view_and_its_prefix_where_the_backend_wants_them() -> None:
    table, asked = RequestTable(ServerOptions()), list[Any]()
    plain, request = Request("plain"), Request("one", {"budget": 1024})
    plain.origin_input_ids = request.origin_input_ids = range(9000)
    assert table.orders is False and table.enter(plain).prefix == ()
    table.orders = True
    table.view_of = lambda *how: asked.append(how)  # type: ignore[assignment, func-returns-value]
    entry = table.enter(request)
    assert asked == [(entry.options, 9000, entry.options.unit_size)] and entry.view is None
    assert entry.prefix != ()


@pytest.mark.parametrize(
    ("asked", "every"),
    [
        ({}, SAMPLE_EVERY),
        ({"telemetry": True}, SAMPLE_EVERY),
        ({"coverage": 0.9, "method": "quest"}, RARELY),
        ({"coverage": 0.9, "method": "quest", "telemetry": True}, SAMPLE_EVERY),
    ],
)
def test_who_asks_for_coverage_alone_is_sampled_rarely(asked: dict[str, Any], every: int) -> None:
    """Behind its output was thrown away as well."""
    table = RequestTable(ServerOptions())
    table.note(0, Request("one", asked))
    entry = table.entry(0)
    assert entry.telemetry.every == every
    entry.start_over()
    assert entry.telemetry.every == every


def test_a_request_that_is_gone_is_not_reported() -> None:
    table = RequestTable(ServerOptions())
    table.note(0, Request("gone"))
    table.note(0, Request("next"))
    gc.collect()
    assert table.report("gone") is None and report_of(table, "next")["decode_steps"] == 0


def test_keys_are_exact_up_to_the_first_step_that_left_something_out() -> None:
    """Prefill made 50; dense steps add a token each, and none behind a sparse one does."""
    table = RequestTable(ServerOptions())
    table.note(0, Request("one"))
    entry = table.entry(0)
    entry.exact = 50
    table.record(0, 51, 51, 51)
    assert entry.exact == 51
    table.record(0, 10, 52, 52)
    assert entry.exact == 51
    table.record(0, 53, 53, 53)
    assert entry.exact == 51
    table.record(0, 40, 40, 40)
    assert entry.exact == 40, "a step that was taken back is written anew"
    table.record(0, 10, 31, 31)
    assert entry.exact == 30


def test_what_a_request_offers_is_what_it_read_in_full_unless_it_shares_all() -> None:
    for share, offered in ((True, [80, 40]), (False, [50, 40])):
        entry = RequestEntry("one", RequestOptions(share_generated=share), exact=50)
        assert [entry.offered(length) for length in (80, 40)] == offered


def test_a_packed_row_offers_what_lies_in_front_of_what_was_moved() -> None:
    entry = RequestEntry("one", RequestOptions(share_generated=True))
    for packed, offered in ((SimpleNamespace(begin=32), [32, 16]), (None, [80, 16])):
        entry.view = SimpleNamespace(packed=packed)  # type: ignore[assignment]
        assert [entry.offered(length) for length in (80, 16)] == offered


def test_a_request_of_embeddings_starts_over_once_for_each_retraction() -> None:
    table, request = RequestTable(ServerOptions()), Request("one")
    request.input_embeds = [[0.5]]
    for retractions, steps in ((0, 1), (0, 2), (1, 1), (1, 2), (2, 1)):
        request.retraction_count = retractions
        table.note(0, request)
        table.record(0, 10, 100, 50)
        entry = table.entry(0)
        assert (entry.decode_steps, entry.tokens_attended, entry.tokens_in_context) == (
            *(steps, 10 * steps, 100 * steps),
        )
        assert entry.retractions == retractions


def test_a_request_of_a_method_that_keeps_a_view_has_one_and_starts_it_over_with_its_output() -> (
    None
):
    server = ServerOptions(methods=("full", "snapkv"))
    table, plain, own = RequestTable(server), Request("a"), Request("b", {"method": "snapkv"})
    own.input_embeds = [[0.5]]
    assert table.enter(plain).view is None
    table.note(3, own)
    view = table.enter(own).view
    assert view is not None and table.entry(3).view is view
    assert view.first_needed == 90 - server.request.observation_window
    own.retraction_count = 1
    table.note(5, own)
    again = table.entry(5).view
    assert again is not None and again is not view


def test_rows_of_an_extend_batch_that_decode_are_told() -> None:
    table, rows = RequestTable(ServerOptions()), np.array([4, 7, 9])
    for decoding, wanted in ((None, [False] * 3), (frozenset({7, 1}), [False, True, False])):
        table.decode_rows = decoding
        found = table.is_decode(rows)
        assert found.tolist() == wanted and found.dtype == bool


@pytest.fixture
def running(monkeypatch: pytest.MonkeyPatch) -> Iterator[RequestTable]:
    monkeypatch.setattr(request_table, "_active", None)
    yield activate(ServerOptions())


def launch(
    *requests: Any,
    mode: str = "decode",
    mixed: Any = None,
    draft: bool = False,
    named: int = 0,
) -> None:
    """As SGLang calls the hook behind `ForwardBatch.init_new`."""
    forward_mode = SimpleNamespace(
        is_mixed=lambda: mode == "mixed", is_extend=lambda: mode in ("mixed", "extend")
    )
    batch = SimpleNamespace(reqs=requests or None, decoding_reqs=mixed, forward_mode=forward_mode)
    runner = SimpleNamespace(is_draft_worker=draft)
    given = {"batch": batch, "model_runner": runner}
    by_place = [given.pop(name) for name in list(given)[: 2 - named]]
    note_batch("result", "cls", *by_place, **given)


@pytest.mark.parametrize("named", (0, 1, 2))
def test_a_batch_that_is_launched_tells_its_rows_in_order(
    running: RequestTable, named: int
) -> None:
    """However many arguments SGLang names; a request without a row keeps its place."""
    assert running.launched is None and running.decode_rows is None
    first, second, waiting = Request("a", row=6), Request("b", row=2), Request("c")
    launch(first, waiting, second, named=named)
    assert running.launched is not None and running.launched.tolist() == [6, -1, 2]
    assert running.launched.dtype == np.int64 and running.decode_rows is None
    assert running.entry(6) is running.of(first) and running.entry(2) is running.of(second)
    assert running.of(waiting) is None
    launch(named=named)
    assert running.launched.tolist() == [] and running.launched.dtype == np.int64


def test_prefill_makes_exact_keys_of_rows_that_do_not_decode_beside_it(
    running: RequestTable,
) -> None:
    extending, decoding, waiting = Request("a", row=6), Request("b", row=2), Request("c")
    launch(extending, decoding, mode="decode")
    assert running.entry(6).exact == 0
    launch(extending, waiting, decoding, mode="mixed", mixed=[decoding])
    assert running.decode_rows == frozenset({2})
    assert (running.entry(6).exact, running.entry(2).exact) == (100, 0)
    decoding.extend_end = 70
    launch(decoding, mode="extend", mixed=[extending])
    assert running.decode_rows is None and running.entry(2).exact == 70


def test_a_draft_model_and_a_stock_scheduler_leave_no_trace(
    running: RequestTable, monkeypatch: pytest.MonkeyPatch
) -> None:
    request = Request("a", row=6)
    launch(request, draft=True)
    assert running.launched is None and running.of(request) is None
    assert active_table() is running
    monkeypatch.setattr(request_table, "_active", None)
    launch(request)
    assert active_table() is None and running.of(request) is None
