"""What the launches of a layer cost beside their bytes: predicted microseconds.

Fixed times and shares of the bandwidth were counted from the compiled kernels at 1.7 GHz and from
what a launch in a graph costs on a Hopper; nothing of it is measured. Expect 35 % either way. A run
of `bench.gpu.harvest` says what they are.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

from bench.model.hardware import GPUS, LLAMA_3_1_8B, Gpu, Model
from bench.model.workload import Workload, metadata_bytes
from sgl_sparsekv.config import RequestOptions

COPY_TB_PER_S = {"h200": 4.2, "h100": 3.0}
"""What copying is expected to reach, in 1e12 bytes per second: shares are of this."""
L2_TB_PER_S = 5.5
"""What rows that share a prefix read of the second-level cache together."""
PROCESSORS = 132
"""Multiprocessors of an H100 and of an H200."""
WEIGHTS_SHARE, CASCADE_SHARE = 0.9, 0.7
"""Of the bandwidth, in reading weights and a prefix for a whole batch."""
DENSE_LAYERS = RequestOptions().dense_layers
"""Layers of a step that stay dense by default."""
DELEGATED_US = 8.0
"""Once per sparse step, if a dense layer were SGLang's: two launches that lay out its page table
and lengths, and a gap before each."""
TAIL_TOKENS = 4
"""Tokens that SGLang adds to a model's context in a row of its table."""


@dataclass(frozen=True)
class Kernels:
    """One way of building the three launches.

    Attributes:
        name: as printed.
        score_us: of `score`, whatever it reads.
        score_share: of the bandwidth.
        score_units: units of one of its programs.
        idle_ns: of a program that finds nothing to score; 0 where there are none.
        rows_together: rows on one prefix that read its metadata once.
        select_us: of `select`, whatever it walks.
        select_chunk_us: per 1,024 units, and per round of programs.
        attend_us: of `attend`, whatever it reads.
        attend_least_us: it takes no less.
        attend_share: of the bandwidth.
        dense_us: of dense attention, by the best peer.
        dense_share: of the bandwidth.
    """

    name: str
    score_us: float
    score_share: float
    score_units: int
    idle_ns: float
    rows_together: int
    select_us: float
    select_chunk_us: float
    attend_us: float
    attend_least_us: float
    attend_share: float
    dense_us: float = 4.0
    dense_share: float = 0.92


FIRST = Kernels("as first written", 3.5, 0.7, 32, 0.7, 1, 5.0, 3.5, 5.0, 9.3, 0.82)
"""A program of `score` per block of the model's context; `select` in one program per row and KV
head, which reads its scores five times; splits of `attend` joined one after the other."""
RESTRUCTURED = Kernels("restructured", 2.5, 0.85, 32, 0.0, 4, 3.0, 0.25, 3.5, 6.0, 0.88)
"""Programs of `score` that loop and prefetch; scores of `select` in registers; splits joined as a
tile; launches that begin before the last one ends."""
KERNELS = (FIRST, RESTRUCTURED)


@dataclass(frozen=True)
class Prediction:
    """Microseconds of a layer, and of a step.

    Attributes:
        score: its launch.
        select: its launch.
        attend: its launch.
        dense: dense attention of the same requests.
        short: dense attention of requests as long as the budget.
        own_dense: all of the context by our own `attend`.
        step: a sparse step, the default number of layers dense.
        dense_step: a dense step.
        cascade: attention that reads a prefix of all requests once.
    """

    score: float
    select: float
    attend: float
    dense: float
    short: float
    own_dense: float
    step: float
    dense_step: float
    cascade: float

    @property
    def selection(self) -> float:
        """Score and select."""
        return self.score + self.select

    @property
    def sparse(self) -> float:
        """All three launches."""
        return self.selection + self.attend


def predict(
    gpu: str, kernels: Kernels, work: Workload, shared: bool = False, served: int = 131_072,
    model: Model = LLAMA_3_1_8B,
) -> Prediction:  # fmt: skip
    """What a batch takes.

    Args:
        gpu: key of `COPY_TB_PER_S`.
        kernels: how the launches are built.
        work: the batch.
        shared: all of its context is one prefix.
        served: the model's context: what idle programs are counted from.
        model: what is read.
    """
    card = replace(GPUS[gpu], tb_per_s=COPY_TB_PER_S[gpu])
    attend, own_dense = (
        max(
            kernels.attend_least_us,
            kernels.attend_us
            + card.us(work.batch * tokens * model.kv_bytes) / kernels.attend_share,
        )
        for tokens in (work.budget, work.context)
    )
    score = _score(card, kernels, work, shared, served, model)
    select = _select(kernels, work, model)
    dense, short = (
        kernels.dense_us + card.us(work.batch * tokens * model.kv_bytes) / kernels.dense_share
        for tokens in (work.context, min(work.budget, work.context))
    )
    weights = card.us(model.weight_bytes) / WEIGHTS_SHARE
    sparse = score + select + attend
    once = card.us(work.context * model.kv_bytes) / CASCADE_SHARE
    return Prediction(
        score, select, attend, dense, short, own_dense,
        weights + DENSE_LAYERS * dense + (model.layers - DENSE_LAYERS) * sparse,
        weights + model.layers * dense, 2 * kernels.dense_us + once,
    )  # fmt: skip


def _score(
    card: Gpu, kernels: Kernels, work: Workload, shared: bool, served: int, model: Model
) -> float:
    """Metadata of every row; on one prefix through the cache, once for rows that stand together."""
    size = work.batch * metadata_bytes(model, work)
    if shared:
        through = replace(card, tb_per_s=L2_TB_PER_S).us(size / kernels.rows_together)
        return kernels.score_us + max(through, card.us(size / work.batch) / kernels.score_share)
    wide = math.ceil((served + TAIL_TOKENS) / work.page / kernels.score_units)
    busy = math.ceil(work.context / work.page / kernels.score_units)
    idle = work.batch * model.kv_heads * max(0, wide - busy) * kernels.idle_ns / 1000
    return kernels.score_us + card.us(size) / kernels.score_share + idle


def _select(kernels: Kernels, work: Workload, model: Model) -> float:
    """A program per row and KV head; more of them than multiprocessors come in rounds."""
    chunks = max(1.0, work.context / work.page / 1024)
    rounds = math.ceil(work.batch * model.kv_heads / PROCESSORS)
    return kernels.select_us + kernels.select_chunk_us * chunks * rounds


Reading = Callable[[Prediction], tuple[float, float | None]]
READINGS: dict[str, Reading] = {
    "selection": lambda p: (p.selection, None),
    "attend": lambda p: (p.attend, p.short / p.attend),
    "attention": lambda p: (p.sparse, p.dense / p.sparse),
    "step": lambda p: (p.step, p.dense_step / p.step),
    "shared_prefix": lambda p: (p.sparse, p.cascade / p.sparse),
}
"""Name of a row -> microseconds, and the gain over its peer."""
