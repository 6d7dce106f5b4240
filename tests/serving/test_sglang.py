"""Our hooks against SGLang's own classes: what they rely on is there, and is what it seems."""

import gc
import inspect
import sys
import weakref
from importlib import import_module
from types import SimpleNamespace
from typing import Any

import pytest

from sgl_sparsekv.backend.flags import ATTRIBUTE
from sgl_sparsekv.config import ServerOptions
from sgl_sparsekv.plugin import HOOKS, Hook
from sgl_sparsekv.serving import echo, guard, start
from sgl_sparsekv.serving.front_end import front_end_of
from sgl_sparsekv.serving.requests import check_request
from sgl_sparsekv.serving.start import note_tokenizer_manager
from sgl_sparsekv.serving.state import add_internal_state

OURS = [hook for hook in HOOKS if hook.function.startswith("serving.")]


def target_of(hook: Hook) -> Any:
    path, _, name = hook.target.rpartition(".")
    module, _, cls = path.rpartition(".")
    found = getattr(getattr(import_module(module), cls), name)
    return inspect.unwrap(found)


@pytest.mark.parametrize("hook", OURS, ids=lambda hook: hook.function)
def test_a_hook_takes_what_its_target_takes(hook: Hook) -> None:
    theirs = len(inspect.signature(target_of(hook)).parameters)
    ours = inspect.signature(hook.resolve())
    # The result or the original comes first, but before the call there is neither.
    ours.bind(*[None] * (theirs + (hook.kind != "before")))


def test_the_accumulator_has_what_we_read() -> None:
    from sglang.srt.managers.scheduler_components.output_streamer import (
        _GenerationStreamAccumulator as Accumulator,
    )

    fields = set(Accumulator.__dataclass_fields__)
    assert {"output_reqs", "customized_info", "rust_server_mode", "rids"} <= fields


def test_our_report_stays_out_of_token_slices() -> None:
    from sglang.srt.managers.tokenizer_manager import (
        ReqState,
        TokenizerManager,
        _slice_streaming_output_meta_info,
    )

    accumulate = inspect.unwrap(TokenizerManager.update_request_meta_info)
    manager = TokenizerManager.__new__(TokenizerManager)
    names = inspect.signature(ReqState).parameters
    state = ReqState(**{n: None for n, p in names.items() if p.default is p.empty})
    state.obj = SimpleNamespace(stream=True)
    meta: dict[str, Any] = {"id": "r"}
    values = {"sparsekv": [[{"method": "quest"}]], "theirs": [[1, 2]]}
    echo.take_report(accumulate, manager, meta, state, values, 0, None)
    _slice_streaming_output_meta_info(meta, 1, state.customized_info_accumulated.keys())
    assert meta == {"id": "r", "sparsekv": {"method": "quest"}, "theirs": [2]}


def server_args(backend: str = "sparsekv") -> SimpleNamespace:
    others = {"decode_attention_backend": None, "prefill_attention_backend": None}
    carried = {ATTRIBUTE: {"budget": 512}} if backend == "sparsekv" else {}
    return SimpleNamespace(attention_backend=backend, **others, **carried)


def manager_with(backend: str = "sparsekv", vocab_size: int = 77, **options: Any) -> Any:
    """As much of a tokenizer manager as is there when its `__init__` returns."""
    args = server_args(backend)
    if options:
        setattr(args, ATTRIBUTE, options)
    return SimpleNamespace(
        server_args=args,
        model_config=SimpleNamespace(vocab_size=vocab_size, context_len=4096, hidden_size=8),
        enable_metrics=False,
        mm_processor=None,
    )


def test_the_front_end_learns_its_options() -> None:
    manager = manager_with()
    note_tokenizer_manager(None, manager)
    found = front_end_of(manager)
    assert found is not None and not found.multimodal
    assert (found.options.request.budget, found.vocab_size) == (512, 77)


def ask(manager: Any, **given: Any) -> None:
    from sglang.srt.managers.io_struct import GenerateReqInput

    check_request(manager, GenerateReqInput(**given))


