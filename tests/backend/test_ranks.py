"""Which process of a server this is: its trace's endpoint, and whether its figures count."""

from itertools import product
from types import SimpleNamespace
from typing import Any

from sgl_sparsekv.backend.ranks import rank_of
from sgl_sparsekv.serving.trace import rank_endpoint


def parallel(dp: int | None, pp: int, tp: int, pp_size: int = 2, tp_size: int = 2) -> Any:
    """SGLang's view of one process, without context parallelism."""
    return SimpleNamespace(
        dp_rank=dp, pp_rank=pp, pp_size=pp_size, attn_tp_rank=tp, attn_tp_size=tp_size,
        attn_cp_rank=0, attn_cp_size=1,
    )  # fmt: skip


def test_eight_processes_publish_at_eight_endpoints() -> None:
    """Replicas, stages and tensor-parallel ranks, on ports and by name."""
    ranks = [rank_of(parallel(*place)) for place in product((0, 1), repeat=3)]
    assert sorted(rank.number for rank in ranks) == list(range(8))
    for endpoint in ("tcp://127.0.0.1:5560", "ipc:///tmp/trace"):
        assert len({rank_endpoint(endpoint, rank.number) for rank in ranks}) == 8
    assert rank_endpoint("tcp://127.0.0.1:5560", ranks[-1].number) == "tcp://127.0.0.1:5567"


def test_a_server_of_tensor_parallel_ranks_counts_them_alone() -> None:
    """No replica has a number there; ports follow each other."""
    ranks = [rank_of(parallel(None, 0, tp, pp_size=1, tp_size=4)) for tp in range(4)]
    assert [(rank.dp, rank.tp, rank.number) for rank in ranks] == [(0, i, i) for i in range(4)]
    assert [rank.first for rank in ranks] == [True, False, False, False]


def test_every_replica_counts_once() -> None:
    """Its stages and shards all know what it read."""
    ranks = [rank_of(parallel(*place)) for place in product((0, 1), repeat=3)]
    assert [(rank.dp, rank.pp, rank.tp) for rank in ranks if rank.first] == [(0, 0, 0), (1, 0, 0)]


def test_context_parallel_ranks_are_processes_too() -> None:
    """They hold the same heads and need a port each."""
    shard = SimpleNamespace(**{**vars(parallel(0, 0, 1)), "attn_cp_rank": 1, "attn_cp_size": 2})
    rank = rank_of(shard)
    assert rank.number == 3 and rank.tp == 1 and not rank.first
