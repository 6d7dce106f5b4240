"""The certificate: what it says was read was read, whatever the keys."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch

from bench.quality.certificate import exact_mass
from bench.quality.dump import LayerDump
from bench.quality.methods import Runner, Variant, clustered, quantised, residual
from sgl_sparsekv.ops import load_ops
from sgl_sparsekv.segment_records import SegmentIndex
from sgl_sparsekv.selection import certificate
from sgl_sparsekv.selection.certificate import (
    ROUNDING,
    coded_ceilings,
    lse_of_read,
    mass_floor,
    outward,
    read_units,
)
from sgl_sparsekv.selection.mean_std import furthest, mean_and_std
from sgl_sparsekv.types import Candidates, Reduction, ScoreInputs, Selection

HEADS, GROUP, DIM, LENGTH, ROWS = 1, 8, 32, 600, 24
LENGTHS = np.linspace(330, LENGTH, ROWS).astype(np.int64)
BUDGETS = (112, 304)
BOUNDED = (
    Variant("quest", "quest"),
    Variant("quest_two_level", "quest_two_level"),
    Variant("mean_std", "mean_std"),
    clustered(256, 16),
    quantised(256, 4, 4),
    residual(256, 4),
)
KINDS = (torch.bfloat16, torch.float16, torch.float32)
Scene = tuple[torch.Tensor, torch.Tensor]
"""Queries `[rows, H, G, D]` and keys `[L, H, D]`."""


def noise(rng: torch.Generator) -> Scene:
    """No structure at all."""
    return draw(rng, ROWS, HEADS, GROUP, DIM), draw(rng, LENGTH, HEADS, DIM)


def trained(rng: torch.Generator) -> Scene:
    """As in language models: channels with a large offset, topics, a sink that queries look at."""
    offset = draw(rng, HEADS, DIM) * torch.where(torch.rand(HEADS, DIM, generator=rng) < 0.1, 40, 1)
    topics = draw(rng, 12, HEADS, DIM)[torch.randint(12, (LENGTH,), generator=rng)]
    keys = offset + 2 * topics + 0.5 * draw(rng, LENGTH, HEADS, DIM)
    wanted = keys[torch.randint(300, (ROWS,), generator=rng)][:, :, None] - offset[:, None]
    keys[0] += 3 * wanted.mean((0, 2))
    return wanted + draw(rng, ROWS, HEADS, GROUP, DIM), keys


def peaked(rng: torch.Generator) -> Scene:
    """Weights of a few keys alone, and logits in the hundreds."""
    q, keys = noise(rng)
    return 30 * q, keys


def flat(rng: torch.Generator) -> Scene:
    """Every key weighs the same, to within what float32 can tell."""
    q, keys = noise(rng)
    return 1e-4 * q, keys


def strays(rng: torch.Generator) -> Scene:
    """Single keys far from all others, anywhere."""
    q, keys = noise(rng)
    return q, keys * torch.where(torch.rand(LENGTH, 1, 1, generator=rng) < 0.02, 20, 1)


def alike(rng: torch.Generator) -> Scene:
    """One key, everywhere: bounds have no slack but that of rounding."""
    q, keys = noise(rng)
    return q, keys[:1].expand(LENGTH, -1, -1).clone()


SCENES: tuple[Callable[[torch.Generator], Scene], ...] = (
    *(noise, trained, peaked, flat, strays, alike),
)


def draw(rng: torch.Generator, *shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=rng)


def layer_of(scene: Scene, kind: torch.dtype) -> LayerDump:
    """The scene as a model in `kind` has it; a key never seen by a query may be anything."""
    q, keys = (part.to(kind) for part in scene)
    return LayerDump(0, q, keys, keys, keys, DIM**-0.5)


@pytest.mark.parametrize("variant", BOUNDED, ids=lambda variant: variant.name)
def test_no_more_is_certified_than_was_read(variant: Variant) -> None:
    """13,824 rows in all; the bound is sharp where logits do not differ."""
    ops, told = load_ops("cpu"), 0
    for nth, scene in enumerate(SCENES):
        layer = layer_of(scene(torch.Generator().manual_seed(nth)), KINDS[nth % len(KINDS)])
        runner = Runner(variant, layer, LENGTHS, ops)
        for budget in BUDGETS:
            plan = variant.plan(LENGTHS, budget)
            selection = runner.select(plan)
            bound = runner.certified(selection, plan)
            exact = exact_mass(runner, selection)
            assert bound is not None and bool((bound <= exact).all()), scene.__name__
            told += bound.numel()
            if scene is flat:
                assert bool((bound >= 0.98 * exact).all())
    assert told == 2 * len(SCENES) * ROWS * HEADS * GROUP == 2304


def test_whoever_reads_everything_has_a_mass_of_one() -> None:
    layer = layer_of(noise(torch.Generator().manual_seed(0)), torch.bfloat16)
    variant = BOUNDED[0]
    runner = Runner(variant, layer, LENGTHS, load_ops("cpu"))
    plan = variant.plan(LENGTHS, LENGTH + 100)
    assert bool((runner.certified(runner.select(plan), plan) == 1).all())


def test_what_is_not_a_number_certifies_nothing() -> None:
    """A key that was left out may have been infinite."""
    q, keys = noise(torch.Generator().manual_seed(0))
    keys[200] = torch.inf
    layer, variant = layer_of((q, keys), torch.bfloat16), BOUNDED[0]
    runner = Runner(variant, layer, LENGTHS, load_ops("cpu"))
    plan = variant.plan(LENGTHS, 112)
    chosen = runner.select(plan)
    left_out = replace(chosen, logical=chosen.logical.where(chosen.logical != 12, 11))
    assert bool((runner.certified(left_out, plan) == 0).all())


@pytest.mark.parametrize("method", ("streaming", "oracle", "shadowkv"))
def test_methods_without_a_bound_do_not_guess(method: str) -> None:
    layer = layer_of(noise(torch.Generator().manual_seed(0)), torch.bfloat16)
    variant = Variant(method, method)
    runner, plan = Runner(variant, layer, LENGTHS, load_ops("cpu")), variant.plan(LENGTHS, 112)
    assert runner.certified(runner.select(plan), plan) is None


def test_rounding_is_given_back_of_all_that_was_added_up() -> None:
    """And of the bound itself, whatever its sign."""
    bound, terms = torch.tensor([3.0, -3.0]).double(), torch.tensor([5.0, 7.0]).double()
    assert (outward(bound, terms) - bound).tolist() == [9 * ROUNDING, 11 * ROUNDING]


def test_a_unit_of_one_key_far_from_the_others_is_bounded_by_its_own_weight() -> None:
    """No unit of that mean and spread weighs more, so `furthest` has no slack but rounding's."""
    for kind, slack in ((torch.float32, 2e-3), (torch.bfloat16, 0.3)):
        for far, query in ((0.0, 1.0), (4.0, 1.0), (4.0, -1.0), (-9.0, 2.0)):
            keys = torch.full((16, 1, 1), 0.7)
            keys[3] += far
            q = torch.tensor([[[query]]]).double()
            bound = float(furthest(q, mean_and_std(keys[None].to(kind)).movedim(1, 0), 16))
            true = float((query * keys.to(kind).double()).logsumexp(0))
            assert true <= bound
            if query * far >= 0:
                assert bound <= true + slack


