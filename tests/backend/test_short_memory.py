"""When views are asked to give memory back, and what admission counts on."""

from types import SimpleNamespace
from typing import Any

import pytest
from pytest import MonkeyPatch

from sgl_sparsekv.backend.request_table import activate
from sgl_sparsekv.backend.views import short_memory
from sgl_sparsekv.config import parse_server_options
from sgl_sparsekv.errors import SparseKVError


class Giving:
    """Stands for `Packing`: gives back what it is told to, and notes who was asked."""

    page_size = 16

    def __init__(self, tokens: int) -> None:
        self.tokens, self.asked = tokens, list[Any]()

    def give_back(self, requests: list[Any], tree: object) -> int:
        self.asked.append(requests)
        return self.tokens


def request(output: int = 1, options: dict[str, Any] | None = None) -> Any:
    params = SimpleNamespace(custom_params={"sparsekv": options} if options else None)
    return Request(params, [7] * output)


class Request:
    """What is looked at of a `Req`; hashable by identity, as that is."""

    rid, input_embeds, retraction_count = "r", None, 0

    def __init__(self, params: Any, output: list[int]) -> None:
        self.sampling_params, self.output_ids = params, output
        self.origin_input_ids = [1] * 100

    def finished(self) -> bool:
        return self.output_ids[-1:] == [0]


def batch(full: bool, room: bool, *requests: Any) -> Any:
    return SimpleNamespace(
        batch_is_full=full,
        reqs=list(requests),
        check_decode_mem=lambda: room,
        is_empty=lambda: not requests,
    )


def scheduler(waiting: int, rows: int) -> Any:
    return SimpleNamespace(
        waiting_queue=[None] * waiting,
        tree_cache=None,
        get_num_allocatable_reqs=lambda running, running_batch: rows,
    )


@pytest.fixture
def giving(monkeypatch: MonkeyPatch) -> Giving:
    found = Giving(32)
    monkeypatch.setattr(short_memory, "_active", found)
    return found


def test_requests_that_wait_for_memory_are_tried_again_once_some_was_given_back(
    giving: Giving,
) -> None:
    running = batch(True, True, request())
    short_memory.admit_more(scheduler(waiting=1, rows=1), running)
    assert not running.batch_is_full and giving.asked == [running.reqs]
    giving.tokens, running.batch_is_full = 0, True
    short_memory.admit_more(scheduler(waiting=1, rows=1), running)
    assert running.batch_is_full


@pytest.mark.parametrize(("full", "waiting", "rows"), [(False, 1, 1), (True, 0, 1), (True, 1, 0)])
def test_nobody_is_asked_where_nobody_waits_for_memory(
    giving: Giving, full: bool, waiting: int, rows: int
) -> None:
    """There is room, the queue is empty, or what is missing is a row."""
    running = batch(full, True, request())
    short_memory.admit_more(scheduler(waiting, rows), running)
    assert giving.asked == [] and running.batch_is_full is full


def test_before_a_retraction_those_that_answer_are_asked(giving: Giving) -> None:
    """Not those whose prompt the tree was not offered, nor those that have ended."""
    answering = request()
    short_memory.go_on(scheduler(0, 1), batch(False, False, request(0), answering))
    short_memory.go_on(scheduler(0, 1), batch(False, True, answering))
    ended = request()
    ended.output_ids = [0]
    short_memory.go_on(scheduler(0, 1), batch(False, False, ended))
    assert giving.asked == [[answering], []]


def test_without_packing_nothing_is_asked(monkeypatch: MonkeyPatch) -> None:
    monkeypatch.setattr(short_memory, "_active", None)
    running = batch(True, False, request())
    short_memory.admit_more(scheduler(1, 1), running)
    short_memory.go_on(scheduler(1, 1), running)
    assert running.batch_is_full


@pytest.mark.parametrize(
    ("options", "counted"),
    [
        ({"method": "snapkv", "renew_every": 100}, 116),
        ({"method": "snapkv", "renew_every": 0}, 900),
        ({"method": "snapkv", "dense_layers": 1}, 900),
        ({"method": "snapkv", "telemetry": True}, 900),
        ({"method": "quest"}, 900),
    ],
)
def test_an_answer_is_counted_with_what_it_will_hold(
    giving: Giving, monkeypatch: MonkeyPatch, options: dict[str, Any], counted: int
) -> None:
    """Where it is renewed, all layers are narrowed and it can be packed; and only if asked for."""
    methods = ["full", "quest", "snapkv"]
    for admits, expected in ((True, counted), (False, 900)):
        named = {"methods": methods, "dense_layers": 0, "admit_packed": admits}
        table = activate(parse_server_options(named))
        monkeypatch.setattr(short_memory, "active_table", lambda table=table: table)
        asked = request(1, options)
        table.enter(asked)
        assert short_memory.tokens_to_come(lambda *_: 900, None, asked) == expected
    fewer = short_memory.tokens_to_come(lambda *_: 5, None, asked)
    assert fewer == 5


def test_counting_on_packing_needs_packing() -> None:
    with pytest.raises(SparseKVError, match="admit_packed must be false where pack_views is"):
        parse_server_options({"pack_views": False, "admit_packed": True})
