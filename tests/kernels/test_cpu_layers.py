"""Matrices, norms, gates and rotary embeddings give what the reference gives, row by row."""

from collections.abc import Iterator

import pytest
import torch
from cases import EPS
from sgl_sparsekv.kernels.cpu.ops import CpuOps
from sgl_sparsekv.kernels.reference import load as load_reference

from sgl_sparsekv.layer_ops import LayerOps

REFERENCE = load_reference()
DTYPES = [torch.bfloat16, torch.float16, torch.float32]
HALVES = DTYPES[:2]
EPSILON = 1e-6


@pytest.fixture
def threads() -> Iterator[int]:
    """Restores torch's thread count."""
    before = torch.get_num_threads()
    yield before
    torch.set_num_threads(before)


def random(*shape: int, dtype: torch.dtype, seed: int = 0) -> torch.Tensor:
    """Rows `[rows, n]` that are part of longer ones, which are NaN."""
    *rows, n = shape
    drawn = torch.randn(*shape, generator=torch.Generator().manual_seed(seed))
    wide = torch.full((*rows, n + 5), torch.nan, dtype=dtype)
    wide[..., :n] = drawn.to(dtype)
    return wide[..., :n]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "shape", [(1, 896, 1152), (8, 100, 130), (3, 37, 5), (2, 1, 1), (5, 64, 64), (7, 129, 65)]
)
@pytest.mark.parametrize("with_bias", [True, False])
def test_a_matrix_rounds_once(
    ops: CpuOps, shape: tuple[int, int, int], dtype: torch.dtype, with_bias: bool
) -> None:
    """The sum is float32's; every number of rows, inputs and outputs that leaves a rest."""
    rows, inputs, outputs = shape
    x, weight = random(rows, inputs, dtype=dtype), random(outputs, inputs, dtype=dtype, seed=1)
    bias = torch.randn(outputs).to(dtype) if with_bias else None
    exact = x.double() @ weight.double().T + (bias.double() if bias is not None else 0)
    terms = x.double().abs() @ weight.double().abs().T + (bias.double().abs() if with_bias else 0)
    allowed = exact.abs() * EPS[dtype] + (inputs + 1) * EPS[torch.float32] * terms * 1.01
    got = ops.linear(x, weight, bias)
    assert got.shape == (rows, outputs) and got.dtype is dtype and got.is_contiguous()
    assert ((got.double() - exact).abs() <= allowed).all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(1, 896), (300, 100), (3, 37), (2, 1)])
def test_a_norm_is_of_the_sum_before_it_rounds(
    ops: CpuOps, shape: tuple[int, int], dtype: torch.dtype
) -> None:
    """The sum itself is torch's to the bit."""
    x, residual = random(*shape, dtype=dtype), random(*shape, dtype=dtype, seed=1)
    weight = 1 + torch.randn(shape[1]).to(dtype) / 8
    out, total = ops.add_norm(x, residual, weight, EPSILON)
    assert torch.equal(total, (x.float() + residual.float()).to(dtype))
    for got, of in ((out, x.float() + residual.float()), (ops.norm(x, weight, EPSILON), x)):
        squares = of.double().square().mean(-1, keepdim=True)
        want = of.double() * torch.rsqrt(squares + EPSILON) * weight.double()
        # A mean of D squares under a root, whose error halves; five more operations.
        allowed = want.abs() * (EPS[dtype] + (shape[1] / 2 + 5) * EPS[torch.float32])
        assert got.dtype is dtype and ((got.double() - want).abs() <= allowed * 1.01).all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(1, 4864), (70, 600), (3, 37), (1, 1)])
