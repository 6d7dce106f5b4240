"""What a layer costs with each method that a GPU serves: predicted, beside what must be read.

Bytes are those of the default options at bfloat16. Fixed times are counted as in `kernels`, and
nothing of it is measured; expect 35 % either way.
"""

import math
from dataclasses import dataclass, replace

from bench.model.hardware import GPUS, LLAMA_3_1_8B, Model
from bench.model.kernels import COPY_TB_PER_S, KERNELS, PROCESSORS
from sgl_sparsekv.selection.quest_int8 import SPARE
from sgl_sparsekv.selection.sampling import LEAST_TOKENS, LEAST_UNITS

CHUNK = 2048
"""Scores of one program of `select`."""
NARROW_US, PLACE_US = 4.5, 2.5
"""Of the launches behind `select` where single tokens are chosen from long rows, whatever they
walk: 6 round trips to memory in turn and the digits of one bin, and 4 round trips."""
RESIDENT = 2
"""Programs of these three launches that one multiprocessor holds at once, at least."""
RANKED_CLUSTERS, RANK_US, BITS_US = 256, 1.2, 4.0
"""Clusters that one program ranks at a time, how long it waits for their logits, twice, and for 32
sums over its warps."""
ENTRY_BYTES = 4
"""Of a chosen unit in the list that `attend` reads."""
OPENED = 8
"""Times the budget that the best segments hold, where only their units are looked at."""
COVER_CHUNK, PASSES, PASS_US, COVER_RESIDENT = 1024, 3, 1.0, 4
"""Scores of a chunk where coverages are served, how often a launch walks them, how long a program
takes for each, and how many of these one multiprocessor holds."""
PIECE, TOKEN_US, THRESHOLD_US = 16, 0.3, 2.0
"""Units of a sample that are looked at together; a token of each, three being on their way at a
time; and the score that follows from all of them."""
COVER_LAUNCHES = 5
"""Of rows that ask for a coverage."""
HELD_US = 3.0
"""Of the launch that chooses among what a request holds."""


@dataclass(frozen=True)
class Choosing:
    """How a method chooses.

    Attributes:
        unit: tokens of what it selects.
        bytes_per_token: of metadata of one KV head, read once.
        passes: times that is read.
        launches: beside `select` and `attend`.
        tokens_per_cluster: where clusters are opened by one program of each row and KV head; else
            0.
        opened_bytes: of metadata per token and KV head that is read of the best segments alone.
    """

    unit: int
    bytes_per_token: float
    passes: int
    launches: int
    tokens_per_cluster: int = 0
    opened_bytes: float = 0.0


def choosing(model: Model) -> dict[str, Choosing]:
    """The methods by name, with the options that they have by default."""
    vector = model.head_dim * model.dtype_bytes
    return {
        "quest": Choosing(32, 2 * vector / 32, 1, 1),
        "quest_int8": Choosing(32, 2 * (model.head_dim + SPARE) / 32, 1, 1),
        "quest_two_level": Choosing(32, 2 * vector / 128, 1, 2, opened_bytes=2 * vector / 32),
        "shadowkv": Choosing(8, (vector + model.dtype_bytes) / 8, 1, 2),
        "clusterkv": Choosing(1, 1 + 32 * vector / 512, 2, 2),
        "pqcache": Choosing(1, 4 + 16 * vector / 512, 2, 2),
        "residual_pq": Choosing(1, _residual_bytes(model) / 512, 2, 5, tokens_per_cluster=32),
    }


def _residual_bytes(model: Model) -> int:
    """Of a record of `residual_pq`, if it is looked into; what stands in it for the rest as well.

    Centroids and mean values are read once and codes three times, which makes two of all.
    """
    vector, scale = 16 * model.head_dim, 4 * 16
    codes = 2 * 512 + 2 * 512 + 4 * 4 + 2 * 16
    return (vector + scale) + (vector + scale) + (vector + codes)


@dataclass(frozen=True)
class Layer:
    """Microseconds of a layer.

    Attributes:
        choose: all launches but `attend`.
        attend: over what was chosen.
        floor: what must be read of metadata, K and V.
        dense: dense attention of the same requests.
        bytes_over_pages: what `attend` reads, in parts of what it would in units of 16.
    """

    choose: float
    attend: float
    floor: float
    dense: float
    bytes_over_pages: float