def inputs_of(
    q: torch.Tensor, keys: torch.Tensor, spans: list[tuple[int, int]], units: int
) -> ScoreInputs:
    """Of rows that share the first slots of a pool, in units of a token."""
    begin, end = (torch.tensor(part, dtype=torch.int32) for part in zip(*spans, strict=True))
    table = torch.arange(units, dtype=torch.int32).expand(len(spans), -1)
    lengths = torch.full_like(begin, units)
    return ScoreInputs(
        q,
        keys,
        {},
        None,
        Candidates(table, begin, end),
        lengths,
        lengths,
        0.5,
        Reduction.MEAN_SOFTMAX,
        1,
    )


def test_a_coded_token_may_lie_as_far_from_its_code_as_any_of_its_group() -> None:
    """Three records of 8 tokens, the last cut short, the second one missing."""
    rng, size, dim = torch.Generator().manual_seed(1), 8, 4
    keys, q = draw(rng, 20, 1, dim), draw(rng, 2, 1, 3, dim)
    codes = torch.randint(2, (2, 1, 2, size), generator=rng, dtype=torch.uint8)
    table = torch.tensor([[0, -1, 1], [-1, 0, -1]], dtype=torch.int32)
    index = SegmentIndex(codes, draw(rng, 2, 1, 2, 2, 2), table)
    found = coded_ceilings(inputs_of(q, keys, [(2, 20), (4, 18)], 20), index)
    for row, (begin, end) in enumerate([(2, 20), (4, 18)]):
        scaled = 0.5 * q[row, 0].double()
        for token in range(20):
            nth, place = divmod(token, size)
            key, record = keys[token, 0].double(), int(table[row, nth])
            stray = torch.zeros(2).double()
            if record >= 0:
                members = keys[nth * size : min((nth + 1) * size, end), 0].double()
                coded = index.decoded(record)[0, : len(members)].double()
                key = coded[place] if place < len(coded) else key
                errors = (members - coded).unflatten(-1, (2, 2)).norm(dim=-1)
                for part in range(2):
                    group = codes[record, 0, part, : len(members)]
                    same = group == codes[record, 0, part, place]
                    stray[part] = errors[same, part].max() if same.any() else 0
            lengths = scaled.unflatten(-1, (2, 2)).norm(dim=-1)
            terms = scaled.abs() @ key.abs() + lengths @ stray
            expected = outward(scaled @ key + lengths @ stray, terms)
            if not begin <= token < end:
                expected = torch.full_like(expected, -torch.inf)
            torch.testing.assert_close(found[row, 0, :, token], expected, rtol=0, atol=1e-12)


