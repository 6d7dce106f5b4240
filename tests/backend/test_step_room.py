"""Buffers of sparse steps: sized by what can run at once, and inside SGLang's memory budget."""

from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from sgl_sparsekv.config import RequestOptions, ServerOptions
from sgl_sparsekv.errors import UnsupportedSetup
from sgl_sparsekv.selection import load_method, registry
from sgl_sparsekv.types import HeldShape, Reduction, StepShape


@dataclass(frozen=True)
class Card:
    """A GPU, and what SGLang 0.5.23 does with it (`arg_groups/memory_hook.py`).

    Attributes:
        gib: memory.
        max_bs: largest decode batch that it captures by default, below 4 ranks.
        reserved: MiB that it leaves for activations and graphs: 1.5 per token of a prefill chunk
            and 2 per captured row.
    """

    gib: int
    max_bs: int
    reserved: float


CARDS = [
    Card(24, 48, 1.5 * 4096 + 2 * 48), Card(48, 32, 1.5 * 4096 + 2 * 32),
    Card(80, 256, 1.5 * 8192 + 2 * 256), Card(141, 256, 1.5 * 8192 + 2 * 256),
]  # fmt: skip


@dataclass(frozen=True)
class Model:
    """A model in 16 bits: GB of weights, layers, KV heads and query heads of one, channels."""

    weights: float
    layers: int
    heads: int
    group: int
    dim: int
    context: int


MODELS = {
    "Llama-3.1-8B": Model(16.1, 32, 8, 4, 128, 131_072),
    "Llama-3.2-1B": Model(2.5, 16, 8, 4, 64, 131_072),
    "Qwen3-4B-2507": Model(8.1, 36, 8, 4, 128, 262_144),
    "Qwen2.5-7B-1M": Model(15.2, 28, 4, 7, 128, 1_010_000),
    "Qwen2.5-Coder-0.5B": Model(1.0, 24, 2, 7, 64, 32_768),
}


def test_two_methods_that_bring_planes_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    from sgl_sparsekv.backend.step_room import brought_planes

    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "helpers" / "box_middle"))
    for name, point in registry._brought().items():
        monkeypatch.setitem(registry.METHODS, name, point)
    names = ("full", "quest", "quest_int8", "box_middle")
    assert brought_planes(ServerOptions(methods=names[:2])) is None
    for name in names[2:]:
        only = ServerOptions(methods=(*names[:2], name))
        assert brought_planes(only) is load_method(name).summaries[0]
    with pytest.raises(UnsupportedSetup, match="quest_int8 and box_middle cannot be served toge"):
        brought_planes(ServerOptions(methods=names))


