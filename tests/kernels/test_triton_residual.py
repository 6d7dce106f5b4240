"""Records of clusters and of what is left of keys: those of the reference, to the last rounding.

The interpreter truncates bfloat16, so what is left of a key differs there in its last place, and
with it some code and what follows from that. Such records are judged by how near they come.
"""

from dataclasses import fields

import pytest
import torch
from coded import bunches
from sgl_sparsekv.kernels.reference import load as load_reference
from sgl_sparsekv.kernels.triton.launch import interpreted
from sgl_sparsekv.kernels.triton.residual import residual_segments
from triton_kit import DEVICE

from sgl_sparsekv.segment_records import ResidualIndex
from sgl_sparsekv.segments.residual import by_cluster, residuals

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning:triton")
CASES = [  # segment, sub-vectors, H, D, Dv, type
    (64, 4, 2, 64, 64, torch.bfloat16),
    (64, 2, 1, 96, 128, torch.float16),
    (128, 3, 1, 96, 96, torch.float32),
    (64, 1, 1, 80, 64, torch.bfloat16),
]


@pytest.mark.parametrize("case", CASES)
def test_records_are_those_of_the_reference(case: tuple) -> None:
    size, parts, heads, dim, wide, dtype = case
    summary = residuals(size, parts)
    caches = [
        (
            bunches(3 * size, heads, dim, dtype, seed),
            bunches(3 * size, heads, wide, dtype, seed + 7),
        )
        for seed in range(2)
    ]
    caches[0][0][size + 3, 0, 5] = torch.nan
    caches[0][1][size + 4, 0, 6] = -torch.inf
    table = torch.randperm(3 * size // 16)[:, None] * 16 + torch.arange(16)
    table = table.view(1, -1).int()
    jobs = torch.tensor([[0, 1, 2], [0, 2, -1], [0, 0, 0]]).int()
    into = {
        name: torch.full((2, 3, heads, *shape), 77, dtype=kind, device=DEVICE)
        for name, (shape, kind) in summary.shapes(dim, wide).items()
    }
    there = [[x.to(DEVICE) for x in cache] for cache in caches]
    pointers = tuple(torch.tensor([c[i].data_ptr() for c in there], device=DEVICE) for i in (0, 1))
    residual_segments(
        summary, tuple(there[0]), pointers, table.to(DEVICE), jobs.to(DEVICE), into, 16
    )
    into = {name: array.cpu() for name, array in into.items()}
    for array in into.values():
        assert (array[:, 1] == 77).all()
    for layer, (keys, values) in enumerate(caches):
        for _, nth, record in jobs[[0, 2]].tolist():
            slots = table[:, nth * size : (nth + 1) * size].long()
            skips = torch.tensor([16 * (nth == 0)])
            want = summary.build(load_reference().index_segments, keys[slots], values[slots], skips)
            got = {name: array[layer, record] for name, array in into.items()}
            finite = keys[slots[0]].float().nan_to_num(0, 0, 0).movedim(0, 1)
            exact = dtype is not torch.bfloat16 or not interpreted()
            compare(got, {name: array[0] for name, array in want.items()}, finite, exact)


def compare(
    got: dict[str, torch.Tensor], want: dict[str, torch.Tensor], keys: torch.Tensor, exact: bool
) -> None:
    """One record, every array `[H, ...]`, of finite keys `[H, S, D]`."""
    labels = torch.stack((got["labels"] & 15, got["labels"] >> 4), -1).flatten(-2)
    for name, array in zip(("places", "ends"), by_cluster(labels), strict=True):
        assert torch.equal(got[name], array), name
    error, allowed = ((decoded(x) - keys).norm() for x in (got, want))
    assert error <= 1.02 * allowed
    if not exact:
        return
    for name in ("labels", "codes"):
        assert torch.equal(got[name], want[name]), name
    assert torch.allclose(got["scales"], want["scales"], rtol=1e-5)
    for name in ("centroids", "values", "codebooks"):
        assert (got[name].int() - want[name].int()).abs().max() <= 1, name


def decoded(arrays: dict[str, torch.Tensor]) -> torch.Tensor:
    """Stand-ins of the keys of one record."""
    named = {f.name: arrays[f.name][None] for f in fields(ResidualIndex) if f.name in arrays}
    return ResidualIndex(**named, table=torch.zeros(1, 1, dtype=torch.int32)).decoded(0)
