"""Where this scheduler process stands among those of its server."""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Rank:
    """One process.

    Attributes:
        dp: replica, or group of attention data parallelism.
        pp: pipeline stage.
        tp: which KV heads of a layer.
        number: among all of the server, the first one being 0.
        first: its figures stand for the replica: all of it read as much.
    """

    dp: int
    pp: int
    tp: int
    number: int
    first: bool


def own_rank() -> Rank:
    """Of this process."""
    from sglang.srt.runtime_context import get_parallel

    return rank_of(get_parallel())


def rank_of(parallel: Any) -> Rank:
    """From SGLang's view of the topology, where only a replica's controller gives it a number."""
    dp = parallel.dp_rank or 0
    shard = parallel.attn_cp_rank * parallel.attn_tp_size + parallel.attn_tp_rank
    shards = parallel.attn_cp_size * parallel.attn_tp_size
    place = parallel.pp_rank * shards + shard
    return Rank(
        dp=dp,
        pp=parallel.pp_rank,
        tp=parallel.attn_tp_rank,
        number=dp * parallel.pp_size * shards + place,
        first=place == 0,
    )
