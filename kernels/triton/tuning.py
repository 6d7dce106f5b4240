"""Every constant that is tuned per architecture, in one table.

A row's result depends on the row alone: none of these may depend on the batch. They were chosen
from the bytes each program moves and from the compiler's report (`docs/results/kernels.md`), in
which none of them spills; not measured on a GPU yet.
"""

from dataclasses import dataclass, replace

from sgl_sparsekv.geometry import ceil_div

NUM_SPLITS = 16
"""Programs that share one row and KV head in `attend` on a GPU with 8 KV heads or more."""
PROGRAMS_PER_PROCESSOR = 4
"""Programs of `score` that one multiprocessor is to hold at once."""
LEAST_CHUNKS, MOST_CHUNKS = 4, 64
"""Programs of `score` per row and KV head: enough for one long row among many, and no more than
blocks that a long row has."""
SELECT_CHUNK = 2048
"""Scores of one program of `select`, four per thread, in registers from the first digit on."""
SELECT_WARPS = 16
"""Warps of `select`."""
SELECT_REGISTERS = 128
"""Most registers of its threads: left alone, the compiler spills to fit a second program."""
NARROW_WARPS = 8
"""Warps of `narrow`, of `place`, and of the `select` in front of them, for as many scores as it has
else: two or three of its programs fit a multiprocessor so."""
NARROW_REGISTERS = 128
"""Most registers of a thread of `narrow` and of that `select`: left alone, they spill on some
architectures to fit a fourth program."""
HELD_CHUNK, HELD_WARPS = 2048, 8
"""Keys that one program looks at together where a row chooses from what it holds, and its warps."""
SELECT_PARTS = 128
"""Blocks of scores whose sums `select` adds at a time."""

COVER_CHUNK, COVER_WARPS, COVER_RESIDENT = 1024, 4, 4
"""Scores that programs of `cover` look at in one go, their warps, and how many of them one
multiprocessor holds."""

CUDA_SELECT_THREADS = 1024
"""Threads of `cuda/select.cu`, one block per row and KV head."""
CUDA_SELECT_UNITS = 9 * 1024
"""Units of a row that they hold in registers; with more of them some would spill."""

VIEW_STAGES = 2
"""Stages of `attend` more where a row may have a view: its list leads to the table, and that to K
and V, so the next block of these is in flight from 7 on."""


@dataclass(frozen=True)
class Tuning:
    """Block shapes of one architecture.

    Attributes:
        score_units: units per program of `score`.
        score_warps: its warps.
        score_stages: depth of its load pipeline. Entries of the table lead to planes, so two blocks
            of planes are in shared memory from 5 on, and one below.
        score_registers: most registers of its threads. Left alone, the compiler spills to make room
            for more programs than shared memory has room for.
        most_lanes: query heads of one matrix product of it: of one row and KV head, or of several
            rows together.
        attend_tokens: keys per inner step of `attend`.
        attend_warps: its warps.
        attend_stages: depth of its load pipeline, counted as that of `score`.
    """

    score_units: int = 32
    score_warps: int = 4
    score_stages: int = 5
    score_registers: int = 168
    most_lanes: int = 16
    attend_tokens: int = 64
    attend_warps: int = 4
    attend_stages: int = 5


TUNING = {
    (8, 0): Tuning(),
    (8, 9): Tuning(attend_tokens=32),
    (9, 0): Tuning(),
    (10, 0): Tuning(),
    (12, 0): Tuning(attend_tokens=32),
}
"""By compute capability. 8.9 and 12.0 have 100 KiB of shared memory, the others more."""
SELECT_BY = {
    (8, 0): "triton",
    (8, 9): "triton",
    (9, 0): "triton",
    (10, 0): "triton",
    (12, 0): "triton",
}
"""Who serves `select`: `select.py` ("triton") or `cuda/select.cu` ("cuda"). The latter is nowhere
chosen as long as `bench.gpu.harvest` has not measured both there."""
STARTS_EARLY = {(9, 0): False, (10, 0): False, (12, 0): False}
"""Whether a layer's launches start while the ones in front of them end (programmatic dependent
launch). Older GPUs cannot; on the others nothing of it is measured yet (`bench.gpu.harvest`)."""
MOST_REGISTERS = 255
"""That a thread can have at all."""
NARROW_HEAD, WIDE_HEAD = 64, 256
"""Up to the first, `attend` takes twice the keys: the same bytes. From the second on, it takes half
of them, and all programs twice the warps."""
FLOAT = Tuning(
    score_units=16, score_warps=8, score_stages=1, score_registers=128, most_lanes=1,
    attend_tokens=16, attend_stages=2,
)  # fmt: skip
"""For float32 caches, whose products run without matrix units and hold more registers."""


