"""Tokens weighed by blocks, all KV heads at once, as a CPU weighs them one head after the other."""

from typing import Any

import pytest
import torch

from sgl_sparsekv.config import RequestOptions
from sgl_sparsekv.selection import load_method
from sgl_sparsekv.selection.view import ViewMethod
from sgl_sparsekv.views import RequestView, weighing
from sgl_sparsekv.views.weighing import ListedKeys, Queries, weigh_heads

HEADS, GROUP, DIM, LENGTH, WINDOW = 3, 2, 16, 300, 20
METHODS = ("snapkv", "h2o", "kvcompress")


def scene(method: str, **options: Any) -> tuple[RequestView, ViewMethod, dict[str, torch.Tensor]]:
    """A request of 300 tokens whose last 24 queries were seen."""
    rng = torch.Generator().manual_seed(5)
    asked = {"budget": 64, "sink": 4, "window": WINDOW, "observation_window": 24, "pooling": 5}
    chosen = RequestOptions(method, unit_size=16, kept_map=True, **(asked | options))
    found = load_method(method)
    assert isinstance(found, ViewMethod)
    view = RequestView(found, chosen, LENGTH, 16)
    drawn = {
        "q": torch.randn(LENGTH, HEADS, GROUP, DIM, generator=rng) * 2,
        "keys": torch.randn(2 * LENGTH, HEADS, DIM, generator=rng),
        "slots": torch.randperm(2 * LENGTH, generator=rng)[:LENGTH],
    }
    return view, found, drawn


def by_blocks(
    method: ViewMethod, drawn: dict[str, torch.Tensor], positions: torch.Tensor, pooling: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Scores and mass of listed positions `[H, n]`."""
    at = torch.arange(LENGTH - 24, LENGTH)
    slots = drawn["slots"][positions.clamp(min=0).long()]
    mass = torch.zeros(positions.shape)
    scores = weigh_heads(
        method,
        Queries(drawn["q"][at], at, DIM**-0.5),
        ListedKeys(drawn["keys"], slots, positions),
        LENGTH - WINDOW,
        pooling,
        mass,
    )
    return scores, mass


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("block", [1 << 26, 1])
def test_a_prompt_is_weighed_as_on_a_cpu(
    method: str, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In one block, and in blocks of 24 tokens; sums are rounded in another order."""
    monkeypatch.setattr(weighing, "BLOCK_BYTES", block)
    view, found, drawn = scene(method)
    view.observe(0, drawn["q"], 0)
    view.weigh(0, drawn["keys"], drawn["slots"], DIM**-0.5)
    want = view._weighed[0]
    positions = torch.arange(LENGTH, dtype=torch.int32).expand(HEADS, -1)
    scores, mass = by_blocks(found, drawn, positions, 5)
    assert want.mass is not None
    torch.testing.assert_close(scores, want.scores, rtol=1e-5, atol=1e-8)
    torch.testing.assert_close(mass, want.mass, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("block", [1 << 26, 1])
def test_ragged_lists_are_weighed_head_by_head(
    method: str, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Lists of 150, 60 and 24 tokens; neighbours are those of the list, padding has no share."""
    monkeypatch.setattr(weighing, "BLOCK_BYTES", block)
    _, found, drawn = scene(method)
    rng = torch.Generator().manual_seed(6)
    newest = torch.arange(LENGTH - 22, LENGTH)
    positions = torch.full((HEADS, 150), -1, dtype=torch.int32)
    for head, count in enumerate((150, 60, 24)):
        old = torch.randperm(LENGTH - 22, generator=rng)[: count - 22].sort().values
        positions[head, :count] = torch.cat((old, newest)).int()
    scores, mass = by_blocks(found, drawn, positions, 5)
    for head, own in enumerate(positions):
        one = own[own >= 0][None]
        alone = {**drawn, "q": drawn["q"][:, head : head + 1],
                 "keys": drawn["keys"][:, head : head + 1]}  # fmt: skip
        expected, share = by_blocks(found, alone, one, 5)
        count = one.shape[1]
        torch.testing.assert_close(scores[head, :count], expected[0], rtol=1e-5, atol=1e-8)
        torch.testing.assert_close(mass[head, :count], share[0], rtol=1e-5, atol=1e-8)
        assert not scores[head, count:].any() and not mass[head, count:].any()


def test_a_query_that_sees_nothing_gives_nothing() -> None:
    """All that is listed is younger than the queries."""
    _, found, drawn = scene("snapkv")
    positions = torch.arange(LENGTH - 10, LENGTH, dtype=torch.int32).expand(HEADS, -1)
    slots = drawn["slots"][positions.long()]
    at = torch.arange(8)
    queries = Queries(drawn["q"][at], at, 1.0)
    scores = weigh_heads(found, queries, ListedKeys(drawn["keys"], slots, positions), LENGTH, 1)
    assert not scores.any()
