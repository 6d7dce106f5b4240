"""Tokens ranked by their codes: what the reference gives, the same bits in any company, and nothing
read or written beside."""

from dataclasses import dataclass, replace

import pytest
import torch
from cases import Batch, allowed_error, make_batch
from coded import make_coded, row_of
from sgl_sparsekv.kernels.reference.rows import reduce_group
from sgl_sparsekv.kernels.triton import code_ops
from sgl_sparsekv.kernels.triton.code_ops import (
    CodePlan,
    code_tuning,
    run_codes,
    score_codes,
)
from sgl_sparsekv.kernels.triton.spec import CLUSTERS
from triton_kit import DEVICE, REDUCTIONS, REFERENCE, moved

from sgl_sparsekv.errors import UnsupportedSetup
from sgl_sparsekv.segment_records import SegmentIndex
from sgl_sparsekv.types import Candidates, Reduction

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning:triton")
POISON = 777.0
NO_STAMP = -(2**31)


@dataclass(frozen=True)
class Shape:
    """Rows of so many tokens, their candidates, and how they are coded."""

    lengths: list[int]
    spans: list[tuple[int, int]]
    heads: int
    group: int
    dim: int
    dtype: torch.dtype
    unit: int
    segment: int
    subspaces: int
    codes: int


SHAPES = [  # every value of each, not every product
    Shape([1300, 70, 515], [(16, 1237), (70, 70), (0, 512)], 2, 4, 128, torch.bfloat16, 16, 512,
          1, 32),
    Shape([700, 300], [(33, 651), (130, 131)], 1, 3, 96, torch.float16, 32, 128, 4, 16),
    Shape([330, 200, 65], [(70, 329), (1, 63), (63, 65)], 3, 1, 64, torch.float32, 64, 64, 2, 5),
    Shape([1100], [(500, 1030)], 1, 8, 64, torch.bfloat16, 64, 512, 4, 16),
    Shape([400], [(0, 399)], 2, 4, 128, torch.float32, 16, 128, 1, 32),
    Shape([400, 390], [(100, 300), (191, 385)], 1, 8, 96, torch.float16, 16, 192, 2, 200),
]  # fmt: skip


@dataclass
class Rows:
    """Rows over one pool. Whatever is not a candidate's own is not a number.

    Attributes:
        batch: in units.
        index: of records that no row has, codebooks are NaN; so are keys of coded tokens.
        candidates: in tokens; their table holds slots.
    """

    batch: Batch
    index: SegmentIndex
    candidates: Candidates

    def alone(self, row: int) -> "Rows":
        """One row, its tables as narrow as it is."""
        one = slice(row, row + 1)
        batch, spans = self.batch.alone(row), self.candidates
        width = batch.table.shape[1] * batch.unit_size
        whole = batch.lengths[0] // self.index.segment_size
        index = replace(self.index, table=self.index.table[one, :whole])
        candidates = Candidates(spans.unit_table[one, :width], spans.begin[one], spans.end[one])
        return Rows(batch, index, candidates)