def test_a_gate_rounds_twice(ops: CpuOps, shape: tuple[int, int], dtype: torch.dtype) -> None:
    """What it opens to, and what it lets through; far below zero it is shut, far above open."""
    rows, dim = shape
    x = random(rows, 2 * dim, dtype=dtype)
    x[0, 0] = -60000.0
    x[-1, dim - 1] = 60000.0 if dim > 1 else -60000.0
    gate, up = x.double().chunk(2, dim=-1)
    want = gate * torch.sigmoid(gate) * up
    got = ops.gate(x).double()
    # Some instruction sets raise two to no power beyond 127: what is shut lets so much through.
    shut = (gate * up).abs() * 2.0**-127 * (1 + 3 * EPS[dtype])
    assert got[0, 0].abs() <= shut[0, 0] + torch.finfo(dtype).smallest_normal
    finite = want.abs() <= torch.finfo(dtype).max
    smallest = torch.finfo(dtype).smallest_normal * (1 + up.abs()) + shut
    allowed = want.abs() * (2.01 * EPS[dtype] + 16 * EPS[torch.float32]) + smallest
    assert ((got - want).abs() <= allowed)[finite].all()
    assert got[~finite].isinf().all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "shape", [(1, 14, 2, 64, 64), (40, 4, 4, 80, 80), (3, 2, 1, 96, 32), (2, 1, 1, 10, 6)]
)
def test_rotary_embeddings_are_torchs_to_the_bit(
    ops: CpuOps, shape: tuple[int, int, int, int, int], dtype: torch.dtype
) -> None:
    """Heads whose angles leave a rest, from one tensor that holds q, k and v of a row."""
    rows, q_heads, k_heads, dim, rotary = shape
    whole = random(rows, (q_heads + 2 * k_heads) * dim, dtype=dtype)
    q = whole[:, : q_heads * dim].view(rows, q_heads, dim)
    k = whole[:, q_heads * dim : (q_heads + k_heads) * dim].view(rows, k_heads, dim)
    angles = torch.rand(100, rotary // 2) * 6
    table = torch.cat((angles.cos(), angles.sin()), dim=-1).to(dtype)
    positions = torch.randint(100, (rows,))
    got = ops.rotate(q, k, table, positions)
    for one, other in zip(got, REFERENCE.rotate(q, k, table, positions), strict=True):
        if dtype in HALVES:
            assert torch.equal(one, other)
        else:
            assert torch.allclose(one, other, rtol=0, atol=4 * EPS[dtype] * q.abs().max().item())


def everything(ops: LayerOps, x: torch.Tensor) -> list[torch.Tensor]:
    """What every op makes of rows `[rows, 192]`."""
    dtype, rows = x.dtype, len(x)
    weight, norm = random(150, 192, dtype=dtype, seed=1), torch.linspace(0.5, 2, 192).to(dtype)
    table = torch.linspace(-1, 1, 64).to(dtype).repeat(4, 1)
    heads = x.view(rows, 3, 64)
    positions = torch.full((rows,), 3)
    return [
        ops.linear(x, weight, None),
        *ops.add_norm(x, x, norm, EPSILON),
        ops.norm(x, norm, EPSILON),
        ops.gate(x),
        *ops.rotate(heads, heads[:, :2], table, positions),
    ]


@pytest.mark.parametrize("dtype", HALVES)
def test_bits_do_not_depend_on_batch_or_threads(
    ops: CpuOps, dtype: torch.dtype, threads: int
) -> None:
    """As many rows as one call of a matrix takes, and one at a time."""
    x = torch.randn(8, 192, generator=torch.Generator().manual_seed(2)).to(dtype)
    together = everything(ops, x)
    for count in (1, 3):
        torch.set_num_threads(count)
        assert all(map(torch.equal, together, everything(ops, x)))
    torch.set_num_threads(threads)
    for row in range(len(x)):
        alone = everything(ops, x[row : row + 1])
        assert all(
            torch.equal(one[row], other[0]) for one, other in zip(together, alone, strict=True)
        )


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_reference_says_the_same(ops: CpuOps, dtype: torch.dtype) -> None:
    """Up to where one of two roundings falls the other way."""
    x = torch.randn(8, 192, generator=torch.Generator().manual_seed(3)).to(dtype)
    for one, other in zip(everything(ops, x), everything(REFERENCE, x), strict=True):
        assert one.dtype is other.dtype is dtype and one.shape == other.shape
        size = other.float().abs().max() * 4 * EPS[dtype] + 192 * 2**-22
        assert (one.float() - other.float()).abs().max() <= size


def test_no_rows_are_nothing(ops: CpuOps) -> None:
    """An idle step of a rank has none."""
    results = everything(ops, torch.empty(0, 192, dtype=torch.bfloat16))
    assert all(len(one) == 0 for one in results)


def test_tensors_of_several_dtypes_are_refused(ops: CpuOps) -> None:
    """As is a row that is not one run of memory."""
    x, weight = torch.zeros(1, 16), torch.zeros(4, 16)
    with pytest.raises(ValueError, match="dtype"):
        ops.linear(x.bfloat16(), weight, None)
    with pytest.raises(ValueError, match="x must be contiguous"):
        ops.linear(torch.zeros(1, 32)[:, ::2], weight, None)
