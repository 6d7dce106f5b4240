"""What the interpreter is spared changes nothing of what it computes, or leaves behind."""

import importlib.util
import sys
from collections.abc import Iterator
from unittest.mock import patch

import pytest
import torch
import triton
import triton.language as tl
from sgl_sparsekv.kernels.triton.interpreter import _NEEDED, operands, quicken
from sgl_sparsekv.kernels.triton.interpreter.kinds import remembered
from triton.runtime import interpreter

pytestmark = pytest.mark.skipif(not triton.knobs.runtime.interpret, reason="kernels are compiled")


@triton.jit
def squares(x):
    return tl.sum(x * x, 0)


@triton.jit
def norms_kernel(rows, out, N: tl.constexpr):
    row = tl.program_id(0)
    x = tl.load(rows + row * N + tl.arange(0, N)).to(tl.float32)
    tl.store(out + row, tl.sqrt(squares(x)) + tl.cdiv(row, 2))


@triton.jit
def failing_kernel(rows):
    tl.static_assert(squares(tl.load(rows + tl.arange(0, 4))) is None)


@triton.jit
def operations_kernel(
    left,
    right,
    out,
    BY: tl.constexpr,
    N: tl.constexpr,
    WIDE: tl.constexpr,
    DIVISIBLE: tl.constexpr,
):
    """What kernels do to numbers of a kind: alone, beside constants, in two shapes."""
    rows, columns = tl.arange(0, N)[:, None], tl.arange(0, N)[None, :]
    at = rows * N + columns
    x, y = tl.load(left + at), tl.load(right + at)
    one = tl.load(left + 1)
    to = out + tl.program_id(0) * 16 * N * N + at
    tl.store(to, (x + y).to(WIDE))
    tl.store(to + N * N, (x - BY).to(WIDE))
    tl.store(to + 2 * N * N, (x * one).to(WIDE))
    tl.store(to + 3 * N * N, (x / y).to(WIDE))
    if DIVISIBLE:
        tl.store(to + 4 * N * N, (y / BY).to(WIDE))
    tl.store(to + 5 * N * N, tl.where(x < y, x, 1).to(WIDE))
    tl.store(to + 6 * N * N, tl.where((x >= one) & (y != BY), y, one).to(WIDE))
    tl.store(to + 7 * N * N, (tl.maximum(x, y) + rows).to(WIDE))
    tl.store(to + 8 * N * N, (columns - tl.minimum(x, BY)).to(WIDE))
    tl.store(to + 9 * N * N, (tl.sum(x, 1)[:, None] + tl.max(y, 0)[None, :]).to(WIDE))
    tl.store(to + 10 * N * N, x.to(tl.float32).to(WIDE))
    tl.store(to + 11 * N * N, tl.load(left + at, mask=rows < BY, other=3).to(WIDE))
    tl.store(to + 12 * N * N, (x > 0).to(WIDE))
    tl.store(to + 13 * N * N, tl.cumsum(x, 0).to(WIDE))


