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
