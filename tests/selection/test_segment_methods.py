"""ClusterKV, PQCache and ShadowKV as served, against their papers' formulas in numpy and loops."""

import math
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pytest
import torch

from sgl_sparsekv.ops import load_ops
from sgl_sparsekv.page_metadata import SINKS
from sgl_sparsekv.segment_records import SegmentIndex
from sgl_sparsekv.segments.index import clusters, products
from sgl_sparsekv.selection import load_method
from sgl_sparsekv.selection.shadowkv import OUTLIER_SHARE
from sgl_sparsekv.summaries import CodeSummary
from sgl_sparsekv.types import Candidates, Reduction, ScoreInputs

Array = npt.NDArray[np.float64]
DEVICES = ("reference", "cpu")
HEADS, DIM, UNIT, SEGMENT, LENGTH = 2, 32, 16, 128, 700
BUDGET, SINK, WINDOW = 150, 16, 44
SUMMARIES = {"clusterkv": clusters(SEGMENT, 8), "pqcache": products(SEGMENT, 4, 4)}


def noise(generator: torch.Generator) -> torch.Tensor:
    """Keys `[L, H, D]` without structure."""
    return torch.randn(LENGTH, HEADS, DIM, generator=generator)


def bunches(generator: torch.Generator) -> torch.Tensor:
    """Keys around a few directions, of very different lengths."""
    centres = torch.randn(12, HEADS, DIM, generator=generator)
    which = torch.randint(12, (LENGTH,), generator=generator)
    length = torch.rand(LENGTH, HEADS, 1, generator=generator) * 3 + 0.2
    noise = torch.randn(LENGTH, HEADS, DIM, generator=generator)
    return length * (centres[which] + 0.3 * noise)


KINDS: dict[str, Callable[[torch.Generator], torch.Tensor]] = {"noise": noise, "bunches": bunches}