def tuning_for(capability: tuple[int, int], head_dim: int, itemsize: int = 2) -> Tuning:
    """Constants of the newest known architecture that is not newer than `capability`.

    Args:
        capability: compute capability.
        head_dim: channels of K.
        itemsize: bytes per element of the cache.
    """
    known = max((key for key in TUNING if key <= capability), default=min(TUNING))
    tuned = TUNING[known] if itemsize == 2 else FLOAT
    if head_dim >= WIDE_HEAD:
        return replace(
            tuned, score_warps=2 * tuned.score_warps, score_registers=MOST_REGISTERS,
            attend_warps=2 * tuned.attend_warps,
            attend_tokens=max(16, tuned.attend_tokens // 2),
        )  # fmt: skip
    if head_dim <= NARROW_HEAD:
        return replace(tuned, attend_tokens=2 * tuned.attend_tokens)
    return tuned


def select_by(capability: tuple[int, int], units: int) -> str:
    """Who serves `select` of rows of up to `units` units: "triton" or "cuda".

    A longer row than one block holds is Triton's on every GPU: it would need several blocks that
    wait for each other, which the emulation of `cuda/` cannot show to be right.
    """
    known = max((key for key in SELECT_BY if key <= capability), default=min(SELECT_BY))
    return SELECT_BY[known] if units <= CUDA_SELECT_UNITS else "triton"


def starts_early(capability: tuple[int, int]) -> bool:
    """Whether launches of a layer start while the ones in front of them end."""
    known = max((key for key in STARTS_EARLY if key <= capability), default=None)
    return known is not None and STARTS_EARLY[known]


def attend_registers(head_dim: int, views: bool, finer: bool, covers: bool) -> int | None:
    """Most registers of a thread of `attend`; None: as the compiler likes.

    Left alone with wide heads, views and finer units, with narrow heads, coverage and finer units,
    or with heads between these, it spills to fit another program.
    """
    spills = (head_dim >= WIDE_HEAD and views) or (head_dim <= NARROW_HEAD and covers)
    between = NARROW_HEAD < head_dim < WIDE_HEAD and not (views or covers)
    return MOST_REGISTERS if (finer and spills) or between else None


def select_threads(group: int, mean: bool, counted: bool) -> tuple[int, int]:
    """Warps of `select`, and most registers of a thread.

    Where it counts keys it needs few, but for a wide group's mean: there it would spill to fit a
    second program.

    Args:
        group: query heads per KV head.
        mean: reduction over the group by mean, else by maximum.
        counted: longer rows are left to `narrow`.
    """
    if not counted:
        return SELECT_WARPS, SELECT_REGISTERS
    return NARROW_WARPS, MOST_REGISTERS if mean and group >= 8 else NARROW_REGISTERS


def num_splits(heads: int) -> int:
    """Splits of one row and KV head: enough programs to fill a GPU with one request."""
    return NUM_SPLITS * ceil_div(8, max(1, min(heads, 8)))


def rows_together(rows: int, group: int, most_lanes: int) -> int:
    """Rows of a batch that `score` multiplies at once: a power of two, at least 1.

    Args:
        rows: of the batch.
        group: query heads per KV head.
        most_lanes: see `Tuning`.
    """
    return min(max(1, most_lanes // next_power(group)), next_power(rows))


def score_chunks(rows: int, heads: int, blocks: int, together: int, processors: int) -> int:
    """Programs of `score` per KV head and group of rows; what a row gets depends on none of it.

    Args:
        rows: of the batch.
        heads: KV heads.
        blocks: of units, in the longest context.
        together: rows of a group.
        processors: multiprocessors of the GPU.
    """
    pairs = ceil_div(rows, together) * heads
    wanted = ceil_div(PROGRAMS_PER_PROCESSOR * processors, pairs * together)
    return together * max(1, min(max(wanted, LEAST_CHUNKS), MOST_CHUNKS, blocks))


def next_power(count: int) -> int:
    """Smallest power of two that is not below `count`."""
    return 1 << max(0, count - 1).bit_length()


def weigh_warps(size: int) -> int:
    """Of a program that weighs a piece of a sample of `size`."""
    return 8 if size > 32 else 4