def make_rows(shape: Shape) -> Rows:
    """Every third whole segment has no record; some units have no stamp."""
    unit, size = shape.unit, shape.segment
    batch = make_batch(shape.lengths, shape.heads, shape.group, shape.dim, shape.dtype, unit)
    rng = torch.Generator().manual_seed(shape.codes)
    counts = [length // size for length in shape.lengths]
    records = sum(counts) + 2
    order = torch.randperm(records, generator=rng).int()
    table = torch.full((len(counts), max(counts)), -1, dtype=torch.int32)
    books = torch.full((records, shape.heads, shape.subspaces, shape.codes,
                        shape.dim // shape.subspaces), torch.nan, dtype=shape.dtype)  # fmt: skip
    nobody = next(n for n in range(len(batch.keys) // unit) if batch.keys[n * unit].isnan().all())
    for row, (count, (begin, end)) in enumerate(zip(counts, shape.spans, strict=True)):
        table[row, :count] = order[sum(counts[:row]) :][:count]
        table[row, 1 + row % 2 : count : 3] = -1
        for nth, record in enumerate(table[row, :count].tolist()):
            if record < 0:
                continue
            batch.keys[batch.slots(row)[nth * size : (nth + 1) * size]] = torch.nan
            if nth * size < end:
                books[record] = torch.randn(books.shape[1:], generator=rng).to(shape.dtype)
        used = torch.arange(batch.table.shape[1])
        used = (used >= begin // unit) & (used * unit < end)
        batch.table[row] = torch.where(used, batch.table[row], nobody)
    slots = batch.table.long()[:, :, None] * unit + torch.arange(unit)
    begin, end = torch.tensor(shape.spans, dtype=torch.int32).unbind(1)
    candidates = Candidates(slots.flatten(1).int(), begin.contiguous(), end.contiguous())
    batch.table[:, ::3] |= NO_STAMP
    codes = torch.randint(0, shape.codes, (*books.shape[:3], size), generator=rng)
    return Rows(batch, SegmentIndex(codes.to(torch.uint8), books, table), candidates)


def plan_of(candidates: Candidates) -> CodePlan:
    """All rows are ranked by codes in all layers."""
    zeros = torch.zeros_like(candidates.begin)
    return moved((zeros + CLUSTERS, candidates.begin, candidates.end, zeros), DEVICE)


def run(
    rows: Rows,
    scale: float,
    mean: bool,
    plan: tuple | None = None,
    layer: int = 0,
    asked: tuple = (),
):
    """Both launches over memory that is poisoned: parts and ranks; `asked` are goals and what is
    known."""
    batch = rows.batch
    heads, group = batch.q.shape[1:3]
    width = batch.table.shape[1] * batch.unit_size
    block = code_tuning(batch.q, rows.index).block
    parts = torch.full((len(batch.q), heads, -(-width // block), 2, group), POISON, device=DEVICE)
    ranks = torch.full((len(batch.q), heads, width), POISON, device=DEVICE)
    index = SegmentIndex(*moved((rows.index.codes, rows.index.codebooks, rows.index.table), DEVICE))
    tensors = moved((batch.q, batch.keys, batch.table), DEVICE)
    chosen = CodePlan(*(plan or plan_of(rows.candidates)), CLUSTERS, *moved(asked, DEVICE))
    for found in (None, ranks):
        run_codes(*tensors, index, chosen, parts, found, scale, layer, batch.unit_size, mean)
    return parts.cpu(), ranks.cpu()


def logits_in(wide: torch.dtype, rows: Rows, row: int, scale: float) -> torch.Tensor:
    """Scaled logits of a row's candidates, computed in an element type: `[H, G, n]`."""
    begin, end = int(rows.candidates.begin[row]), int(rows.candidates.end[row])
    keys = rows.batch.keys[rows.candidates.unit_table[row, :end].long()].to(wide).movedim(1, 0)
    size = rows.index.segment_size
    for segment, record in enumerate(rows.index.table[row].tolist()):
        if record >= 0 and segment * size < end:
            first = segment * size
            decoded = rows.index.decoded(record).to(wide)
            keys[:, first : first + size] = decoded[:, : end - first]
    return rows.batch.q[row].to(wide) @ keys[:, begin:].mT * scale


def inside_of(candidates: Candidates, width: int) -> torch.Tensor:
    """Which tokens are candidates: bool `[rows, width]`."""
    token = torch.arange(width)
    return (token >= candidates.begin[:, None]) & (token < candidates.end[:, None])


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("shape", SHAPES)
def test_parts_and_ranks(shape: Shape, reduction: Reduction) -> None:
    """Allowed is three times what the reference errs by in float32."""
    rows, scale = make_rows(shape), 0.3
    parts, ranks = run(rows, scale, reduction is Reduction.MEAN_SOFTMAX)
    args = (rows.index, rows.candidates, scale, reduction)
    want = REFERENCE.score_codes(rows.batch.q, rows.batch.keys, *args)
    inside = inside_of(rows.candidates, ranks.shape[-1])[:, None].expand(ranks.shape)
    assert torch.equal(inside, want > -torch.inf)
    assert (ranks[~inside] == POISON).all()
    width = code_tuning(rows.batch.q, rows.index).block
    for row, (begin, end) in enumerate(shape.spans):
        written = torch.zeros(parts.shape[2], dtype=torch.bool)
        if begin < end:
            logits = logits_in(torch.float64, rows, row, scale)
            exact = reduce_group(logits, reduction)
            band = allowed_error(exact, want[row, :, begin:end], torch.float32)
            assert ((ranks[row, :, begin:end].double() - exact).abs() <= band).all()
            low = logits_in(torch.float32, rows, row, scale)
            slack = allowed_error(logits, low, torch.float32).max()
            for block in range(begin // width, -(-end // width)):
                written[block] = True
                first, last = max(block * width - begin, 0), (block + 1) * width - begin
                best, total = parts[row, :, block].double().unbind(1)
                own = logits[..., first:last]
                assert ((best - own.amax(-1)).abs() <= slack).all()
                assert ((best + total.log() - own.logsumexp(-1)).abs() <= slack + 2**-20).all()
        assert (parts[row, :, ~written] == POISON).all()


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_rows_with_a_goal_have_shares_of_all_attention(reduction: Reduction) -> None:
    """By the mean over query heads, whatever the server's reduction; others stay, to the bit."""
    shape = SHAPES[0]
    rows, mean = make_rows(shape), reduction is Reduction.MEAN_SOFTMAX
    goals = torch.tensor([0.9 * (row % 2 == 0) for row in range(len(shape.spans))])
    known = 4 * torch.randn(rows.batch.q.shape[:3])
    plain, found = (run(rows, 0.3, mean, asked=asked)[1] for asked in ((), (goals, known)))
    for row, (begin, end) in enumerate(shape.spans):
        if not goals[row] or begin == end:
            assert torch.equal(found[row], plain[row])
            continue
        exact, low = (
            reduce_group(
                logits_in(wide, rows, row, 0.3), Reduction.MEAN_SOFTMAX, known[row].to(wide)
            )
            for wide in (torch.float64, torch.float32)
        )
        band = allowed_error(exact, low, torch.float32)
        assert ((found[row, :, begin:end].double() - exact).abs() <= band).all()


@pytest.mark.parametrize("shape", SHAPES[:3])
def test_bits_do_not_depend_on_batch_or_programs(
    shape: Shape, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = make_rows(shape)
    for mean in (False, True):
        monkeypatch.undo()
        together = run(rows, 0.3, mean)
        for row, length in enumerate(shape.lengths):
            monkeypatch.setattr(code_ops, "score_chunks", lambda *_, row=row: 1 + row)
            alone = run(rows.alone(row), 0.3, mean)
            for found, one in zip(together, alone, strict=True):
                cut = one.shape[2] if found.dim() == 5 else min(length, one.shape[2])
                assert torch.equal(found[row, :, :cut], one[0, :, :cut])


def test_other_rows_are_left_alone() -> None:
    """Of another formula, or dense in this layer."""
    rows = make_rows(replace(SHAPES[1], lengths=[300] * 4, spans=[(40, 270)] * 4))
    formulas, begins, ends, _ = plan_of(rows.candidates)
    formulas[0], formulas[1] = 2, 0
    dense = torch.tensor([0, 0, 2, 1], dtype=torch.int32, device=DEVICE)
    for layer, ranked in ((0, []), (1, [3]), (2, [2, 3])):
        found = run(rows, 0.3, False, (formulas, begins, ends, dense), layer)
        for tensor in found:
            written = (tensor != POISON).flatten(1).any(1)
            assert written.nonzero().flatten().tolist() == ranked


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_the_op(reduction: Reduction) -> None:
    """Slots in place of units, a table of records as wide as whole segments, or of none."""
    for shape in (([300, 65, 7], 2, 4, 128, torch.bfloat16, 64, 1, 32),
                  ([40, 1], 1, 3, 64, torch.float32, 64, 8, 16)):  # fmt: skip
        batch, index = make_coded(*shape)
        args = (batch.candidates, 0.3, reduction)
        want = REFERENCE.score_codes(batch.q, batch.keys, index, *args)
        there = SegmentIndex(*moved((index.codes, index.codebooks, index.table), DEVICE))
        spans = moved(batch.candidates, DEVICE)
        tensors = moved((batch.q, batch.keys), DEVICE)
        got = score_codes(*tensors, there, spans, *args[1:]).cpu()
        assert torch.equal(got == -torch.inf, want == -torch.inf)
        rows = Rows(batch, index, batch.candidates)
        for row, (begin, end) in enumerate(
            zip(batch.candidates.begin.tolist(), batch.candidates.end.tolist(), strict=True)
        ):
            if begin < end:
                exact = reduce_group(logits_in(torch.float64, rows, row, 0.3), reduction)
                band = allowed_error(exact, want[row, :, begin:end], torch.float32)
                assert ((got[row, :, begin:end].double() - exact).abs() <= band).all()
    with pytest.raises(UnsupportedSetup, match="reduction max"):
        score_codes(*tensors, there, spans, 0.3, Reduction.MAX)


def test_rows_alone_by_the_op() -> None:
    batch, index = make_coded([200, 130], 1, 2, 64, torch.float16, 64, 4, 16)
    there = SegmentIndex(*moved((index.codes, index.codebooks, index.table), DEVICE))
    found = score_codes(
        *moved((batch.q, batch.keys), DEVICE), there, moved(batch.candidates, DEVICE), 0.3,
        Reduction.MAX_SOFTMAX,
    ).cpu()  # fmt: skip
    for row, length in enumerate(batch.lengths):
        one, its = row_of(batch, index, row)
        its = SegmentIndex(*moved((its.codes, its.codebooks, its.table), DEVICE))
        alone = score_codes(
            *moved((one.q, one.keys), DEVICE), its, moved(one.candidates, DEVICE), 0.3,
            Reduction.MAX_SOFTMAX,
        ).cpu()  # fmt: skip
        assert torch.equal(found[row, :, :length], alone[0])


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_what_is_not_a_number_stays_with_its_group(reduction: Reduction) -> None:
    """Of one KV head, whose ranks say so; candidates stay candidates."""
    rows = make_rows(replace(SHAPES[2], lengths=[330], spans=[(70, 329)]))
    _, sound = run(rows, 0.3, reduction is Reduction.MEAN_SOFTMAX)
    record = int(rows.index.table[0, 2])
    rows.index.codebooks[record, 0, 0, 3, 5] = torch.nan
    rows.index.codes[record, 0, 0, :7] = 3
    _, ranks = run(rows, 0.3, reduction is Reduction.MEAN_SOFTMAX)
    assert ranks[0, 0, 70:329].isnan().all() and torch.equal(ranks[0, 1:], sound[0, 1:])
    assert (ranks[0, 0, :70] == POISON).all() and (ranks[0, 0, 329:] == POISON).all()


def test_far_records() -> None:
    """Codes and codebooks beyond 2^31 elements; what lies between is not touched."""
    batch, index = make_coded([64 * 4], 1, 4, 64, torch.bfloat16, 64, 1, 32)
    index = replace(index, table=torch.tensor([[3, -1, 1, 2]], dtype=torch.int32))
    batch.keys[:] = batch.keys.nan_to_num(0.5)
    found = []
    for stride in (None, 2**30):
        codes, books = index.codes, index.codebooks
        if stride:
            codes = torch.empty(3 * stride + 64, dtype=torch.uint8, device=DEVICE)
            codes = codes.as_strided((4, 1, 1, 64), (stride, 64, 64, 1))
            books = torch.empty(3 * stride + 2048, dtype=torch.bfloat16, device=DEVICE)
            books = books.as_strided((4, 1, 1, 32, 64), (stride, 2048, 2048, 64, 1))
            codes.copy_(index.codes[:4]), books.copy_(index.codebooks[:4])
        there = SegmentIndex(*moved((codes, books, index.table), DEVICE))
        args = (moved(batch.candidates, DEVICE), 0.3, Reduction.MAX_SOFTMAX)
        found.append(score_codes(*moved((batch.q, batch.keys), DEVICE), there, *args))
    assert torch.equal(*found) and not found[0].isnan().any()


def test_no_rows() -> None:
    batch, index = make_coded([64], 1, 1, 64, torch.float32, 64, 1, 4)
    none = Candidates(*(part[:0] for part in vars(batch.candidates).values()))
    index = replace(index, table=index.table[:0])
    there = SegmentIndex(*moved((index.codes, index.codebooks, index.table), DEVICE))
    tensors = moved((batch.q[:0], batch.keys), DEVICE)
    got = score_codes(*tensors, there, moved(none, DEVICE), 0.3, Reduction.MAX_SOFTMAX)
    assert got.shape == (0, 1, 64)