class Scene:
    """One row whose pages lie scattered in a pool; its last whole segment has no record."""

    def __init__(self, device: str, kind: str, group: int, reduction: Reduction) -> None:
        generator = torch.Generator().manual_seed(group)
        self.ops, self.reduction = load_ops(device), reduction
        self.keys = KINDS[kind](generator)
        self.q = torch.randn(HEADS, group, DIM, generator=generator)
        pages = -(-LENGTH // 64)
        order = torch.randperm(pages, generator=generator) + 1
        self.slots = (order[:, None] * 64 + torch.arange(64)).flatten()[:LENGTH]
        self.pool = torch.full(((pages + 1) * 64, HEADS, DIM), torch.nan)
        self.pool[self.slots] = self.keys
        self.begin, self.end = SINK, (LENGTH - WINDOW) // UNIT * UNIT

    def index(self, summary: CodeSummary) -> SegmentIndex:
        """Records of all whole segments but the last."""
        count = LENGTH // SEGMENT
        parts, width = summary.subspaces, DIM // summary.subspaces
        index = SegmentIndex(
            torch.zeros(count, HEADS, parts, SEGMENT, dtype=torch.uint8),
            torch.zeros(count, HEADS, parts, summary.codes, width),
            torch.tensor([[*range(count - 1), -1]], dtype=torch.int32),
        )
        built = torch.arange(count - 1)
        slots = self.slots[: count * SEGMENT].view(count, SEGMENT)[:-1]
        skips = SINKS * (built == 0)
        self.ops.index_segments(summary, self.pool, slots, skips, index, built)
        return index

    def chosen(self, method: str, index: SegmentIndex | None, unit: int) -> list[list[int]]:
        """Units `[H][n]` that the method selects."""
        served = load_method(method)
        size = -(-LENGTH // unit)
        fields = {}
        for summary in served.summaries:
            tokens = summary.tokens or UNIT
            shape = (len(self.pool) // tokens, HEADS, 1, summary.width or DIM)
            fields[summary.name] = torch.full(shape, torch.nan)
            full = self.slots[: LENGTH // UNIT * UNIT : tokens] // tokens
            self.ops.summarise(summary, self.pool, fields[summary.name], full)
        inputs = ScoreInputs(
            q=self.q[None],
            keys=self.pool,
            fields=fields,
            index=index,
            candidates=Candidates(
                (self.slots[::unit] // unit).int()[None],
                torch.tensor([self.begin // unit], dtype=torch.int32),
                torch.tensor([self.end // unit], dtype=torch.int32),
            ),
            num_units=torch.tensor([size], dtype=torch.int32),
            counts=torch.tensor([BUDGET // unit], dtype=torch.int32),
            scale=DIM**-0.5,
            reduction=self.reduction,
            unit_size=unit,
        )
        scores = served.score(self.ops, inputs)
        found = self.ops.select(scores, inputs.candidates, inputs.num_units, inputs.counts)
        picked: list[list[int]] = found.logical[0].tolist()
        return picked

    def kept(self, unit: int) -> set[int]:
        """Sinks and window."""
        return {p // unit for p in range(LENGTH) if not self.begin <= p < self.end}

    def shares(self, logits: Array) -> Array:
        """The group's maximum or mean of softmax: `[G, n]` -> `[n]`."""
        weights = np.exp(logits - logits.max(1, keepdims=True))
        weights /= weights.sum(1, keepdims=True)
        return weights.max(0) if self.reduction is Reduction.MAX_SOFTMAX else weights.mean(0)

    def query(self, head: int) -> Array:
        """Scaled queries `[G, D]`."""
        return self.q[head].double().numpy() * DIM**-0.5


@pytest.mark.parametrize("reduction", (Reduction.MAX_SOFTMAX, Reduction.MEAN_SOFTMAX))
@pytest.mark.parametrize("group", (1, 4))
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("device", DEVICES)
def test_clusters_are_taken_in_order_and_the_last_one_is_cut(
    device: str, kind: str, group: int, reduction: Reduction
) -> None:
    """A cluster stands for its members with its mean key, a token without one for itself."""
    scene = Scene(device, kind, group, reduction)
    index = scene.index(SUMMARIES["clusterkv"])
    found = scene.chosen("clusterkv", index, 1)
    for head in range(HEADS):
        keys = scene.keys[:, head].double().numpy()
        groups: dict[tuple[int, int], list[int]] = {}
        for p in range(scene.begin, scene.end):
            record = p // SEGMENT if p // SEGMENT < LENGTH // SEGMENT - 1 else -1
            code = p if record < 0 else int(index.codes[record, head, 0, p % SEGMENT])
            groups.setdefault((record, code), []).append(p)
        centres = {
            (record, code): keys[code]
            if record < 0
            else index.codebooks[record, head, 0, code].double().numpy()
            for record, code in groups
        }
        for (record, code), members in groups.items():
            first = record * SEGMENT
            all_members = index.codes[record, head, 0].numpy() == code if record >= 0 else None
            if all_members is not None and first > 0:
                mean = keys[first : first + SEGMENT][all_members].mean(0)
                np.testing.assert_allclose(centres[record, code], mean, rtol=1e-4, atol=1e-5)
            assert members == sorted(members)
        places = [p for members in groups.values() for p in members]
        logits = np.array(
            [scene.query(head) @ centres[key] for key, members in groups.items() for _ in members]
        ).T
        share = dict(zip(places, scene.shares(logits), strict=True))
        ranked = sorted(groups.values(), key=lambda members: (-share[members[0]], members[0]))
        taken = [p for members in ranked for p in members]
        room = BUDGET - len(scene.kept(1))
        assert found[head] == sorted({*scene.kept(1), *taken[:room]})
        assert len(found[head]) == BUDGET, "the budget is met exactly"


@pytest.mark.parametrize("reduction", (Reduction.MAX_SOFTMAX, Reduction.MEAN_SOFTMAX))
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("device", DEVICES)
def test_tokens_are_ranked_by_their_quantised_keys(
    device: str, kind: str, reduction: Reduction
) -> None:
    """Softmax of q·(key put together from its codes), added up over the group."""
    scene = Scene(device, kind, 4, reduction)
    index = scene.index(SUMMARIES["pqcache"])
    found = scene.chosen("pqcache", index, 1)
    coded = (LENGTH // SEGMENT - 1) * SEGMENT
    for head in range(HEADS):
        keys = scene.keys[:, head].double().numpy().copy()
        for p in range(coded):
            codes = index.codes[p // SEGMENT, head, :, p % SEGMENT].tolist()
            book = index.codebooks[p // SEGMENT, head].double().numpy()
            keys[p] = np.concatenate([book[part, code] for part, code in enumerate(codes)])
        share = scene.shares(scene.query(head) @ keys[scene.begin : scene.end].T)
        order = np.argsort(-share, kind="stable") + scene.begin
        room = BUDGET - len(scene.kept(1))
        wanted = {*scene.kept(1), *order[:room].tolist()}
        # Tokens whose shares differ in the last bits may change places.
        last = share[order[room - 1] - scene.begin]
        for p in wanted ^ set(found[head]):
            assert share[p - scene.begin] == pytest.approx(last, rel=1e-4)
        assert len(found[head]) == BUDGET, "the budget is met exactly"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("device", DEVICES)
def test_chunks_are_ranked_by_landmark_behind_the_outliers(device: str, kind: str) -> None:
    """Outliers: the lowest cosines of the whole context, as many as the paper's share."""
    scene = Scene(device, kind, 4, Reduction.MAX_SOFTMAX)
    found = scene.chosen("shadowkv", None, 8)
    first, last, count = scene.begin // 8, scene.end // 8, BUDGET // 8
    for head in range(HEADS):
        chunks = scene.keys[: last * 8, head].double().numpy().reshape(-1, 8, DIM)
        marks = chunks.mean(1)
        lengths = np.linalg.norm(chunks, axis=2) * np.linalg.norm(marks, axis=1)[:, None]
        worst = (np.einsum("ctd,cd->ct", chunks, marks) / lengths).min(1)
        by_misfit = sorted(range(first, last), key=lambda c: (worst[c], c))
        outliers = by_misfit[: math.floor(count * OUTLIER_SHARE)]
        share = scene.shares(scene.query(head) @ marks[first:].T)
        kept = {*scene.kept(8), *outliers}
        rest = sorted(
            (c for c in range(first, last) if c not in kept), key=lambda c: -share[c - first]
        )
        assert found[head] == sorted({*kept, *rest[: count - len(kept)]})
