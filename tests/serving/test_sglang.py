"""Our hooks against SGLang's own classes: what they rely on is there, and is what it seems."""

import inspect
import sys
from collections.abc import Iterator
from importlib import import_module
from types import SimpleNamespace
from typing import Any

import pytest

from sgl_sparsekv.backend.flags import ATTRIBUTE
from sgl_sparsekv.config import ServerOptions
from sgl_sparsekv.plugin import HOOKS, Hook
from sgl_sparsekv.serving import echo, front_end, guard
from sgl_sparsekv.serving.front_end import FrontEnd, active, note_tokenizer_manager, set_active
from sgl_sparsekv.serving.requests import check_generate_request, verify_sampling_params
from sgl_sparsekv.serving.state import add_internal_state

OURS = [hook for hook in HOOKS if hook.function.startswith("serving.")]


@pytest.fixture
def no_front_end() -> Iterator[None]:
    set_active(None)
    yield
    set_active(None)


def target_of(hook: Hook) -> Any:
    path, _, name = hook.target.rpartition(".")
    module, _, cls = path.rpartition(".")
    found = getattr(getattr(import_module(module), cls), name)
    return inspect.unwrap(found)


@pytest.mark.parametrize("hook", OURS, ids=lambda hook: hook.function)
def test_a_hook_takes_what_its_target_takes(hook: Hook) -> None:
    theirs = len(inspect.signature(target_of(hook)).parameters)
    ours = inspect.signature(hook.resolve())
    ours.bind(*[None] * (theirs + 1))  # the result or the original comes first


def generate_request(**given: Any) -> Any:
    from sglang.srt.managers.io_struct import GenerateReqInput

    request = GenerateReqInput(**given)
    inspect.unwrap(GenerateReqInput.normalize_batch_and_arguments)(request)
    return request


@pytest.mark.parametrize("samples", [1, 3])
def test_normalised_batches_hide_no_bad_token(front_end: FrontEnd, samples: int) -> None:
    # Normalisation fills the media of a batch with lists of None.
    good = generate_request(input_ids=[[1], [2, 3]], sampling_params={"n": samples})
    check_generate_request(None, good)
    bad = generate_request(input_ids=[[1], [2, -3]], sampling_params={"n": samples})
    with pytest.raises(ValueError, match=r"input_ids\[1\]\[1\]"):
        check_generate_request(None, bad)
    single = generate_request(input_ids=[5, 1000], sampling_params={})
    with pytest.raises(ValueError, match=r"input_ids\[1\]"):
        check_generate_request(None, single)


def test_a_batch_with_one_parameter_list_names_the_item(front_end: FrontEnd) -> None:
    params = [{"custom_params": {"sparsekv": {"budget": size}}} for size in (512, 512, 0)]
    with pytest.raises(ValueError, match="request 2 of the batch"):
        check_generate_request(None, generate_request(text=["a"] * 3, sampling_params=params))


def test_sampling_parameters(front_end: FrontEnd) -> None:
    from sglang.srt.sampling.sampling_params import SamplingParams

    def check(**given: Any) -> None:
        verify_sampling_params(None, SamplingParams(**given), 1000)

    check(custom_params={"sparsekv": {"budget": 512}}, stop_token_ids=[5, 999])
    check()
    with pytest.raises(ValueError, match=r"sparsekv\.budget"):
        check(custom_params={"sparsekv": {"budget": 0}})
    with pytest.raises(ValueError, match="stop_token_ids"):
        check(stop_token_ids=[1000])


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


def manager(backend: str = "sparsekv") -> SimpleNamespace:
    return SimpleNamespace(
        server_args=server_args(backend),
        model_config=SimpleNamespace(vocab_size=77),
        enable_metrics=False,
        mm_processor=None,
    )


def test_the_front_end_learns_its_options(no_front_end: None) -> None:
    note_tokenizer_manager(None, manager())
    found = active()
    assert found is not None and not found.multimodal
    assert (found.options.request.budget, found.vocab_size) == (512, 77)


def test_another_backend_leaves_no_front_end(no_front_end: None) -> None:
    note_tokenizer_manager(None, manager("triton"))
    assert active() is None


def test_the_guard_goes_into_the_application_before_it_starts(
    no_front_end: None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from starlette.applications import Starlette

    app = Starlette()
    monkeypatch.setitem(sys.modules, front_end.HTTP_MODULE, SimpleNamespace(app=app))
    note_tokenizer_manager(None, manager())
    assert [entry.cls for entry in app.user_middleware] == [guard.RequestGuard]
    app.middleware_stack = app.build_middleware_stack()
    note_tokenizer_manager(None, manager())
    assert "the web server has started" in caplog.text


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
