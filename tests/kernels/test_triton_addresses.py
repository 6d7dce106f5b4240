"""Addresses are 64 bits wide: pools whose last units lie beyond 2^31 elements.

Their memory is reserved and not touched but for those units.
"""

import pytest
import torch
from cases import make_batch
from triton_kit import DEVICE, SUMMARIES, HostOps

from sgl_sparsekv.types import Candidates, Reduction

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning:triton")
DIM, UNIT = 128, 16
FAR = 2**20
"""First unit beyond: 2^20 units of 16 tokens of 128 channels are 2^31 elements."""
COUNT = torch.tensor([4], dtype=torch.int32, device=DEVICE)
NEAR_TABLE = torch.arange(4, device=DEVICE, dtype=torch.int32)[None]
SPANS = (torch.zeros_like(COUNT), COUNT)


def far_pool(stride: int) -> torch.Tensor:
    """`[FAR + 4, stride]`, uninitialised."""
    return torch.empty((FAR + 4) * stride, dtype=torch.bfloat16, device=DEVICE).view(-1, stride)


def near_rows() -> tuple[torch.Tensor, torch.Tensor]:
    """q `[1, 1, 4, DIM]` and keys of 4 units."""
    batch = make_batch([64], heads=1, group=4, dim=DIM, dtype=torch.bfloat16)
    return batch.q.to(DEVICE), batch.keys[batch.slots(0)].to(DEVICE)


def test_far_keys_and_values() -> None:
    ops, (q, rows) = HostOps().ops, near_rows()
    keys = far_pool(UNIT * DIM).view(-1, 1, DIM)
    keys[FAR * UNIT :] = rows
    found = []
    for pool, table in ((rows, NEAR_TABLE), (keys, NEAR_TABLE + FAR)):
        fields = torch.zeros(len(pool) // UNIT, 1, 2, DIM, dtype=pool.dtype, device=DEVICE)
        args = (0.1, Reduction.MAX_SOFTMAX, UNIT)
        results = [
            ops.attend(q, pool, pool, table[:, None], COUNT, COUNT * 4, 0.1, UNIT)[0],
            ops.score_exact(q, pool, Candidates(table, *SPANS), *args),
        ]
        for summary in SUMMARIES.values():
            ops.summarise(summary, pool, fields, table[0].long())
            results.append(fields[table[0].long()])
        found.append(results)
    for near, far in zip(*found, strict=True):
        assert torch.equal(near, far) and not near.isnan().any()


@pytest.mark.parametrize("summary", SUMMARIES.values(), ids=list(SUMMARIES))
def test_far_fields(summary: object) -> None:
    ops, (q, rows) = HostOps().ops, near_rows()
    stride = 2**11 + 2 * DIM
    fields = far_pool(stride).as_strided((FAR + 4, 1, 2, DIM), (stride, 2 * DIM, DIM, 1))
    near = torch.zeros(4, 1, 2, DIM, dtype=torch.bfloat16, device=DEVICE)
    ops.summarise(summary, rows, near, NEAR_TABLE[0].long())
    fields[FAR:] = near
    args = (0.1, Reduction.MAX_SOFTMAX)
    one = ops.score(summary, q, fields, Candidates(NEAR_TABLE + FAR, *SPANS), *args)
    assert torch.equal(one, ops.score(summary, q, near, Candidates(NEAR_TABLE, *SPANS), *args))


def test_far_heads() -> None:
    """Heads 2^30 elements apart, as in a pool whose heads lie outermost."""
    ops, (q, rows) = HostOps().ops, near_rows()
    pool = torch.empty(2**31 + 64 * DIM, dtype=torch.bfloat16, device=DEVICE)
    keys = pool.as_strided((64, 3, DIM), (DIM, 2**30, 1))
    keys[:] = rows
    q = q.expand(1, 3, -1, -1).contiguous()
    table = NEAR_TABLE[:, None].expand(-1, 3, -1)
    out, lse = ops.attend(q, keys, keys, table, COUNT, COUNT * 4, 0.1, UNIT)
    args = (Candidates(NEAR_TABLE, *SPANS), 0.1, Reduction.MAX_SOFTMAX, UNIT)
    scores = ops.score_exact(q, keys, *args)
    for result in (out, lse, scores):
        assert torch.equal(result[:, 0], result[:, 2]) and not result.isnan().any()