def test_rows_that_read_all_some_or_what_has_no_bound_are_told_apart() -> None:
    """In one step: 1, a share, 0."""
    rng = torch.Generator().manual_seed(2)
    inputs = inputs_of(draw(rng, 3, 1, 2, 4), draw(rng, 4, 1, 4), [(0, 4)] * 3, 4)
    logical = torch.tensor([[[0, 1, 2, 3]], [[0, 2, 3, -1]], [[0, 2, 3, -1]]], dtype=torch.int32)
    counts = torch.tensor([[4], [3], [3]], dtype=torch.int32)
    selection = Selection(logical, logical.clamp(min=0), counts)
    ceiling = (0.5 * inputs.q.double() @ inputs.keys[:, 0].double().T)[..., :]
    ceiling[2] = torch.nan
    tails = torch.ones(3, dtype=torch.int32)
    floor = mass_floor(inputs, selection, tails, ceiling)
    shares = (0.5 * inputs.q[1].double() @ inputs.keys[:, 0].double().T).softmax(-1)
    assert floor[0].tolist() == [[1, 1]] and floor[2].tolist() == [[0, 0]]
    torch.testing.assert_close(floor[1], 1 - shares[..., 1], rtol=0, atol=1e-7)
    assert bool((floor[1] < 1 - shares[..., 1]).all())
    read = read_units(selection, 4)[:, 0].tolist()
    assert read == [[True] * 4, [True, False, True, True], [True, False, True, True]]
    sums = lse_of_read(inputs, selection, tails)
    logits = 0.5 * inputs.q[0].double() @ inputs.keys[:, 0].double().T
    terms = (0.5 * inputs.q[0].abs().double() @ inputs.keys[:, 0].abs().double().T).amax(-1)
    expected = -outward(-logits.logsumexp(-1), terms)
    torch.testing.assert_close(sums[0], expected, rtol=0, atol=1e-13)


def test_bounds_lie_where_the_queries_do() -> None:
    """On any device."""
    nowhere = inputs_of(torch.zeros(2, 1, 3, 4, device="meta"), torch.zeros(9, 1, 4), [(0, 1)], 9)
    assert certificate._nothing(nowhere).device.type == "meta"
    empty = torch.zeros(2, 1, 3, dtype=torch.int32, device="meta")
    assert read_units(Selection(empty, empty, empty[..., 0]), 9).device.type == "meta"
