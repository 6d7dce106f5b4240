"""A request's view made, renewed and packed, held against plain sums of its attention."""

from dataclasses import replace

import pytest
import torch

from sgl_sparsekv.config import RequestOptions
from sgl_sparsekv.views import LayerView, PackedRow, RequestView

HEADS, GROUP, DIM, MADE, LENGTH, PAGE = 2, 3, 8, 100, 106, 16
SCALE = DIM**-0.5
OPTIONS = RequestOptions(
    method="snapkv", budget=48, sink=2, window=6, dense_layers=0, unit_size=16, pooling=3,
    observation_window=4, renew_every=6, kept_map=True,
)  # fmt: skip
METHODS = ("snapkv", "h2o", "kvcompress")
RNG = torch.Generator().manual_seed(3)
Q = torch.randn(LENGTH, HEADS, GROUP, DIM, generator=RNG) * 2
KEYS = torch.randn(2 * LENGTH, HEADS, DIM, generator=RNG)
SLOTS = torch.randperm(2 * LENGTH, generator=RNG)[:LENGTH]


def made(method: str, **options: object) -> RequestView:
    """The view of 100 tokens, layer 5 alone."""
    view = RequestView.of(replace(OPTIONS, method=method, **options), MADE, PAGE)  # type: ignore[arg-type]
    assert view is not None
    view.observe(5, Q[:MADE], 0)
    view.weigh(5, KEYS, SLOTS[:MADE], SCALE)
    view.settle([5])
    return view


def renew(view: RequestView, keys: torch.Tensor = KEYS) -> LayerView:
    """The same six tokens later, more than a window."""
    for at in range(MADE, LENGTH):
        view.observe(5, Q[at : at + 1], at)
    view.weigh(5, keys, SLOTS, SCALE)
    view.settle([5])
    return view.layers[5]


def shares(head: int, positions: list[int], queries: range) -> torch.Tensor:
    """Softmax `[n, G, T]` of a KV head's queries over listed tokens."""
    at, tokens = torch.tensor(queries), torch.tensor(positions)
    logits = torch.einsum("ngd,td->ngt", Q[at, head], KEYS[SLOTS[tokens], head]) * SCALE
    logits.masked_fill_((tokens > at[:, None])[:, None], -torch.inf)
    return logits.softmax(-1)


def kept(view: LayerView, head: int) -> list[int]:
    found: list[int] = view.positions[head, : int(view.counts[head])].tolist()
    return found


def test_a_share_of_the_context_is_due_as_so_many_tokens_are() -> None:
    for budget in (60, 0.6):
        view = RequestView.of(replace(OPTIONS, budget=budget), MADE, PAGE)
        assert view is not None and not view.is_due(MADE)
        view.observe(5, Q[:MADE], 0)
        assert view.is_due(MADE)
    whole = RequestView.of(replace(OPTIONS, budget=1.0), MADE, PAGE)
    assert whole is not None
    whole.observe(5, Q[:MADE], 0)
    assert not whole.is_due(MADE), "all of it is within the budget"


@pytest.mark.parametrize("method", METHODS)
def test_how_much_of_its_attention_a_view_kept_is_told(method: str) -> None:
    """Of the last queries, over all that they could attend to."""
    view = made(method)
    told = view.told()
    assert told["made"] == MADE and told["since"] == 0
    layer = view.layers[5]
    assert told["kept"] == {"5": layer.counts.tolist()}
    window = OPTIONS.observation_window
    for head, mass in enumerate(told["mass"]["5"]):
        own = shares(head, list(range(MADE)), range(MADE - window, MADE)).mean((0, 1))
        assert (
            mass == round(mass, 6) == pytest.approx(float(own[kept(layer, head)].sum()), abs=2e-6)
        )
        assert mass < 1
    assert made(method, kept_map=False).told()["mass"] is None