@triton.jit
def whole_numbers_kernel(left, right, out, BY: tl.constexpr, N: tl.constexpr):
    at = tl.arange(0, N)
    x, y = tl.load(left + at), tl.load(right + at)
    tl.store(out + at, ((x // BY) + (y % BY)).to(tl.int64))
    tl.store(out + N + at, ((x >> 1) ^ (y & 3)).to(tl.int64))
    tl.store(out + 2 * N + at, ((x | y) << 1).to(tl.int64))
    tl.store(out + 3 * N + at, x.to(tl.float32).to(tl.int64) + x.to(tl.int8).to(tl.int64))
    tl.store(out + 4 * N + at, (~x).to(tl.int64) + (x == y).to(tl.int64))


@triton.jit
def narrowing_kernel(numbers, out, N: tl.constexpr):
    at = tl.arange(0, N)
    tl.store(out + at, tl.load(numbers + at).to(out.dtype.element_ty))


@triton.jit
def adding_kernel(numbers, BY: tl.constexpr):
    tl.store(numbers, tl.load(numbers) + BY)


@pytest.fixture
def whole() -> Iterator[None]:
    """Triton's own interpreter, as it is made."""
    found = importlib.util.find_spec("triton.runtime.interpreter")
    assert found is not None and found.origin is not None
    name = "triton.runtime.interpreter_as_it_is"
    spec = importlib.util.spec_from_file_location(name, found.origin)
    assert spec is not None and spec.loader is not None
    own = importlib.util.module_from_spec(spec)
    with patch.dict(sys.modules, {name: own}):
        spec.loader.exec_module(own)
    names = (*_NEEDED, "TensorHandle")
    with patch.multiple(interpreter, **{name: getattr(own, name) for name in names}):
        for kernel in (operations_kernel, whole_numbers_kernel, narrowing_kernel, adding_kernel):
            interpreter.InterpretedFunction.rewritten_fn.pop(kernel.fn, None)
        with patch.dict(globals(), interpreter_semantic=own.interpreter_semantic):
            yield


def norms() -> torch.Tensor:
    rows = torch.arange(32, dtype=torch.bfloat16).view(4, 8)
    out = torch.empty(4)
    norms_kernel[(4,)](rows, out, N=8)
    return out


def test_results_are_those_of_tritons_own(request: pytest.FixtureRequest) -> None:
    """A launch with functions of ours and of the language inside."""
    quick = norms()
    request.getfixturevalue("whole")
    assert torch.equal(quick, norms())


UNSIGNED = (torch.uint8, torch.uint16, torch.uint32)
"""Triton divides them by no whole number that has a sign."""

KINDS = {
    **dict.fromkeys((torch.int8, torch.int16, torch.int32, torch.int64), torch.int64),
    **dict.fromkeys(UNSIGNED, torch.int64),
    **dict.fromkeys((torch.float16, torch.float32), torch.float32),
    torch.float64: torch.float64,
}
"""Of elements, with what holds them all."""


def numbers(kind: torch.dtype, count: int) -> torch.Tensor:
    """Numbers of a kind, small and large, and what floating point has besides."""
    draw = torch.Generator().manual_seed(5)
    if not kind.is_floating_point:
        low, high = (1, 120) if kind == torch.uint8 else (-60, 60)
        signed = torch.randint(low, high, (count,), generator=draw)
        signed[signed == 0] = 7
        return (signed.abs() if kind in (torch.uint16, torch.uint32) else signed).to(kind)
    x = torch.randn(count, generator=draw, dtype=torch.float64) * 100
    x[:6] = torch.tensor([0.0, -0.0, torch.inf, -torch.inf, torch.nan, 1e-40])
    return x.to(kind)


def operations(kind: torch.dtype, by: float) -> list[torch.Tensor]:
    left, right = numbers(kind, 64), numbers(kind, 64).flip(0).contiguous()
    out = torch.zeros(2, 16, 64, dtype=KINDS[kind])
    wide = {torch.int64: tl.int64, torch.float32: tl.float32, torch.float64: tl.float64}
    divisible = kind not in UNSIGNED or isinstance(by, float)
    operations_kernel[(2,)](
        left, right, out, BY=by, N=8, WIDE=wide[KINDS[kind]], DIVISIBLE=divisible
    )
    results = [out]
    if not kind.is_floating_point and kind not in UNSIGNED:
        whole = torch.zeros(5, 64, dtype=torch.int64)
        whole_numbers_kernel[(1,)](left, right, whole, BY=int(by), N=64)
        results.append(whole)
    return results


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("by", [3, 2.5], ids=str)
@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_operations_are_those_of_tritons_own(
    kind: torch.dtype, by: float, request: pytest.FixtureRequest
) -> None:
    """Every kind of elements, beside itself, a scalar, and constants of Python's two kinds."""
    quick = operations(kind, by)
    request.getfixturevalue("whole")
    for ours, tritons in zip(quick, operations(kind, by), strict=True):
        assert torch.equal(ours.view(torch.int64), tritons.view(torch.int64))


@pytest.mark.parametrize("kinds", [(torch.bfloat16, torch.float32)] * 2, ids=["up", "down"])
def test_every_number_of_16_bits_is_converted_as_by_tritons_own(
    kinds: tuple[torch.dtype, torch.dtype], request: pytest.FixtureRequest
) -> None:
    """Both ways, subnormal numbers and what is no number included."""
    small, large = kinds
    every = torch.arange(-(2**15), 2**15).to(torch.int16).view(small)
    source, target = (every, large) if "up" in request.node.name else (every.to(large), small)
    quick, tritons = (torch.empty(2**16, dtype=target) for _ in range(2))
    for start in range(0, 2**16, 2**12):
        narrowing_kernel[(1,)](source[start:], quick[start:], N=2**12)
    request.getfixturevalue("whole")
    for start in range(0, 2**16, 2**12):
        narrowing_kernel[(1,)](source[start:], tritons[start:], N=2**12)
    bits = torch.int32 if target == large else torch.int16
    assert torch.equal(quick.view(bits), tritons.view(bits))


@pytest.mark.parametrize(
    ("kind", "by"), [(torch.uint8, -1), (torch.int8, 300), (torch.int32, 2**31)], ids=str
)
def test_constants_that_a_kind_does_not_hold(
    kind: torch.dtype, by: int, request: pytest.FixtureRequest
) -> None:
    """Refused at every use, or made wider, as by Triton's own."""

    def said() -> str:
        try:
            adding_kernel[(1,)](torch.zeros(1, dtype=kind), BY=by)
        except Exception as error:
            return str(error)
        return ""

    quick = [said(), said()]
    request.getfixturevalue("whole")
    assert quick == [said()] * 2
    assert quick[0] or kind == torch.int32


def test_constants_are_forgotten_before_they_are_many() -> None:
    constants = interpreter.interpreter_semantic._constants
    count = torch.ones(1, dtype=torch.int32)
    with patch.object(operands, "MOST_CONSTANTS", 3):
        for by in range(10, 20):
            adding_kernel[(1,)](count, BY=by)
            assert 0 < len(constants) <= 3
    assert count.item() == 1 + sum(range(10, 20))


def test_the_language_is_itself_again_after_a_launch_and_after_one_that_failed() -> None:
    before = {name: getattr(tl, name) for name in ("load", "arange", "range", "dot", "reduce")}
    add = tl.tensor.__add__
    norms()
    with pytest.raises(Exception, match="AssertionError"):
        failing_kernel[(1,)](torch.ones(4))
    assert {name: getattr(tl, name) for name in before} == before
    assert tl.tensor.__add__ is add
    assert torch.equal(norms(), norms())


def test_a_function_is_replaced_once_in_a_launch() -> None:
    held = interpreter._patch_lang
    with patch.object(held, "_whole", wraps=held._whole) as replaced:
        norms()
    assert replaced.call_count <= 2, "the kernel's module, and that of the language's functions"


def test_asking_twice_is_asking_once() -> None:
    held = interpreter._patch_lang
    quicken()
    assert interpreter._patch_lang is held


def test_a_triton_made_another_way_is_left_alone() -> None:
    held = interpreter._patch_lang
    with patch.object(interpreter, "_LangPatchScope", None):
        quicken()
        assert interpreter._patch_lang is held


def test_types_are_those_of_the_table() -> None:
    asked: list[object] = []

    def table(kind: object) -> str:
        asked.append(kind)
        return str(kind)

    found = remembered(table)
    pointer = tl.pointer_type(tl.int8)
    kinds = [tl.float32, tl.block_type(tl.float32, [4]), tl.int1, pointer, pointer]
    assert [found(kind) for kind in kinds] == ["fp32", "fp32", "int1", str(pointer), str(pointer)]
    assert len(asked) == 4
