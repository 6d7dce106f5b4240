"""R7 and R8 at the level of one op: what is selected, whoever else is in the batch."""

import pytest
import torch
from helpers.cold import best_units
from helpers.rows import Rows, make_rows

from sgl_sparsekv.ops import load_ops
from sgl_sparsekv.selection import load_method
from sgl_sparsekv.types import Candidates, Reduction, ScoreInputs

SHAPES = 2000
OPS = load_ops("reference")
RANKING = ("mean_std", "oracle", "quest", "streaming")


def score(rows: Rows, method: str, reduction: Reduction = Reduction.MAX_SOFTMAX) -> torch.Tensor:
    """Scores `[rows, H, U]` of a method."""
    chosen = load_method(method)
    inputs = ScoreInputs(
        q=rows.q,
        keys=rows.keys,
        fields={s.name: rows.fields(s, OPS) for s in chosen.summaries},
        index=None,
        candidates=rows.candidates,
        num_units=rows.num_units,
        counts=rows.counts,
        scale=rows.scale,
        reduction=reduction,
        unit_size=rows.unit,
    )
    return chosen.score(OPS, inputs)


def test_selection_is_exact_for_any_shape() -> None:
    """R7: 2,000 shapes against brute force; ties, -inf, sinks, window, count."""
    for number in range(SHAPES):
        rows = make_rows(number, count=1 + number % 4)
        scores = torch.randint(-3, 4, (len(rows.lengths), rows.heads, rows.width)).float()
        scores[torch.rand(scores.shape) < 0.1] = -torch.inf
        selection = OPS.select(scores, rows.candidates, rows.num_units, rows.counts)
        assert torch.equal(selection.counts, rows.counts[:, None].expand(-1, rows.heads))
        for i, count in enumerate(rows.counts.tolist()):
            total = int(rows.num_units[i])
            kept = rows.always_kept(i)
            expected = best_units(scores[i, :, :total], kept, count)
            logical = selection.logical[i]
            assert logical[:, :count].tolist() == expected
            assert bool((logical[:, count:] == -1).all())
            table = rows.table[i]
            assert torch.equal(selection.physical[i, :, :count], table[logical[:, :count].long()])
            assert bool((selection.physical[i, :, count:] == 0).all())
            assert int(logical[0, count - 1]) == total - 1, "the tail is last"
    print(f"R7: {SHAPES} shapes exact, with ties and -inf in each")


def test_scores_that_are_not_numbers_displace_nothing_that_is_always_kept() -> None:
    """Sinks, window and tail stay, and the tail stays last, if K overflowed somewhere."""
    for number in range(50):
        rows = make_rows(number, count=3)
        scores = torch.full((3, rows.heads, rows.width), torch.nan)
        scores[:, :, ::2] = torch.inf
        selection = OPS.select(scores, rows.candidates, rows.num_units, rows.counts)
        for i, count in enumerate(rows.counts.tolist()):
            for head in selection.logical[i, :, :count].tolist():
                assert rows.always_kept(i) <= set(head)
                assert head == sorted(set(head))


@pytest.mark.parametrize("device", ["reference", "cpu"])
@pytest.mark.parametrize("count", [4096, 5000, 1])
def test_a_million_equal_keys_are_ties(device: str, count: int) -> None:
    """65,536 units of 1,048,576 tokens: the lower first, the one larger always, no stale tail."""
    ops, units = load_ops(device), 1 << 16
    scores = torch.zeros(1, 2, units)
    scores[0, 1, 50_000] = 1
    table = torch.arange(units, dtype=torch.int32)[None]

    def one(value: int) -> torch.Tensor:
        return torch.tensor([value], dtype=torch.int32)

    candidates = Candidates(table, one(0), one(units - 1))
    ops.select(scores, candidates, one(units), one(4096))  # a larger one came before
    chosen = ops.select(scores, candidates, one(units), one(count)).logical[0]
    lowest = [*range(count - 1), units - 1]
    assert chosen[0, :count].tolist() == lowest
    larger = [*range(count - 2), 50_000, units - 1] if count > 1 else [units - 1]
    assert chosen[1, :count].tolist() == larger
    assert bool((chosen[:, count:] == -1).all())


