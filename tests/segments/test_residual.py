"""Records of clusters and of what keys differ from them: near the keys, blind to company."""

import torch
from segments.data import bunches

from sgl_sparsekv.ops import load_ops
from sgl_sparsekv.segment_records import ResidualIndex, SegmentIndex
from sgl_sparsekv.segments.residual import packed, quantised, residuals, widened
from sgl_sparsekv.types import Candidates, Reduction

OPS = load_ops("reference")
SIZE = 128


def built(keys: torch.Tensor, values: torch.Tensor, skips: list[int], parts: int) -> ResidualIndex:
    summary = residuals(SIZE, parts)
    found = summary.build(OPS.index_segments, keys, values, torch.tensor(skips))
    return ResidualIndex(**found, table=torch.zeros(1, 1, dtype=torch.int32))


def segments(count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Keys and values `[n, S, H, D]`."""
    torch.manual_seed(3)
    keys, values = (bunches(count * SIZE).unflatten(0, (count, SIZE)) for _ in range(2))
    return keys, values


def test_codes_of_the_rest_come_nearer_than_clusters_and_more_codes_nearer_still() -> None:
    keys, values = segments(1)
    true, errors = keys[0].movedim(0, 1), []
    for parts in (1, 4, 8):
        errors.append(float((built(keys, values, [0], parts).decoded(0) - true).norm()))
    alone = SegmentIndex(*clusters_of(keys), torch.zeros(1, 1, dtype=torch.int32))
    errors.insert(0, float((alone.decoded(0) - true).norm()))
    assert errors == sorted(errors, reverse=True) and errors[-1] < errors[0] / 2


def clusters_of(keys: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Sixteen clusters of one segment's keys, as codes and a codebook."""
    from sgl_sparsekv.segments.index import products

    codes, book = products(SIZE, 1, 4).build(keys[0], 0)
    return codes[None], book[None]


def test_values_of_clusters_are_means_of_their_members() -> None:
    keys, values = segments(1)
    index = built(keys, values, [16], 4)
    labels = index.clusters(0)
    found = index.of_clusters(0, index.cluster_values(0))
    for head in range(keys.shape[2]):
        for cluster in labels[head, 16:].unique():
            members = torch.nonzero(labels[head, 16:] == cluster).flatten() + 16
            mean = values[0, members, head].mean(0)
            got = found[head, members[0]]
            assert (got - mean).abs().max() <= mean.abs().max() / 127  # what 8 bits keep


def test_codes_lie_in_the_order_of_clusters() -> None:
    index = built(*segments(1), [0], 4)
    labels, places = index.clusters(0).long(), index.places[0].long()
    in_order = labels.gather(1, places)
    assert torch.equal(places.sort().values, torch.arange(SIZE).expand_as(places))
    assert torch.equal(in_order, in_order.sort(stable=True).values)
    sizes = torch.nn.functional.one_hot(labels, 16).sum(1)
    assert torch.equal(index.ends[0].long(), sizes.cumsum(1))


def test_best_clusters_are_opened_until_they_hold_enough() -> None:
    index = built(*segments(1), [0], 4)
    labels, q = index.clusters(0).long(), torch.randn(1, index.clusters(0).long().shape[0], 2, 16)
    tokens = torch.arange(SIZE, dtype=torch.int32)[None]
    spans = Candidates(tokens, *(torch.tensor([x], dtype=torch.int32) for x in (0, SIZE)))
    keys = torch.full((SIZE, q.shape[1], 16), torch.nan)  # coded tokens are not scored by keys
    ranks = (q[0] @ index.cluster_keys(0).mT).amax(1)
    sizes = torch.nn.functional.one_hot(labels, 16).sum(1)
    for reach in (1, 40, SIZE):
        args = (q, keys, index, spans, 1.0, Reduction.MAX)
        asked = torch.tensor([reach], dtype=torch.int32)
        scores, every = (OPS.score_codes(*args, reach=r)[0] for r in (asked, None))
        there = scores > -torch.inf
        assert torch.equal(scores[there], every[there])
        for head in range(len(labels)):
            opened = labels[head, there[head]].unique()
            shut = [c for c in labels[head].unique().tolist() if c not in opened]
            last = opened[ranks[head, opened].argmin()]
            held = int(sizes[head, opened].sum())
            assert held == there[head].sum() and held - sizes[head, last] < reach <= held
            assert not shut or ranks[head, opened].min() >= ranks[head, shut].max()


def test_a_record_is_the_same_alone_and_with_others() -> None:
    keys, values = segments(3)
    together = built(keys, values, [16, 0, 0], 4)
    for nth, skip in enumerate([16, 0, 0]):
        alone = built(keys[nth : nth + 1], values[nth : nth + 1], [skip], 4)
        for name in residuals(SIZE, 4).shapes(16, 16):
            assert torch.equal(getattr(together, name)[nth], getattr(alone, name)[0]), name


def test_what_is_no_number_counts_as_zero() -> None:
    keys, values = segments(1)
    broken, zeroed = (keys.clone(), values.clone()), (keys.clone(), values.clone())
    for place, wrong in enumerate((torch.nan, torch.inf, -torch.inf)):
        for nth in range(2):
            broken[nth][0, 5 + place, 1, 3], zeroed[nth][0, 5 + place, 1, 3] = wrong, 0
    got, want = built(*broken, [0], 4), built(*zeroed, [0], 4)
    for name in residuals(SIZE, 4).shapes(16, 16):
        assert torch.equal(getattr(got, name), getattr(want, name)), name


def test_eight_bits_keep_a_vector_to_half_a_step() -> None:
    rows = torch.randn(7, 33)
    rows[3] = 0
    whole, scales = quantised(rows)
    assert ((widened(whole, scales) - rows).abs() <= scales[:, None] * 0.501).all()
    assert whole.abs().amax(-1).tolist() == [127, 127, 127, 0, 127, 127, 127]


def test_two_codes_fill_a_byte() -> None:
    codes = torch.randint(0, 16, (2, 4, 9), dtype=torch.uint8)
    found = packed(codes)
    assert torch.equal(found & 15, codes[:, ::2]) and torch.equal(found >> 4, codes[:, 1::2])


def test_an_odd_number_of_codes_leaves_half_a_byte() -> None:
    codes = torch.randint(0, 16, (2, 5, 9), dtype=torch.uint8)
    found = packed(codes)
    assert found.shape == (2, 3, 9) and (found[:, 2] >> 4 == 0).all()
    assert torch.equal(found[:, 1] & 15, codes[:, 2]) and torch.equal(found[:, 1] >> 4, codes[:, 3])
