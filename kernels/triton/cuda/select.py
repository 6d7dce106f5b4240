"""Launching `select.cu`: what is compiled into it, what it is given, and where it runs."""

import ctypes
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path

import torch

from sgl_sparsekv.geometry import ceil_div

from ..launch import capability, interpreted
from ..tuning import CUDA_SELECT_THREADS
from . import emulation
from .driver import Kernel
from .nvrtc import compile_cubin

SOURCE = Path(__file__).with_name("select.cu")
NAME = "select_units"
FLOATS = ("logits", "parts")
INTEGERS = (
    "table", "formulas", "begins", "ends", "num_units", "counts", "dense_layers", "physical",
    "logical",
)  # fmt: skip
NUMBERS = ("layer", "blocks", "width", "widest", "stride_table", "entry_scale")


class Arguments(ctypes.Structure):
    """`Arguments` of select.cu."""

    _fields_ = [
        *[(name, ctypes.c_void_p) for name in (*FLOATS, *INTEGERS, "offsets")],
        *[(name, ctypes.c_int32) for name in NUMBERS],
    ]


@dataclass(frozen=True)
class Constants:
    """What is decided when it is compiled.

    Attributes:
        threads: of a block.
        keys: units of a thread, at most.
        group: query heads per KV head.
        block: scores whose maximum and sum lie together.
        mean: reduction over the group by mean, else by maximum.
        paged: for a stock kernel: dense rows are listed too, and offsets are int32, else int64.
    """

    threads: int
    keys: int
    group: int
    block: int
    mean: bool
    paged: bool

    @property
    def defines(self) -> tuple[str, ...]:
        """Options of a compiler."""
        values = {**asdict(self), "bytes": ctypes.sizeof(Arguments)}
        return tuple(f"-DSELECT_{name.upper()}={int(value)}" for name, value in values.items())


def constants_for(
    units: int, group: int = 1, block: int = 1, mean: bool = False, paged: bool = False
) -> Constants:
    """For rows of up to `units` units; see `Constants`."""
    keys = max(1, ceil_div(units, CUDA_SELECT_THREADS))
    return Constants(CUDA_SELECT_THREADS, keys, group, block, mean, paged)


def launch_select(
    constants: Constants,
    heads: int,
    rows: int,
    tensors: Sequence[torch.Tensor | None],
    numbers: Sequence[int],
) -> None:
    """Choose the units of every row and KV head.

    Args:
        constants: what is compiled.
        heads: KV heads.
        rows: of the batch.
        tensors: FLOATS, INTEGERS and offsets in this order; see `Arguments` of select.cu.
        numbers: NUMBERS in this order.

    Raises:
        UnsupportedSetup: the compiler is missing.
        RuntimeError: the driver's, the compiler's or the emulation's own words.
    """
    if not rows:
        return
    kinds = [torch.float32] * len(FLOATS) + [torch.int32] * len(INTEGERS)
    kinds.append(torch.int32 if constants.paged else torch.int64)
    assert [t.dtype for t in tensors if t is not None] == [
        kind for kind, t in zip(kinds, tensors, strict=True) if t is not None
    ]
    arguments = Arguments(*(t if t is None else t.data_ptr() for t in tensors), *numbers)
    if interpreted():
        emulation.run(constants.defines, arguments, heads, rows)
        return
    kernel = compiled(constants, torch.cuda.current_device())
    kernel.launch((heads, rows, 1), constants.threads, arguments)


@cache
def compiled(constants: Constants, device: int) -> Kernel:
    """The kernel on one device; compiled by the first call, which no graph may be capturing."""
    return Kernel(compile_cubin(SOURCE, constants.defines, capability()), NAME)
