"""The byte model against figures worked out by hand."""

import math
from dataclasses import replace

import figures
import pytest
from figures import BUDGETS, K, agrees, cells

from bench.model import (
    GPUS,
    LLAMA_3_1_8B,
    Costs,
    Gpu,
    Workload,
    break_even,
    capacity,
    fa3_us,
    floors,
    max_selection_us,
    shared_floors,
    spare_us,
)

H200, LLAMA = GPUS["h200"], LLAMA_3_1_8B


def fa3(context: int, batch: int, budget: int, selection_us: float = 0.0) -> Costs:
    return Costs(selection_us, dense_us=fa3_us(context, batch), attend_us=fa3_us(budget, batch))


@pytest.mark.parametrize(("context", "batch"), figures.DENSE)
def test_dense_attention_and_step(context, batch):
    found = floors(H200, LLAMA, Workload(context, batch))
    attention, step = figures.DENSE[context, batch]
    agrees(found.dense_attention_us, attention)
    agrees(found.dense_step_us, step)


@pytest.mark.parametrize(("context", "batch"), figures.DENSE_LAYER)
def test_dense_attention_of_one_layer(context, batch):
    found = floors(H200, LLAMA, Workload(context, batch))
    agrees(found.dense_us, figures.DENSE_LAYER[context, batch])


@pytest.mark.parametrize(("context", "batch", "page"), figures.SPARSE)
def test_sparse_floor_and_gains(context, batch, page):
    row = cells(figures.SPARSE[context, batch, page])
    for budget, (us, attention, step) in zip(BUDGETS, row, strict=True):
        found = floors(H200, LLAMA, Workload(context, batch, page, budget))
        agrees(found.sparse_attention_us, us)
        agrees(found.attention_gain, attention)
        agrees(found.step_gain, step)


@pytest.mark.parametrize(("method", "page"), figures.METADATA_STEP)
def test_metadata_of_every_format(method, page):
    for context, us in zip((32 * K, 128 * K), figures.METADATA_STEP[method, page], strict=True):
        found = floors(H200, LLAMA, Workload(context, 1, page, method=method))
        agrees(found.layers * found.selection_us, us)


def test_weights_selected_kv_and_scores():
    found = floors(H200, LLAMA, Workload(32 * K))
    agrees(found.weights_us, "3491")
    for budget, us in figures.SELECTED_STEP.items():
        work = Workload(32 * K, budget=budget)
        agrees(LLAMA.layers * floors(H200, LLAMA, work).attend_us, us)
    for (context, page), us in figures.SCORE_LAYER.items():
        agrees(floors(H200, LLAMA, Workload(context, 1, page)).selection_us, us)
    slower = replace(H200, tb_per_s=1.79)
    agrees(floors(slower, LLAMA, Workload(32 * K, 1, 16)).selection_us, "4.7")


@pytest.mark.parametrize(("context", "batch", "budget"), figures.WITH_FA3)
def test_gains_with_measured_attention(context, batch, budget):
    row = cells(figures.WITH_FA3[context, batch, budget])
    for selection_us, (attention, step) in zip(figures.SELECTION_US, row, strict=True):
        costs = fa3(context, batch, budget, selection_us)
        found = floors(H200, LLAMA, Workload(context, batch, budget=budget), costs)
        agrees(found.attention_gain, attention)
        agrees(found.step_gain, step)


def test_what_choosing_may_cost():
    """Printed as whole microseconds that are safe, so rounded down; the last is 9.6, not 9."""
    dense, attend = fa3_us(32 * K, 1), fa3_us(2048, 1)
    agrees(attend, "12")
    bounds = [max_selection_us(dense, attend, gain) for gain in (1.0, 1.5, 2.0)]
    assert [math.floor(us) for us in bounds] == [31, 16, 9]
    for batch, us in ((1, "11"), (32, "19")):
        agrees(spare_us(floors(H200, LLAMA, Workload(32 * K, batch)), 0.1), us)


@pytest.mark.parametrize("batch", figures.PAYS_FROM)
def test_where_it_pays(batch):
    """10 microseconds and two launches of 2 at the low end, 15 and two of 3 at the high end."""
    low, high = figures.PAYS_FROM[batch]
    work = Workload(32 * K, batch)
    agrees(break_even(H200, LLAMA, work, 10, 2 * 2) / 1e3, low)
    if high:
        agrees(break_even(H200, LLAMA, work, 15, 2 * 3) / 1e3, high)


def test_shared_prefix():
    found = shared_floors(H200, LLAMA, Workload(128 * K, 32))
    agrees(found.cascade_us, "3995")
    agrees(found.sparse_us, "3995")
    agrees(found.shared_us, "2060")
    agrees(found.cascade_us / found.shared_us, "1.94")
    agrees(found.dense_us, "127850")
    agrees(found.metadata_layer_bytes / 1e6, "8.4")
    small = shared_floors(H200, LLAMA, Workload(128 * K, 32, 16))
    agrees(small.metadata_layer_bytes / 1e6, "33.6")
    assert found.fits_l2 and small.fits_l2
    agrees(128 * K * LLAMA.kv_bytes / 2**20, "512")


def test_capacity():
    agrees(128 * K * LLAMA.token_bytes / 1e9, "17.2")
    agrees(32 * K * LLAMA.token_bytes / 1e9, "4.3")
    assert 6 <= capacity(H200, LLAMA, 128 * K) <= 7
    agrees(capacity(H200, LLAMA, 32 * K), "27")


def test_other_weights_and_a_slower_memory():
    """Best gain of a step where attention costs nothing: 1 + dense attention / weights."""
    for context, share, cap in (
        *((32 * K, 1, "1.29"), (128 * K, 1, "2.14")),
        *((32 * K, 0.5, "1.57"), (32 * K, 0.25, "2.14")),
    ):
        model = replace(LLAMA, weight_bytes=share * LLAMA.weight_bytes)
        found = floors(H200, model, Workload(context))
        agrees(found.dense_step_us / found.weights_us, cap)
    memory = Gpu("8 channels of DDR5", 0.25, 512, None, "")
    for context, ms in ((32 * K, "17"), (128 * K, "69")):
        agrees(floors(memory, LLAMA, Workload(context)).dense_attention_us / 1e3, ms)
