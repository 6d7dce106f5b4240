"""R5: Quest's bound holds for every key; mean and deviation are what they say (float64 reference).

Keys and queries are drawn with the values that break careless code: both zeros, denormals, the
largest finite numbers, infinities, equal keys.
"""

import math

import pytest
import torch
from helpers.soak import Size
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sgl_sparsekv.selection.mean_std import SPREAD, MeanStd, mean_and_std
from sgl_sparsekv.selection.quest import Quest, min_max, upper_bound

CASES = (750, 5000)
"""In `make test`, and in soak."""
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
SPECIAL = (0.0, -0.0, 5e-8, -5e-8, 1e-40, -1e-40, 3e-39, 1.0, -1.0, 6e4, -6e4)
SLACK = 1e-5
"""Of the sum of |q_d k_d|: float32 rounds where float64 does not."""
seen = {"cases": 0, "worst": 0.0}


def numbers(
    shape: tuple[int, ...], scale: float, special: list[float], generator: torch.Generator
) -> torch.Tensor:
    """Gaussian numbers of some scale, a third of them replaced by special ones if there are any."""
    values = torch.randn(shape, generator=generator) * scale
    if special:
        pick = torch.randint(3 * len(special), shape, generator=generator)
        for i, value in enumerate(special):
            values[pick == i] = value
    return values


@given(
    number=st.integers(0, 2**32 - 1),
    shape=st.sampled_from([(1, 8), (3, 1), (4, 64), (16, 64), (16, 80)]),
    scale=st.sampled_from((1e-6, 1.0, 30.0, 1e3)),
    special=st.lists(st.sampled_from(SPECIAL), max_size=3),
    dtype=st.sampled_from(DTYPES),
)
def check_bounds(
    number: int, shape: tuple[int, int], scale: float, special: list[float], dtype: torch.dtype
) -> None:
    """Upper bound >= q.k, its mirror image <= q.k, for 2 units, 2 heads and 3 queries."""
    tokens, dim = shape
    generator = torch.Generator().manual_seed(number)
    keys = numbers((2, tokens, 2, dim), scale, special, generator).to(dtype)
    q = numbers((2, 3, dim), scale, special, generator).to(dtype)
    planes = min_max(keys)
    ordered = keys.sort(1).values
    assert torch.equal(planes, torch.stack((ordered[:, 0], ordered[:, -1]), 2)), "keys' own values"
    per_head = planes.movedim(1, 0).float()
    upper = upper_bound(q.float(), per_head).double()
    lower = -upper_bound(-q.float(), per_head).double()
    products = torch.einsum("hgd,uthd->hgutd", q.double(), keys.double())
    dots, sizes = products.sum(-1), products.abs().sum(-1)
    slack = SLACK * sizes + 1e-37 * dim
    seen["cases"] += 1
    excess = (dots - upper[..., None]) / sizes.clamp(min=1e-30)
    seen["worst"] = max(seen["worst"], float(excess.amax()))
    assert bool((upper[..., None] >= dots - slack).all())
    assert bool((lower[..., None] <= dots + slack).all())


def test_quest_bound_is_never_below_a_product(size: Size) -> None:
    """R5: hundreds or thousands of cases over all element types."""
    cases = size(*CASES)
    settings(
        max_examples=cases, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck)
    )(check_bounds)()
    print(f"R5: {seen['cases']} cases, 0 violations, worst excess {seen['worst']:.1e} of sum|qk|")
    assert seen["cases"] >= cases


def test_bound_of_one_key_is_its_product() -> None:
    """A unit of equal keys has no slack: the bound is the product."""
    key, q = torch.randn(2, 8), torch.randn(2, 3, 8)
    planes = min_max(key[None, None].expand(1, 16, 2, 8)).movedim(1, 0)
    torch.testing.assert_close(upper_bound(q, planes)[..., 0], torch.einsum("hgd,hd->hg", q, key))


def test_negative_zero_is_a_zero() -> None:
    """Bounds built from either zero are the same number."""
    zeros = torch.tensor([0.0, -0.0]).view(1, 2, 1, 1)
    planes = min_max(zeros).movedim(1, 0)
    q = torch.tensor([[[1.0], [-1.0], [0.0]]])
    assert torch.equal(upper_bound(q, planes), torch.zeros(1, 3, 1))


@pytest.mark.parametrize("sign", (1.0, -1.0))
def test_bound_of_infinite_keys_is_not_below_them(sign: float) -> None:
    """Float16 keys that overflowed: the bound is infinite where a product is, or not a number."""
    keys = torch.randn(1, 16, 1, 8)
    keys[0, 3, 0, 2] = sign * torch.inf
    q = torch.randn(1, 4, 8)
    bound = upper_bound(q, min_max(keys).movedim(1, 0))[..., 0]
    best = torch.einsum("hgd,uthd->hgut", q, keys).amax(-1)[..., 0]
    assert bool(((bound >= best) | bound.isnan()).all())


@pytest.mark.parametrize("dtype", DTYPES)
def test_mean_and_deviation_are_within_their_ulps(dtype: torch.dtype) -> None:
    """Stored statistics differ from float64 ones by no more than `PageSummary.ulps` allows."""
    keys = torch.randn(64, 16, 2, 32).mul(4).add(torch.randn(64, 1, 2, 32) * 8).to(dtype)
    stored = mean_and_std(keys).double()
    wide = keys.double()
    exact = torch.stack((wide.mean(1), wide.std(1, correction=0)), dim=-2)
    allowed = exact.abs().amax(-1, keepdim=True) * MeanStd.summary.ulps * torch.finfo(dtype).eps
    assert bool(((stored - exact).abs() <= allowed).all())


def test_deviation_of_equal_keys_is_zero() -> None:
    """No cancellation: the deviation is computed about the mean."""
    keys = torch.full((1, 16, 1, 4), 1000.0)
    assert torch.equal(mean_and_std(keys)[0, 0], torch.tensor([[1000.0] * 4, [0.0] * 4]))


def test_mean_std_estimates_the_expected_maximum() -> None:
    """For independent normal keys the estimate exceeds the mean best product, by a few percent."""
    keys, q = torch.randn(4000, 16, 1, 32), torch.randn(1, 1, 32)
    planes = mean_and_std(keys).movedim(1, 0)
    estimate = MeanStd.summary.score(q, planes)[0, 0]
    best = torch.einsum("gd,uthd->ut", q[0], keys).amax(-1)
    ratio = float(estimate.mean() / best.mean())
    print(f"mean_std estimate over mean best product: {ratio:.2f}")
    assert 1.0 < ratio < 1.5
    assert math.isclose(SPREAD, 2.3548, rel_tol=1e-4)


def test_quest_bound_saturates_and_mean_std_does_not() -> None:
    """On units of independent keys the estimate follows the best product closer than the bound."""
    keys, q = torch.randn(500, 16, 1, 64), torch.randn(1, 1, 64)
    best = torch.einsum("gd,uthd->ut", q[0], keys).amax(-1)
    gaps = {}
    for method in (Quest, MeanStd):
        planes = method.summary.summarise(keys).movedim(1, 0)
        gaps[method.name] = float((method.summary.score(q, planes)[0, 0] - best).abs().mean())
    assert gaps["mean_std"] < gaps["quest"] / 2