def test_a_dense_engine_after_ours_is_judged_by_nothing_of_ours() -> None:
    ours, dense = manager_with(), manager_with("triton", vocab_size=4096)
    note_tokenizer_manager(None, ours)
    note_tokenizer_manager(None, dense)
    assert front_end_of(dense) is None
    ask(dense, input_ids=[[4000]])
    with pytest.raises(ValueError, match=r"input_ids\[0\]\[0\]"):
        ask(ours, input_ids=[[4000]])


def test_two_engines_of_ours_refuse_by_their_own_options() -> None:
    quest, full = manager_with(methods=["quest"]), manager_with(method="full", methods=["full"])
    for manager in (quest, full):
        note_tokenizer_manager(None, manager)
    for manager, right, wrong in ((quest, "quest", "full"), (full, "full", "quest")):
        chosen = {"custom_params": {"sparsekv": {"method": right}}}
        ask(manager, text="a", sampling_params=chosen)
        chosen = {"custom_params": {"sparsekv": {"method": wrong}}}
        with pytest.raises(ValueError, match=r"sparsekv\.method must be one of"):
            ask(manager, text="a", sampling_params=chosen)


def test_a_front_end_ends_with_its_engine() -> None:
    manager = type("Manager", (), {})()
    vars(manager).update(vars(manager_with()))
    note_tokenizer_manager(None, manager)
    gone = weakref.ref(front_end_of(manager))
    del manager
    gc.collect()
    assert gone() is None


def test_the_guard_goes_into_the_application_before_it_starts(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from starlette.applications import Starlette

    app = Starlette()
    monkeypatch.setitem(sys.modules, start.HTTP_MODULE, SimpleNamespace(app=app))
    note_tokenizer_manager(None, manager_with())
    assert [entry.cls for entry in app.user_middleware] == [guard.RequestGuard]
    app.middleware_stack = app.build_middleware_stack()
    note_tokenizer_manager(None, manager_with())
    assert "the web server has started" in caplog.text


def test_an_extra_tokenizer_process_guards_its_application(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """From its front end's first moment on, which comes while the application starts."""
    from sglang.srt.entrypoints import http_server

    from tests.serving.test_guard import Application, call

    monkeypatch.setattr(http_server.app, "user_middleware", [*http_server.app.user_middleware])
    monkeypatch.delitem(sys.modules, "sgl_sparsekv.serving.worker", raising=False)
    worker = import_module("sgl_sparsekv.serving.worker")
    innermost = http_server.app.user_middleware[-1].cls
    assert innermost is worker.WorkerGuard and worker.app is http_server.app

    manager = manager_with()
    manager.server_args.tokenizer_worker_num = 2
    monkeypatch.setattr(http_server, "_global_state", None)
    guarded, misplaced = innermost(Application()), {"text": "x", "sparsekv": {"budget": 512}}
    assert call(guarded, "/generate", misplaced)[0] == 200
    monkeypatch.setattr(http_server, "_global_state", SimpleNamespace(tokenizer_manager=manager))
    assert call(guarded, "/generate", misplaced)[0] == 200
    note_tokenizer_manager(None, manager)
    assert call(guarded, "/generate", misplaced)[0] == 400
    assert "started" not in caplog.text


def test_the_routes_we_guard_are_routes_of_sglang() -> None:
    from sglang.srt.entrypoints.http_server import app

    known = {getattr(route, "path", "") for route in app.routes}
    assert set(guard.ROUTES) <= known
    assert app.middleware_stack is None


def test_server_info_has_our_part() -> None:
    result = SimpleNamespace(internal_state={})
    add_internal_state(result, SimpleNamespace(server_args=server_args()), None)
    ours = result.internal_state["sparsekv"]
    assert ours["options"] == ServerOptions().as_dict() | {"budget": 512}
    assert set(ours["hooks"]) == {hook.target for hook in HOOKS}
    assert ours["metadata_bytes"] == ours["counters"]["metadata_bytes"]
    stock = SimpleNamespace(internal_state={})
    add_internal_state(stock, SimpleNamespace(server_args=server_args("triton")), None)
    assert stock.internal_state == {}
