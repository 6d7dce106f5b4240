"""Every constant that is tuned per architecture, in one table.

A row's result depends on the row alone: none of these may depend on the batch. They were chosen from
the bytes each program moves and from the compiler's report (`docs/results/kernels.md`); not measured
on a GPU yet.
"""

from dataclasses import dataclass

from sgl_sparsekv.geometry import ceil_div

NUM_SPLITS = 16
"""Programs that share one row and KV head in `attend` on a GPU with 8 KV heads or more."""
SELECT_CHUNK = 2048
"""Scores that `select` walks at a time: 32k tokens in units of 16."""
SELECT_WARPS = 16
"""Warps of `select`, one program per row and KV head."""


@dataclass(frozen=True)
class Tuning:
    """Block shapes of one architecture.

    Attributes:
        score_units: units per program of `score`.
        score_warps: its warps.
        attend_tokens: keys per inner step of `attend`; a multiple of every unit size.
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
    (8, 9): Tuning(),
    (9, 0): Tuning(attend_stages=3),
    (10, 0): Tuning(attend_stages=3),
    (12, 0): Tuning(),
}
"""By compute capability. 8.9 and 12.0 have 100 KiB of shared memory, the others more."""
WIDE_HEAD = 256
"""From this head size on, blocks are halved and loads are not pipelined deeper than 2."""


def tuning_for(capability: tuple[int, int], head_dim: int) -> Tuning:
    """Constants of the newest known architecture that is not newer than `capability`."""
    known = max((key for key in TUNING if key <= capability), default=min(TUNING))
    tuning = TUNING[known]
    if head_dim < WIDE_HEAD:
        return tuning
    return Tuning(
        score_units=tuning.score_units // 2,
        score_warps=tuning.score_warps,
        attend_tokens=tuning.attend_tokens,
        attend_warps=2 * tuning.attend_warps,
        attend_stages=2,
    )


def num_splits(heads: int) -> int:
    """Splits of one row and KV head: enough programs to fill a GPU with one request."""
    return NUM_SPLITS * ceil_div(8, max(1, min(heads, 8)))