def shape_of(model: Model, rows: int, unit: int = 16) -> StepShape:
    """A server's steps with default options."""
    units = -(-(model.context + 4) // unit)
    formulas = frozenset(load_method(name).formula for name in ServerOptions().methods)
    return StepShape(
        rows, rows, units, units, 1 << 30, model.heads, model.group, model.dim, model.dim, unit,
        unit, torch.bfloat16, torch.device("meta"), formulas, Reduction.MAX_SOFTMAX,
    )  # fmt: skip


@pytest.mark.parametrize("card", CARDS, ids=lambda card: f"{card.gib} GB")
@pytest.mark.parametrize("name", MODELS)
def test_default_flags_leave_room_for_a_pool(name: str, card: Card) -> None:
    """Weights, step buffers and what SGLang reserves fit, with 4,000 tokens of KV and metadata."""
    from sgl_sparsekv.kernels.triton import load

    from sgl_sparsekv.backend.step_room import MOST_BUFFER_BYTES, step_rows

    model, unit = MODELS[name], 16
    rows = step_rows(model.heads, model.group, -(-model.context // unit), 4096, card.max_bs)
    assert rows <= card.max_bs
    size = load().step_bytes(shape_of(model, rows))
    pool = card.gib * 2**30 - card.reserved * 2**20 - model.weights * 1e9 - size
    per_token = model.layers * model.heads * 2 * model.dim * 2 * (1 + 1 / unit)
    assert pool >= 4000 * per_token
    assert size <= 1.3 * MOST_BUFFER_BYTES
    if card.gib == 24:
        assert size <= 0.35 * (pool + size), "of what the pool would have had"


def test_rows_are_those_that_are_captured_and_can_run() -> None:
    from sgl_sparsekv.backend.step_room import step_rows

    assert step_rows(8, 4, 8192, 4096, None) == 256
    assert step_rows(8, 4, 8192, 4096, 48) == 48
    assert step_rows(8, 4, 8192, 7, 48) == 7
    assert step_rows(8, 4, 65_536, 4096, 512) == 128, "2 GiB of scores"
    assert step_rows(8, 16, 1 << 24, 1, 1) == 1, "one row, however long"


def test_bytes_are_those_that_are_allocated() -> None:
    from sgl_sparsekv.kernels.triton import load

    there = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    shape = StepShape(
        3, 5, 300, 300, 4000, 2, 4, 64, 64, 16, 64, torch.bfloat16, there,
        frozenset({"min_max"}), Reduction.MAX_SOFTMAX,
    )  # fmt: skip
    for watched in (False, True):
        assert load().step_bytes(shape, watched) == load().fused(shape, watched).nbytes


def test_views_have_room_for_every_row_of_a_step_or_for_a_gibibyte() -> None:
    """Where a method that keeps them is served; their bytes are among those of the step."""
    from sgl_sparsekv.kernels.triton import load

    from sgl_sparsekv.backend.step_room import MOST_VIEW_BYTES, with_views

    model = MODELS["Llama-3.1-8B"]
    plain, found = shape_of(model, 48), {}
    assert with_views(plain, ServerOptions(), model.layers, 0) is plain
    for name in ("snapkv", "h2o"):
        options = ServerOptions(methods=("full", "quest", name))
        shape = with_views(plain, options, model.layers, 5)
        room, size = shape.views, load().step_bytes(shape) - load().step_bytes(plain)
        assert room is not None and room.first_layer == 5 and room.views == 48
        found[name] = room.kept // (model.layers * model.heads * 2048)
        per_token = 8 if room.scores else 4
        assert room.scores == (name == "h2o")
        listed = per_token * room.kept + room.queries * 32 * 128 * 2
        assert listed < size < listed + (1 << 20) and listed <= MOST_VIEW_BYTES
    assert found == {"snapkv": 48, "h2o": 28}
    huge = ServerOptions(request=RequestOptions("snapkv", 1.0), methods=("snapkv",))
    assert with_views(plain, huge, model.layers, 0).views is not None, "room for one at least"


def test_the_pool_is_sized_without_them(sglang: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only where this backend serves on a GPU."""
    from sgl_sparsekv.kernels.triton import load

    from sgl_sparsekv.backend import step_room

    shape = shape_of(MODELS["Llama-3.2-1B"], 4)
    monkeypatch.setattr(step_room, "expected_shape", lambda *_: shape)
    configurator = SimpleNamespace(_fixed_overhead_bytes=1000)
    found = {}
    for device in ("cpu", "cuda"):
        monkeypatch.setattr(step_room, "options_of", lambda _: ServerOptions())
        kvc = SimpleNamespace(
            server_args=SimpleNamespace(device=device), is_draft_worker=False, use_mla_backend=False
        )
        step_room.reserve_step_buffers(None, configurator, kvc)
        found[device] = configurator._fixed_overhead_bytes
    assert found["cpu"] == 1000 and found["cuda"] == 1000 + load().step_bytes(shape)
    monkeypatch.setattr(step_room, "options_of", lambda _: None)
    step_room.reserve_step_buffers(None, configurator, kvc)
    assert configurator._fixed_overhead_bytes == found["cuda"]


def test_requests_hold_as_much_as_the_server_reads() -> None:
    """Of each layer and KV head, for as many requests as a step has rows, or as room is for."""
    from sgl_sparsekv.kernels.triton import load

    from sgl_sparsekv.backend.step_room import MOST_HELD_BYTES, with_held

    def held(shape: StepShape, layers: int = 32, **request: object) -> StepShape:
        options = ServerOptions(request=RequestOptions(**request))
        return with_held(shape, options, layers, 3)

    shape = shape_of(MODELS["Llama-3.1-8B"], 48)
    assert held(shape) is shape, "all select in every step"
    paged = held(shape, reselect_every=4)
    assert paged.held == HeldShape(48, 32, 3, 2048 // 16)
    size = 48 * 32 * 8 * (2048 // 16) * 8
    more = load().step_bytes(paged) - load().step_bytes(shape)
    assert size <= more <= size + 48 * (8 * shape.max_selected + 100) * 4
    assert held(shape, reselect_every=4, budget=0.5).held.units == 65_544 // 16 + 1
    shape = replace(shape, finest=1, max_selected=1 << 17)
    tokens = held(shape, reselect_every=2, budget=1 << 15)
    assert tokens.held == HeldShape(MOST_HELD_BYTES // (32 * 8 * 8 << 15), 32, 3, 1 << 15)
    assert held(shape, 10_000, reselect_every=2, budget=1.0).held.places == 1