@pytest.mark.parametrize("window", (4, 8))
def test_sums_go_on_where_a_method_has_them_and_begin_anew_where_not(window: int) -> None:
    """`h2o` adds the queries since its view was made, each for itself and not spread, and none
    before, though its window is longer."""
    view = made("h2o", observation_window=window)
    before = view.layers[5]
    assert before.scores is not None
    listed = [kept(before, head) + list(range(MADE, LENGTH)) for head in range(HEADS)]
    sums = [before.scores[head, : before.counts[head]].clone() for head in range(HEADS)]
    after = renew(view)
    assert after.scores is not None and after.made == LENGTH
    for head in range(HEADS):
        total = shares(head, listed[head], range(MADE, LENGTH)).sum(0).mean(0)
        total[: len(sums[head])] += sums[head]
        expected = [total[listed[head].index(position)] for position in kept(after, head)]
        found = after.scores[head, : after.counts[head]]
        torch.testing.assert_close(found, torch.stack(expected))
    other = renew(made("snapkv"))
    assert other.scores is None


@pytest.mark.parametrize("method", METHODS)
def test_a_packed_row_is_renewed_as_a_whole_one(method: str) -> None:
    whole, view = made(method), made(method)
    layer = view.layers[5]
    begin, end = PAGE, MADE // PAGE * PAGE
    inside = [[p for p in kept(layer, head) if begin <= p < end] for head in range(HEADS)]
    assert view.width(begin, end) == max(map(len, inside)) > 0
    sources = layer.sources(begin, end)
    keys, places = KEYS.clone(), slice(begin, begin + len(sources))
    keys[SLOTS[places]] = KEYS[SLOTS[sources], torch.arange(HEADS)]
    keys[SLOTS[places.stop : end]] = torch.nan
    packed = PackedRow(begin, places.stop, end)
    view.pack(packed)
    assert view.packed is packed
    listed, _ = layer.listed(MADE)
    lie = layer.lying(listed)
    for head in range(HEADS):
        own = slice(int(layer.counts[head]))
        moved = keys[SLOTS[lie[head, own].long()], head]
        assert torch.equal(moved, KEYS[SLOTS[listed[head, own].long()], head])
    expected, found = renew(whole), renew(view, keys)
    assert expected.counts.tolist() == found.counts.tolist()
    assert expected.places is None and found.places is not None
    for head in range(HEADS):
        assert kept(expected, head) == kept(found, head)
        own = found.where[head, : int(found.counts[head])].long()
        assert torch.equal(
            keys[SLOTS[own], head], KEYS[SLOTS[torch.tensor(kept(found, head))], head]
        )
    if expected.scores is not None and found.scores is not None:
        assert torch.equal(expected.scores, found.scores)
    assert whole.told() == view.told()


def test_a_share_of_the_context_is_divided() -> None:
    """Of what there is when the view is made."""
    counts = made("snapkv", budget=0.5).layers[5].counts
    assert counts.tolist() == [MADE // 2] * HEADS


def test_a_row_that_is_given_back_is_read_at_its_positions_again() -> None:
    """What a step weighed of the packed row is settled so, too."""
    view = made("snapkv")
    view.pack(PackedRow(0, 64, 96))
    assert view.layers[5].places is not None
    for at in range(MADE, LENGTH):
        view.observe(5, Q[at : at + 1], at)
    view.weigh(5, KEYS, SLOTS, SCALE)
    view.unpack()
    assert view.packed is None and view.layers[5].places is None
    view.settle([5])
    assert view.made == LENGTH and view.layers[5].places is None


def test_what_a_broken_step_weighed_is_dropped() -> None:
    """A layer that was observed was not weighed."""
    view = made("snapkv")
    before = view.layers[5]
    view.observe(5, Q[MADE : MADE + 1], MADE)
    view.observe(6, Q[MADE : MADE + 1], MADE)
    view.weigh(5, KEYS, SLOTS[: MADE + 1], SCALE)
    view.settle([5, 6])
    assert view.made == MADE and view.layers == {5: before}
    view.settle([5, 6])
    assert view.layers == {5: before}
