"""What a response tells of a view: which tokens each KV head kept, and what attention they held."""

from typing import Any

import pytest
import torch

from sgl_sparsekv.config import RequestOptions
from sgl_sparsekv.views import RequestView
from sgl_sparsekv.views.stretches import kept_in, stretches_of

from .paper import BLOCK, HEADS, METHODS, Attention, fed, kept_by, options_of

PROMPT = 150


def view_of(options: RequestOptions, found: Attention, tokens: int = PROMPT) -> RequestView:
    view = RequestView.of(options, PROMPT, BLOCK)
    assert view is not None
    fed(view, found, 0, PROMPT)
    for now in range(PROMPT, tokens):
        fed(view, found, now, now + 1)
    return view


@pytest.mark.parametrize(
    ("positions", "total", "lengths"),
    [
        ([], 5, [5]),
        ([0], 1, [0, 1]),
        ([0, 1, 2], 3, [0, 3]),
        ([0, 1, 4], 6, [0, 2, 2, 1, 1]),
        ([2, 5], 6, [2, 1, 2, 1]),
    ],
)
def test_stretches_are_left_out_and_kept_by_turns(
    positions: list[int], total: int, lengths: list[int]
) -> None:
    assert stretches_of(torch.tensor(positions, dtype=torch.int32), total) == lengths
    assert kept_in(lengths).tolist() == positions


@pytest.mark.parametrize("method", METHODS)
def test_the_map_is_what_each_head_kept(method: str) -> None:
    """Also where heads keep unlike numbers; it has at most two numbers for a kept token and one."""
    view = view_of(options_of(method, kept_map=True), Attention.random(PROMPT, seed=5))
    told, kept = view.told(), kept_by(view)
    assert told["made"] == PROMPT and told["since"] == 0
    for (number, heads), own in zip(told["map"].items(), kept, strict=True):
        assert [set(kept_in(head).tolist()) for head in heads] == own
        assert told["kept"][number] == [len(one) for one in own]
        assert all(sum(head) == PROMPT for head in heads)
        assert all(len(head) <= 2 * len(one) + 1 for head, one in zip(heads, own, strict=True))


@pytest.mark.parametrize("method", METHODS)
def test_the_mass_is_the_share_of_attention_that_the_kept_tokens_held(method: str) -> None:
    """Of the last queries, in float64; a mean over them and over the query heads of a KV head."""
    found = Attention.random(PROMPT, seed=6)
    view = view_of(options_of(method, kept_map=True), found)
    everything = list(range(PROMPT))
    for layer, own in zip(found.layers, kept_by(view), strict=True):
        for head in range(HEADS):
            queries = range(PROMPT - 8, PROMPT)
            shares = torch.stack([found.shares(layer, head, at, everything) for at in queries])
            wanted = float(shares[..., sorted(own[head])].sum(-1).mean())
            assert view.told()["mass"][str(layer)][head] == pytest.approx(wanted, abs=2e-6)


def test_a_renewed_view_tells_of_its_last_making_and_what_came_since() -> None:
    found = Attention.random(PROMPT + 20, seed=7)
    view = view_of(options_of("adakv", kept_map=True), found, PROMPT + 17)
    told, kept = view.told(), kept_by(view)
    assert (told["made"], told["since"]) == (PROMPT + 12, 5)
    assert [set(kept_in(head).tolist()) for head in told["map"]["1"]] == kept[1]
    assert all(0 < share <= 1.000001 for heads in told["mass"].values() for share in heads)


def test_a_view_that_was_never_made_tells_that_all_came_since() -> None:
    view = view_of(options_of("snapkv", kept_map=True, budget=512), Attention.random(PROMPT, 8))
    assert view.told() == {"made": 0, "since": PROMPT, "kept": {}, "mass": {}, "map": {}}


@pytest.mark.parametrize("method", METHODS)
def test_asking_changes_nothing_that_is_kept(method: str) -> None:
    found = Attention.random(PROMPT + 30, seed=9)

    def kept(**asked: Any) -> tuple[Any, ...]:
        view = view_of(options_of(method, **asked), found, PROMPT + 30)
        lists = [own.positions.tolist() for own in view.layers.values()]
        return lists, [own.counts.tolist() for own in view.layers.values()]

    assert kept(kept_map=True) == kept()
    plain = view_of(options_of(method), found).told()
    assert plain["mass"] is None and plain["map"] is None
