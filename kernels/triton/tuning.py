"""Every constant that is tuned per architecture, in one table.

A row's result depends on the row alone: none of these may depend on the batch. They were chosen
from the bytes each program moves and from the compiler's report (`docs/results/kernels.md`), in
which none of them spills; not measured on a GPU yet.
"""

from dataclasses import dataclass, replace

from sgl_sparsekv.geometry import ceil_div

NUM_SPLITS = 16
"""Programs that share one row and KV head in `attend` on a GPU with 8 KV heads or more."""
SELECT_CHUNK = 1024
"""Scores that `select` walks at a time, two per thread: with four, registers spilled."""
SELECT_WARPS = 16
"""Warps of `select`, one program per row and KV head."""


@dataclass(frozen=True)
class Tuning:
    """Block shapes of one architecture.

    Attributes:
        score_units: units per program of `score`.
        score_warps: its warps.
        attend_tokens: keys per inner step of `attend`.
        attend_warps: its warps.
        attend_stages: depth of its load pipeline.
    """

    score_units: int = 32
    score_warps: int = 4
    attend_tokens: int = 64
    attend_warps: int = 4
    attend_stages: int = 2


TUNING = {
    (8, 0): Tuning(attend_stages=3),
    (8, 9): Tuning(score_units=64, score_warps=8),
    (9, 0): Tuning(attend_stages=3),
    (10, 0): Tuning(attend_stages=3),
    (12, 0): Tuning(),
}
"""By compute capability. 8.9 and 12.0 have 100 KiB of shared memory, the others more. On 8.9 the
compiler spills a register of `score` in smaller programs, to fit one more of them."""
NARROW_HEAD, WIDE_HEAD = 64, 256
"""Up to the first, `attend` takes twice the keys: the same bytes. From the second on, blocks are
halved and loads are not pipelined deeper than 2."""
FLOAT = Tuning(score_units=16, score_warps=8, attend_tokens=16, attend_warps=4, attend_stages=2)
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
        warps, units = 2 * tuned.attend_warps, max(16, tuned.score_units // 2)
        return replace(tuned, score_units=units, attend_warps=warps, attend_stages=2)
    if head_dim <= NARROW_HEAD:
        return replace(tuned, attend_tokens=2 * tuned.attend_tokens)
    return tuned


def num_splits(heads: int) -> int:
    """Splits of one row and KV head: enough programs to fill a GPU with one request."""
    return NUM_SPLITS * ceil_div(8, max(1, min(heads, 8)))
