"""`select` in CUDA C++ as a step launches it, and what the emulation finds when it is broken.

Logits are drawn here, not scored: few different ones, so that units are equal in all query heads.
"""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from sgl_sparsekv.kernels.reference.rows import reduce_group
from sgl_sparsekv.kernels.triton import tuning
from sgl_sparsekv.kernels.triton.cuda import emulation, select
from sgl_sparsekv.kernels.triton.cuda.select import constants_for, launch_select
from sgl_sparsekv.kernels.triton.launch import interpreted
from sgl_sparsekv.kernels.triton.spec import MIN_MAX
from test_triton_select import candidates_of
from test_triton_step import MIXED, MORE, Paged, is_dense
from triton_kit import DEVICE, REDUCTIONS, REFERENCE, select_by
from triton_scene import Request, Scene, Step, make_scene

from sgl_sparsekv.types import Candidates, Reduction

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning:triton")
EQUALS = 150
"""Different logits of a query head."""
UNTOUCHED = -7
ROOM = 1 << 18
"""Entries of a list: two counts of 16 bits, and more."""
LONG = [Request(70_000, budget=2048), Request(20_000, "exact", 800, 0, 0), Request(900)]
"""More units than the block has threads, a row without sinks or window, a short one."""


def drawn(scene: Scene, seed: int = 0) -> Step:
    """A step behind `score`: logits and sums of candidates; all else is NaN or nobody's."""
    step = Step.of(scene)
    step.begin()
    held, block = step.fused.buffers, step.fused.tuning.score_units
    held.logits.fill_(torch.nan)
    held.parts.fill_(torch.nan)
    held.selected.fill_(UNTOUCHED)
    held.logical.fill_(UNTOUCHED)
    rng = torch.Generator().manual_seed(seed)
    shape, plan = scene.shape, scene.plan()
    for row in range(len(scene.requests)):
        begin, end = int(plan.begin[row]), int(plan.end[row])
        kinds = 4 * torch.randn(shape.heads, shape.group, EQUALS, generator=rng)
        which = torch.randint(0, EQUALS, (end - begin,), generator=rng)
        held.logits[row, :, :, begin:end] = kinds[:, :, which].to(DEVICE)
        held.logits[row, :, 0, (begin + 7 * end) // 8 : end] += 5  # most of what one head reads
        for first in range(begin // block * block, end, block) if begin < end else ():
            inside = held.logits[row, :, :, max(first, begin) : min(first + block, end)]
            best = inside.amax(-1)
            sums = (inside - best[..., None]).exp().sum(-1)
            held.parts[row, :, first // block] = torch.stack((best, sums), 1)
        held.table[row, int(plan.num_units[row]) :] = -(10**6)
    return step


@pytest.fixture(scope="module")
def long() -> Scene:
    """Rows whose threads hold several keys, of more blocks of scores than a warp adds at once."""
    return make_scene(LONG, 2, 8, dtype=torch.float16)


def wanted(step: Step, row: int) -> torch.Tensor:
    """What the reference chooses of a row: logical units `[H, count]`."""
    scene, plan = step.scene, step.scene.plan()
    begin, end, units, count = (
        int(x[row]) for x in (plan.begin, plan.end, plan.num_units, plan.counts)
    )
    if scene.requests[row].formula == "position":
        return torch.tensor([*range(begin), *range(units - count + begin, units)]).expand(
            scene.shape.heads, -1
        )
    scores = torch.full((1, scene.shape.heads, units), torch.nan)
    logits = step.fused.buffers.logits[row, :, :, begin:end].cpu()
    if begin < end:
        scores[0, :, begin:end] = reduce_group(logits, scene.shape.reduction)
    spans = (torch.tensor([n], dtype=torch.int32) for n in (begin, end))
    at = Candidates(scene.batch.table[row : row + 1, :units], *spans)
    numbers = (torch.tensor([n], dtype=torch.int32) for n in (units, count))
    return REFERENCE.select(scores, at, *numbers).logical[0]


def check_step(step: Step, layer: int) -> None:
    """Every row's list is the reference's, and nothing is written beside."""
    step.fused._select(layer, len(step.scene.requests), None)
    held = step.fused.buffers
    for row, count in enumerate(step.scene.plan().counts.tolist()):
        dense = is_dense(step.scene, row, layer)
        if not dense:
            assert torch.equal(step.lists(row, count), wanted(step, row).int())
        beside = [held.selected[row, :, count * (not dense) :], held.logical[row, :, count:]]
        for written in beside:
            assert (written == UNTOUCHED).all()


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("requests,shape", [
    (MIXED, (2, 4, 128, torch.bfloat16, 16, 64)), (MIXED, (1, 7, 64, torch.float16, 32, 32)),
    (MORE, (8, 1, 96, torch.float32, 16, 16)), (LONG, (2, 8, 64, torch.float16, 16, 64)),
])  # fmt: skip
def test_a_step_chooses_what_the_reference_does(
    requests: list[Request], shape: tuple, reduction: Reduction
) -> None:
    """In both layers, one of which is dense in some rows."""
    scene = make_scene(requests, *shape, reduction=reduction)
    for layer in range(2):
        with select_by("cuda", order=layer):
            check_step(drawn(scene), layer)


@pytest.mark.parametrize("threads", [64, 512])
def test_the_number_of_threads_changes_nothing(
    threads: int, long: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    """More keys each, up to 69."""
    monkeypatch.setattr(select, "CUDA_SELECT_THREADS", threads)
    with select_by("cuda"):
        check_step(drawn(long), 0)


def test_both_kernels_write_the_same() -> None:
    scene = make_scene(MIXED, 2, 4, reduction=Reduction.MEAN_SOFTMAX)
    found = []
    for who in ("triton", "cuda"):
        step = drawn(scene)
        with select_by(who):
            step.fused._select(1, len(MIXED), None)
        found.append((step.fused.buffers.selected, step.fused.buffers.logical))
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_a_stock_kernel_is_told_head_encoded_pages() -> None:
    """Selected or all units, at the plan's offsets."""
    scene = make_scene(MORE, heads=2)
    units, counts = scene.plan().num_units.tolist(), scene.plan().counts.tolist()
    for layer in range(2):
        dense = [is_dense(scene, row, layer) for row in range(len(MORE))]
        reads = [u if d else c for u, c, d in zip(units, counts, dense, strict=True)]
        step, paged = drawn(scene), Paged(scene, reads)
        with select_by("cuda"):
            step.fused._select(layer, len(MORE), paged)
        for row, count in enumerate(reads):
            logical = torch.arange(count).expand(2, -1) if dense[row] else wanted(step, row)
            for head in range(2):
                first = int(paged.offsets[row, head])
                got = paged.pages[first : first + count].cpu()
                want = scene.batch.table[row][logical[head].long()] * 16 * 2 + head
                assert torch.equal(got, want.int())


def test_rows_too_long_for_one_block_are_tritons() -> None:
    with select_by("cuda"):
        known = [tuning.select_by(arch, tuning.CUDA_SELECT_UNITS) for arch in ((8, 0), (12, 1))]
        assert known == ["cuda", "cuda"]
        assert tuning.select_by((9, 0), tuning.CUDA_SELECT_UNITS + 1) == "triton"
    assert {tuning.select_by(arch, 1) for arch in tuning.TUNING} == {"triton"}, "not measured yet"


MUTANTS = {
    "a digit is skipped": ("least.shift - BITS, left", "least.shift - 2 * BITS, left"),
    "keys of other digits are counted": (">> BITS == least.digits)", ">> BITS >= 0)"),
    "digits are counted from below": ("lane + step < WARP", "lane + step < WARP - 1"),
    "one equal too many": ("equals < least.left))", "equals <= least.left))"),
    "equals from above": ("votes.equal & (me - 1)", "votes.equal & ~(me - 1)"),
    "lists out of order": ("larger + min(equals, least.left)", "equals + larger"),
    "stops one digit early": ("least.left == least.equals)", "least.left >= least.equals - 1)"),
    "a zero with a sign": ("score == 0.0f ? 0 :", "score == -1.0f ? 0 :"),
    "NaN is small": ("score <= LARGEST ? score : LARGEST", "score <= LARGEST ? score : -LARGEST"),
    "sinks are ranked": ("unit >= row.begin && unit < row.end ?", "unit < row.end ?"),
}
"""What is wrong -> a text of select.cu, and what stands there instead."""
RANKS = {
    "one head's sum for all": ("early[g], shared.normaliser[g]", "early[g], shared.normaliser[0]"),
    "a late head's logits": ("logits + g * head_logits, row, thread, early[0]",
                             "logits, row, thread, early[0]"),
    "sums of other scales": ("total * share_of(highest, higher)", "total"),
    "not all sums": ("first += TOGETHER * WARP", "first += 1 << 20"),
}  # fmt: skip
"""The same of what only a step asks for."""
BARRIER = "__syncthreads();"
DIVERGED = {
    "of a block": (BARRIER + "\n    if (thread < WARP)", "if (thread < 512) " + BARRIER),
    "of a warp": ("const Votes votes(i", "if (i * THREADS + thread >= row.total) continue;\n"
                  "    const Votes votes(i"),
}  # fmt: skip


@pytest.fixture
def sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A copy of the kernel that is emulated instead."""
    if not interpreted():
        pytest.skip("mutants are emulated")
    for path in emulation.SOURCE.parent.glob("*.c*"):
        shutil.copy(path, tmp_path)
    shutil.copy(emulation.SOURCE.with_name("emulation.h"), tmp_path)
    monkeypatch.setattr(emulation, "SOURCE", tmp_path / emulation.SOURCE.name)
    emulation._library.cache_clear()
    yield tmp_path / "select.cu"
    emulation._library.cache_clear()


def choose(order: int) -> None:
    """What a mutant must fail at: ties, zeros, NaN; rows below and above the block's threads.

    Whatever it writes, there is room for it.
    """
    rng = torch.Generator().manual_seed(1)
    num_units, at = candidates_of([40, 300, 1500])
    scores = torch.randint(-60, 60, (3, 2, 1500), generator=rng) / 7
    scores[torch.rand(scores.shape, generator=rng) < 0.1] = torch.nan
    scores[:, 0, ::7] = -0.0
    scores[:, 1] += torch.rand(3, 1500, generator=rng)
    kinds, layers = (torch.full((3,), n, dtype=torch.int32) for n in (MIN_MAX, 0))
    offsets = torch.arange(6) * ROOM
    for kept in ([12, 90, 700], [20, 200, 33]):
        counts = torch.tensor(kept, dtype=torch.int32)
        physical, logical = (torch.full((3, 2, ROOM), UNTOUCHED, dtype=torch.int32) for _ in "pl")
        rows = (at.unit_table, kinds, at.begin, at.end, num_units, counts, layers)
        tensors = (scores, None, *rows, physical, logical, offsets)
        with select_by("cuda", order):
            launch_select(constants_for(1500), 2, 3, tensors, (0, 0, 1500, ROOM, 1500, 1))
        want = REFERENCE.select(scores, at, num_units, counts)
        for row, count in enumerate(kept):
            for got, chosen in ((physical, want.physical), (logical, want.logical)):
                assert torch.equal(got[row, :, :count], chosen[row, :, :count])
                assert (got[row, :, count:] == UNTOUCHED).all()


def is_found() -> bool:
    """Whether what is chosen is wrong, or threads part, in one order of warps or in another."""
    try:
        for order in range(3):
            choose(order)
    except AssertionError:
        return True
    except RuntimeError as error:
        assert "wait at lines" in str(error)
        return True
    return False


def test_the_kernel_as_it_is_is_not_blamed(sources: Path) -> None:
    assert sources.exists() and not is_found()


@pytest.mark.parametrize("name", MUTANTS)
def test_a_broken_kernel_is_found(name: str, sources: Path) -> None:
    edit(sources, *MUTANTS[name])
    assert is_found()


@pytest.mark.parametrize("name", RANKS)
def test_a_step_with_broken_ranks_is_found(name: str, long: Scene, sources: Path) -> None:
    edit(sources, *RANKS[name])
    with select_by("cuda"), pytest.raises(AssertionError):
        check_step(drawn(long), 0)


@pytest.mark.parametrize("number", range(5))
def test_a_missing_barrier_is_found(number: int, sources: Path) -> None:
    """Each of the kernel's five."""
    parts = sources.read_text().split(BARRIER)
    assert len(parts) == 6
    both = parts[number] + parts[number + 1]
    sources.write_text(BARRIER.join([*parts[:number], both, *parts[number + 2 :]]))
    assert is_found()


@pytest.mark.parametrize("whose", DIVERGED)
def test_threads_that_wait_for_nobody_are_named(whose: str, sources: Path) -> None:
    edit(sources, *DIVERGED[whose])
    with pytest.raises(RuntimeError, match=r"threads \d+ and \d+ of one .* wait at lines \d+ and"):
        choose(0)


def edit(path: Path, old: str, new: str) -> None:
    """Replace a text that a file has."""
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))