def layer(
    gpu: str, method: str, context: int, batch: int, budget: int, model: Model = LLAMA_3_1_8B
) -> Layer:
    """A batch of equally long requests.

    Args:
        gpu: key of `COPY_TB_PER_S`.
        method: key of `choosing`.
        context: tokens of each.
        batch: requests.
        budget: tokens that each KV head reads.
        model: what is read.
    """
    card = replace(GPUS[gpu], tb_per_s=COPY_TB_PER_S[gpu])
    how, kernels = choosing(model)[method], KERNELS[-1]
    opened = min(context, OPENED * budget) * how.opened_bytes
    metadata = batch * model.kv_heads * (context * how.bytes_per_token + opened)
    read = card.us(how.passes * metadata) / kernels.score_share
    choose = how.launches * kernels.score_us + read + _select_us(how, context, batch, budget, model)
    if how.tokens_per_cluster:
        clusters = context / how.tokens_per_cluster
        choose += math.ceil(clusters / RANKED_CLUSTERS) * RANK_US + BITS_US
    if how.opened_bytes:  # the last program of a row and KV head opens the best segments
        choose += kernels.select_us
    kept = batch * budget * model.kv_bytes
    listed = batch * model.kv_heads * ENTRY_BYTES * budget
    size = kept + listed / how.unit
    attend = kernels.attend_us + card.us(size) / kernels.attend_share
    dense = kernels.dense_us + card.us(batch * context * model.kv_bytes) / kernels.dense_share
    return Layer(
        choose, max(kernels.attend_least_us, attend), card.us(metadata + kept), dense,
        size / (kept + listed / 16),
    )  # fmt: skip


def _select_us(how: Choosing, context: int, batch: int, budget: int, model: Model) -> float:
    """Chunks are looked at in parallel: once, or three times where budgets are single tokens.

    Else their best fit one program, which chooses among them as it does from a single chunk.
    """
    kernels, units, count = KERNELS[-1], context // how.unit, budget // how.unit
    chunks = math.ceil(units / CHUNK)
    programs, chunk_us = batch * model.kv_heads * chunks, kernels.select_chunk_us * CHUNK / 1024
    if how.unit == 1 and chunks > 1:
        rounds = math.ceil(programs / (RESIDENT * PROCESSORS))
        return kernels.select_us + NARROW_US + PLACE_US + 3 * rounds * chunk_us
    rounds = math.ceil(programs / PROCESSORS)
    own = kernels.select_us + rounds * chunk_us * min(1.0, units / CHUNK)
    assert chunks == 1 or chunks * min(count, CHUNK) <= CHUNK, "more than one program can hold"
    return own if chunks == 1 else own + kernels.select_us


@dataclass(frozen=True)
class Beside:
    """Microseconds of a layer that come on top of, or take the place of, choosing.

    Attributes:
        telemetry: in a step that is sampled: what dense attention would have covered.
        coverage: of rows that ask for one: what is read in any case, a sample, and its threshold.
        held: of choosing in all, in the mean over the steps that one selection serves.
    """

    telemetry: float
    coverage: float
    held: float


def beside(
    gpu: str, method: str, context: int, batch: int, budget: int, every: int = 4,
    model: Model = LLAMA_3_1_8B,
) -> Beside:  # fmt: skip
    """What requests may ask for beside a method; `every`: steps that a selection serves."""
    card, kernels = replace(GPUS[gpu], tb_per_s=COPY_TB_PER_S[gpu]), KERNELS[-1]
    how = choosing(model)[method]
    keys = card.us(batch * context * model.kv_bytes / 2) / kernels.attend_share
    chunks, pairs = math.ceil(context / how.unit / COVER_CHUNK), batch * model.kv_heads
    walked = PASSES * math.ceil(pairs * chunks / (COVER_RESIDENT * PROCESSORS)) * PASS_US
    pieces = math.ceil(max(LEAST_UNITS, LEAST_TOKENS // how.unit) / PIECE)
    looked_at = math.ceil(pairs * pieces / PROCESSORS) * how.unit * TOKEN_US
    cover = COVER_LAUNCHES * kernels.score_us + walked + looked_at + THRESHOLD_US
    choose = layer(gpu, method, context, batch, budget, model).choose
    launches = how.launches * kernels.score_us + kernels.select_us
    uses = launches + HELD_US
    return Beside(kernels.attend_us + keys, cover, (choose + HELD_US + (every - 1) * uses) / every)
