"""The predictions against figures worked out by hand from the compiled kernels."""

from dataclasses import replace

import pytest

from bench.model import KERNELS, LLAMA_3_1_8B, READINGS, Workload, predict
from bench.model.kernels import FIRST
from bench.report.expected import expected_part
from bench.targets import NAMES, TARGETS

K = 1024
HAND = {
    ("h200", 32, 1, 64): (4.5, 8.5, 9.3, 39),
    ("h200", 32, 1, 16): (7.4, 12, 9.3, 39),
    ("h200", 32, 8, 64): (11.4, 8.5, 24.5, 282),
    ("h200", 32, 8, 16): (34.7, 12, 24.5, 282),
    ("h200", 64, 8, 64): (16.5, 8.5, 24.5, 560),
    ("h200", 128, 1, 16): (15, 33, 9.3, 143),
    ("h200", 128, 8, 64): (26, 12, 24.5, 1116),
    ("h200", 128, 8, 16): (95, 33, 24.5, 1116),
}
"""GPU, context, batch, unit -> score with its idle programs, select, attend, dense."""
SUMS = {
    (32, 1, 64): 22, (32, 8, 16): 88, (64, 8, 64): 62, (128, 1, 64): 29, (128, 8, 64): 80,
    (128, 8, 16): 197,
}  # fmt: skip
"""All three on an H100."""


@pytest.mark.parametrize("at", HAND)
def test_a_layer_of_the_kernels_as_first_written(at: tuple[str, int, int, int]) -> None:
    gpu, context, batch, unit = at
    found = predict(gpu, FIRST, Workload(context * K, batch, unit))
    assert (found.score, found.select, found.attend, found.dense) == pytest.approx(
        HAND[at], rel=0.03
    )


@pytest.mark.parametrize("at", SUMS)
def test_an_h100_reads_slower(at: tuple[int, int, int]) -> None:
    context, batch, unit = at
    found = predict("h100", FIRST, Workload(context * K, batch, unit))
    assert found.sparse == pytest.approx(SUMS[at], rel=0.05)


def test_idle_programs_are_those_of_a_server_alone() -> None:
    """In buffers as wide as the batch there are none; kernels that loop have none anywhere."""
    work = Workload(16 * K, 64, 16)
    exact = predict("h200", FIRST, work, served=work.context - 4)
    assert predict("h200", FIRST, work).score - exact.score == pytest.approx(80, rel=0.05)
    none = replace(FIRST, idle_ns=0.0)
    assert predict("h200", none, work).score == exact.score


def test_dense_layers_by_our_own_attend() -> None:
    """By hand, at 128k x 8: 4.29 GB at 88 % of 4.2 TB/s and 3.5 us, beside 92 % and 4 us."""
    found = predict("h200", KERNELS[-1], Workload(128 * K, 8))
    assert (found.own_dense, found.dense) == pytest.approx((1165.6, 1115.6), rel=1e-3)
    lines = expected_part((64, 16)).rpartition("### Dense layers")[2].splitlines()
    cells = {tuple(line.split(" | ")[:2]): line.split(" | ")[4] for line in lines if "k |" in line}
    assert cells["| 128k", "8"] == "92.0 us, 1.2% |", "2 * 50.0 - 8, of a step of some 7,700 us"
    assert cells["| 32k", "1"].startswith("-5.84 us"), "one request's page table costs more"


def test_a_step_has_as_many_dense_layers_as_a_server_by_default() -> None:
    found = predict("h200", FIRST, Workload(32 * K, 8))
    weights = LLAMA_3_1_8B.weight_bytes / (0.9 * 4.2e6)
    assert found.step == pytest.approx(weights + 32 * found.sparse)


def test_every_row_of_every_target_has_a_prediction_and_the_restructured_ones_are_faster() -> None:
    assert set(READINGS) == set(NAMES)
    for target in TARGETS.values():
        for context, batch in target.shapes:
            for unit in (64, 16):
                work, shared = Workload(context, batch, unit), target.name == "shared_prefix"
                first, then = (
                    READINGS[target.name](predict("h200", kernels, work, shared))[0]
                    for kernels in KERNELS
                )
                assert target.floor("h200", work)[0] < then < first
