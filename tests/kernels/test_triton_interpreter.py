"""What the interpreter is spared changes nothing of what it computes, or leaves behind."""

from collections.abc import Iterator
from unittest.mock import patch

import pytest
import torch
import triton
import triton.language as tl
from sgl_sparsekv.kernels.triton.interpreter import Replacement, quicken, remembered
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


@pytest.fixture
def whole() -> Iterator[None]:
    """Triton's own interpreter, as it was made."""
    held = interpreter._patch_lang
    assert isinstance(held, Replacement)
    with patch.object(interpreter, "_patch_lang", held._whole):
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
