"""What share of its attention a row has read, as graphs that measure tell it."""

from dataclasses import replace

import pytest
import torch
from cases import allowed_error, attention
from helpers.soak import Size
from triton_kit import DEVICE, SHAPES
from triton_scene import Request, Scene, Step, make_scene

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning:triton")
MEASURED = range(3, 5)
"""Numbers of the layers of a rank."""
UNTOUCHED = -7.0


def begun(scene: Scene, sampled: list[int]) -> Step:
    """A step that measures some of its rows, of which every layer's masses are unknown."""
    step = Step.of(replace(scene, shape=replace(scene.shape, measured=MEASURED)))
    step.fused.buffers.masses.fill_(UNTOUCHED)
    asked = torch.zeros(len(scene.requests), dtype=torch.int32, device=DEVICE)
    asked[sampled] = 1
    step.fused.mark(asked)
    step.begin()
    return step


def sums(q: torch.Tensor, keys: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-sum-exp `[G]` over keys `[L, D]` in float64, and how far it may be missed."""
    exact, low = (
        attention(q.to(wide), keys.to(wide), keys.to(wide), q.shape[-1] ** -0.5)[1]
        for wide in (torch.float64, torch.float32)
    )
    return exact, allowed_error(exact, low, torch.float32) + 1e-6


def check_masses(step: Step, row: int, masses: torch.Tensor) -> None:
    """Of one row `[H, G]`, against the softmax of all its keys, over those it read."""
    batch, own = step.scene.batch, step.scene.own_units(row)
    slots, unit = batch.slots(row), torch.arange(own.unit_size)
    lists = step.lists(row, int(step.scene.plan().counts[row])).long()
    for head, units in enumerate(lists):
        tokens = (units[:, None] * own.unit_size + unit).reshape(-1)
        read = slots[tokens[tokens < batch.lengths[row]]]
        q, keys = batch.q[row, head], batch.keys[:, head]
        part, part_band = sums(q, keys[read])
        every, band = sums(q, keys[slots])
        exact = (part - every).exp()
        assert ((masses[head].double() - exact).abs() <= exact * (part_band + band)).all()
        assert exact.min() > 0 and exact.max() < 1, "nothing to find"


@pytest.mark.parametrize(("lengths", "heads", "group", "dim", "unit", "dtype"), SHAPES)
def test_masses_are_those_of_a_softmax_over_everything(
    lengths: list[int], heads: int, group: int, dim: int, unit: int, dtype: torch.dtype, size: Size
) -> None:
    """Of rows that are measured and select, of no others, and as often as it is asked for."""
    lengths = [n if n < 1000 else size(577, n) for n in lengths]
    formulas = ("position", "min_max", "exact")
    requests = [Request(n, formulas[i % 3], 3 * unit, 5, 9) for i, n in enumerate(lengths)]
    scene = make_scene(requests, heads, group, dim, dtype, unit)
    sampled = [i for i, dense in enumerate(scene.plan().dense) if not dense and i % 7 != 6]
    step = begun(scene, sampled)
    step.decode(3)
    masses = step.measure(3)
    for row in range(len(requests)):
        if row in sampled:
            check_masses(step, row, masses[row])
        else:
            assert (masses[row] == UNTOUCHED).all()
    assert torch.equal(step.measure(3), masses), "whoever came last left its tickets"
    assert not step.fused.buffers.tickets.any()


def test_each_layer_has_masses_of_its_own() -> None:
    """None where a row reads everything by its number of dense layers."""
    requests = [
        Request(300, "position", 96), Request(233, "position", 96, dense_layers=4),
        Request(190, "position", 96, dense_layers=5),
    ]  # fmt: skip
    step, others = begun(make_scene(requests, heads=1), [0, 1, 2]), []
    for layer, measured in ((4, (0, 1)), (3, (0,))):
        step.decode(layer)
        masses = step.measure(layer)
        for row in range(3):
            if row in measured:
                check_masses(step, row, masses[row])
            else:
                assert (masses[row] == UNTOUCHED).all()
        others.append((layer, masses))
    for layer, masses in others:
        nth = layer - MEASURED.start
        assert torch.equal(step.fused.buffers.masses[:, nth].cpu(), masses)


def test_masses_of_rows_that_choose_chunks_and_tokens() -> None:
    """A row's tokens are counted in its own units; alone it has the same share to the bit."""
    requests = [
        Request(317, "position", 40, 0, 3, finer=4), Request(233, "exact", 96),
        Request(150, "position", 48, 8, 8, finer=1),
    ]  # fmt: skip
    step = begun(make_scene(requests, heads=1, dim=80), [0, 1, 2])
    step.decode(4)
    masses = step.measure(4)
    for row in range(3):
        check_masses(step, row, masses[row])
    for row in range(3):
        step.begin([row])
        step.decode(4, [row])
        assert torch.equal(step.measure(4, [row])[0], masses[row])


def test_a_row_that_read_everything_covers_no_more_than_that() -> None:
    """Sums in another order may come out above 1."""
    scene = make_scene([Request(n, "nothing") for n in (1, 130, 400, 401)], heads=1)
    step = begun(scene, [0, 1, 2, 3])
    step.decode(3)
    masses = step.measure(3)
    assert (masses <= 1).all() and (masses > 1 - 1e-5).all()


def test_attention_that_is_not_a_number_covers_none() -> None:
    """A key that nobody chose is enough; it must not pass for everything."""
    scene = make_scene([Request(300, "position", 96), Request(300, "position", 96)], heads=1)
    scene.batch.keys[scene.batch.slots(0)[100]] = torch.nan
    step = begun(scene, [0, 1])
    assert step.decode(3).isfinite().all()
    masses = step.measure(3)
    assert masses[0].isnan().all() and (masses[1] < 1).all()