def test_nothing_outside_the_candidates_is_read() -> None:
    """Metadata of sinks, window, tail and foreign units may be NaN; scores there are -inf."""
    rows = make_rows(3, count=4)
    for method in RANKING:
        scores = score(rows, method)
        for i, (begin, end) in enumerate(zip(rows.begin, rows.end, strict=True)):
            inside = scores[i, :, begin:end]
            assert not bool(inside.isnan().any())
            assert bool(scores[i, :, :begin].eq(-torch.inf).all())
            assert bool(scores[i, :, end:].eq(-torch.inf).all())


@pytest.mark.parametrize("reduction", Reduction)
@pytest.mark.parametrize("method", RANKING)
def test_a_row_is_scored_alike_alone_in_a_batch_and_shuffled(
    method: str, reduction: Reduction
) -> None:
    """R8: bit for bit the same scores and units, 50 batches of 2 to 16 rows."""
    for number in range(50):
        rows = make_rows(1000 + number, count=2 + number % 15)
        together = score(rows, method, reduction)
        order = torch.randperm(len(rows.lengths)).tolist()
        shuffled = score(rows.take(order), method, reduction)
        picked = OPS.select(together, rows.candidates, rows.num_units, rows.counts)
        for place, i in enumerate(order):
            total, count = int(rows.num_units[i]), int(rows.counts[i])
            one = rows.take([i])
            alone = score(one, method, reduction)
            assert torch.equal(together[i, :, :total], alone[0, :, :total])
            assert torch.equal(together[i, :, :total], shuffled[place, :, :total])
            single = OPS.select(alone, one.candidates, one.num_units, one.counts)
            assert torch.equal(single.logical[0, :, :count], picked.logical[i, :, :count])


def test_streaming_keeps_sinks_and_the_newest_units() -> None:
    """Whatever the query: the budget extends the window backwards."""
    rows = make_rows(5, count=4)
    selection = OPS.select(score(rows, "streaming"), rows.candidates, rows.num_units, rows.counts)
    for i, count in enumerate(rows.counts.tolist()):
        total, begin = int(rows.num_units[i]), rows.begin[i]
        expected = [*range(begin), *range(total - (count - begin), total)]
        assert all(head == expected for head in selection.logical[i, :, :count].tolist())


def test_oracle_keeps_the_largest_attention_mass() -> None:
    """No other candidate has a larger softmax share (of the group's maximum) than a kept one."""
    rows = make_rows(7, count=4, group=1)
    selection = OPS.select(score(rows, "oracle"), rows.candidates, rows.num_units, rows.counts)
    for i, count in enumerate(rows.counts.tolist()):
        keys = rows.keys_of(i).double()
        for head in range(rows.heads):
            logits = keys[:, head] @ rows.q[i, head, 0].double() * rows.scale
            share = logits.exp()
            mass = [float(s.sum()) for s in share.split(rows.unit)]
            kept = set(selection.logical[i, head, :count].tolist())
            candidates = set(range(rows.begin[i], rows.end[i]))
            chosen, left = candidates & kept, candidates - kept
            if chosen and left:
                assert min(mass[u] for u in chosen) >= max(mass[u] for u in left) * (1 - 1e-5)


def test_scores_are_logarithms_of_shares() -> None:
    """With one query head and `mean_softmax` the shares of a row's candidates sum to one."""
    rows = make_rows(9, count=4, group=1)
    for method in ("quest", "mean_std", "oracle"):
        scores = score(rows, method, Reduction.MEAN_SOFTMAX)
        for i in range(len(rows.lengths)):
            if rows.begin[i] < rows.end[i]:
                total = scores[i].exp().sum(-1)
                torch.testing.assert_close(total, torch.ones_like(total))
