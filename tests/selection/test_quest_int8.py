"""Bounds in 8 bits are bounds, whatever the keys, and hardly wider than those they stand for."""

import math

import pytest
import torch

from sgl_sparsekv.selection import load_method
from sgl_sparsekv.selection.quest import min_max
from sgl_sparsekv.selection.quest_int8 import (
    INVERSE,
    LEAST_EXPONENT,
    MOST,
    decoded,
    rounded_down,
    scales,
)

SUMMARY = load_method("quest_int8").summaries[0]
QUEST = load_method("quest").summaries[0]
DTYPES = (torch.bfloat16, torch.float16, torch.float32)


def make_keys(dtype: torch.dtype, size: float, units: int = 40, dim: int = 96) -> torch.Tensor:
    """Keys `[m, unit, H, D]`, with channels of very different size."""
    rng = torch.Generator().manual_seed(0)
    keys = torch.randn(units, 16, 2, dim, generator=rng)
    keys[..., ::7] *= 30
    return (size * keys).to(dtype)


@pytest.mark.parametrize("size", (1e-6, 1.0, 37.0, 1e4))
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_plane_is_rounded_outwards_by_less_than_a_step(dtype: torch.dtype, size: float) -> None:
    keys = make_keys(dtype, min(size, 300.0) if dtype is torch.float16 else size)
    planes = SUMMARY.summarise(keys)
    assert planes.dtype is torch.int8 and planes.shape[2:] == SUMMARY.shape(keys.shape[-1])
    found, want = decoded(planes, keys.shape[-1]), min_max(keys).double()
    step = decoded(planes, 0).new_tensor(0) + torch.ldexp(*planes[..., -16:-14].double().unbind(-1))
    assert (found[:, :, 0] <= want[:, :, 0]).all() and (found[:, :, 1] >= want[:, :, 1]).all()
    assert ((found - want).abs() < step[..., None]).all()
    largest = want.abs().amax(-1)
    assert (step >= largest / MOST).all() and (step <= largest / MOST * (1 + 2**-5)).all()


def test_what_needs_no_rounding_is_not_rounded() -> None:
    keys = torch.randint(-127, 128, (30, 16, 1, 64)).float()
    keys[:, 0, :, 0], keys[:, 1, :, 0] = 127, -127
    found = decoded(SUMMARY.summarise(keys * 0.5), 64)
    assert (found - min_max(keys * 0.5).double()).abs().max() <= 0.5


def test_a_scale_has_seven_bits_and_is_enough() -> None:
    largest = (1 + torch.rand(100_000)) * torch.exp2(torch.randint(-100, 120, (100_000,)).float())
    m, e = scales(largest)
    assert ((m >= 64) & (m <= MOST)).all()
    scale = torch.ldexp(m.double(), e)
    assert (scale * MOST >= largest.double()).all()
    assert (torch.ldexp(m.double() - 1, e) * MOST <= largest.double() * (1 + 2**-20)).all()


@pytest.mark.parametrize("value", (0.0, 1e-45, 3e-38, -3e-38))
def test_small_keys(value: float) -> None:
    found = decoded(SUMMARY.summarise(torch.full((1, 16, 1, 8), value)), 8)
    least = math.ldexp(64, LEAST_EXPONENT)
    assert (found[0, 0, 0] <= value).all() and (found[0, 0, 1] >= value).all()
    assert (found.abs() <= least).all()


@pytest.mark.parametrize("wrong", (math.nan, math.inf, -math.inf))
def test_a_key_that_is_no_number_ranks_its_unit_highest(wrong: float) -> None:
    keys = make_keys(torch.float32, 1.0, units=3)
    keys[1, 4, 0, 5] = wrong
    q = torch.randn(2, 4, 96)
    scores = SUMMARY.score(q, SUMMARY.summarise(keys).movedim(1, 0).float())
    assert scores[1].isfinite().all() and scores[0, :, ::2].isfinite().all()
    broken = scores[0, :, 1]
    assert (broken.isnan() | (broken == math.inf)).all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_score_is_a_bound_near_quests(dtype: torch.dtype) -> None:
    keys = make_keys(dtype, 1.0)
    q = torch.randn(2, 4, 96).double()
    wide = [
        summary.score(q, summary.summarise(keys).movedim(1, 0).double())
        for summary in (SUMMARY, QUEST)
    ]
    exact = torch.einsum("hgd,uthd->hgut", q, keys.double()).amax(-1)
    assert (wide[0] >= exact - 1e-9 * exact.abs()).all()
    assert (wide[0] >= wide[1] - 1e-9 * wide[1].abs()).all()
    assert ((wide[0] - wide[1]) <= 0.12 * wide[1].abs()).all()


def test_the_ceiling_is_above_what_a_unit_weighs() -> None:
    keys = make_keys(torch.bfloat16, 0.3)
    q = torch.randn(2, 4, 96).double() * 96**-0.5
    ceiling = SUMMARY.ceiling(q, SUMMARY.summarise(keys).movedim(1, 0), 16)
    weight = torch.einsum("hgd,uthd->hgut", q, keys.double()).logsumexp(-1)
    assert (ceiling >= weight).all()


def test_it_takes_nine_sixteenths_of_the_bytes() -> None:
    assert SUMMARY.nbytes(128, torch.bfloat16) * 16 == QUEST.nbytes(128, torch.bfloat16) * 9
    assert SUMMARY.shape(128) == (2, 144) and QUEST.shape(64) == (2, 64)


def test_codes_are_the_whole_numbers_below() -> None:
    """Of numbers on both sides of every multiple of a scale: no quotient is rounded across one."""
    m, n = torch.meshgrid(torch.arange(64, 128), torch.arange(-126, 127), indexing="ij")
    scale = torch.ldexp(m.float(), torch.tensor(-9))
    exact = n * scale
    for x in (exact, torch.nextafter(exact, exact - 1), torch.nextafter(exact, exact + 1)):
        code = rounded_down(x, scale)
        low, high = (c.double() * scale.double() for c in (code, code + 1))
        assert ((low <= x.double()) & (x.double() < high)).all()


def test_a_scale_is_the_least_that_is_enough() -> None:
    """Also where the quotient needs no rounding, and at the smallest exponent."""
    for e in (0, LEAST_EXPONENT):
        for wanted in range(65, 128):
            quotient = torch.tensor(math.ldexp(wanted, e))
            near = quotient / INVERSE
            around = (near, torch.nextafter(near, near * 2), torch.nextafter(near, near / 2))
            (largest, *_) = [x for x in around if x * INVERSE == quotient] or [None]
            if largest is not None:
                assert [int(x) for x in scales(largest)] == [wanted, e]
            m, exponent = scales(near * (1 - 2**-10))
            assert (int(m), int(exponent)) == (wanted, e)


@pytest.mark.parametrize("wrong", (math.nan, math.inf))
def test_a_plane_with_a_key_that_is_no_number_is_as_wide_as_can_be(wrong: float) -> None:
    """In every channel, and on the side that it is on."""
    keys = make_keys(torch.float32, 1.0, units=1)
    keys[0, 3, 1, 7] = wrong
    planes = SUMMARY.summarise(keys)
    high = planes[0, 1, 1]
    assert (high[:96] == MOST).all() and high[96:98].tolist() == [MOST, MOST]
    low = planes[0, 1, 0]
    if math.isnan(wrong):
        assert (low[:96] == -MOST).all() and low[96:98].tolist() == [MOST, MOST]
    else:
        assert (low[:96] > -MOST).any() and low[97] < MOST
    assert (planes[0, 0, :, 97] < 0).all(), "the other head's is as ever"
