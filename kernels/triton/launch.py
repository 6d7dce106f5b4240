"""What a launch needs to know: the machine, its constants, and types."""

from functools import cache

import torch

import triton
from sgl_sparsekv.errors import UnsupportedSetup

from .tuning import Tuning, num_splits, select_by, starts_early, tuning_for

OLDEST = (8, 0)
"""Oldest compute capability: bf16 matrix units and asynchronous copies."""
HEAD_DIMS = (64, 80, 96, 128, 192, 256)
"""Head sizes that are compiled and checked."""
DTYPES = (torch.bfloat16, torch.float16, torch.float32)
"""Element types of queries and cache."""
INTERPRETED_SPLITS = 4
"""Splits of one row and KV head under the interpreter."""


def interpreted() -> bool:
    """Whether kernels run in Triton's interpreter (`TRITON_INTERPRET=1`)."""
    return bool(triton.knobs.runtime.interpret)


@cache
def capability() -> tuple[int, int]:
    """Compute capability of the current GPU; of the oldest one under the interpreter."""
    if torch.cuda.is_available():
        major, minor = torch.cuda.get_device_capability()
        return major, minor
    return OLDEST


@cache
def processors() -> int:
    """Multiprocessors of the current GPU; few under the interpreter, so that programs loop."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_properties(None).multi_processor_count
    return 2


def tuned_bytes(dtype: torch.dtype) -> int:
    """Bytes per element that block shapes are chosen by: under the interpreter, which takes longer
    for more and smaller blocks, those of 16-bit elements."""
    return 2 if interpreted() else dtype.itemsize


def tuning(head_dim: int, dtype: torch.dtype) -> Tuning:
    """Constants for this machine."""
    return tuning_for(capability(), head_dim, tuned_bytes(dtype))


def splits(heads: int) -> int:
    """Splits of one row and KV head on this machine: as many fill a GPU, few under the interpreter,
    which takes as long for one that has nothing to do as for any short program."""
    return INTERPRETED_SPLITS if interpreted() else num_splits(heads)


def selects_by_cuda(units: int) -> bool:
    """Whether `cuda/select.cu` serves rows of up to `units` units on this machine."""
    return select_by(capability(), units) == "cuda"


def early() -> dict[str, bool]:
    """What is said to a layer's launches beside their arguments, on this machine."""
    if interpreted() or not starts_early(capability()):
        return {}
    return {"EARLY": True, "launch_pdl": True}


def check_machine() -> None:
    """Refuse a machine that cannot run the kernels.

    Raises:
        UnsupportedSetup: in one sentence.
    """
    if interpreted():
        return
    if not torch.cuda.is_available():
        raise UnsupportedSetup(
            "device 'triton' needs an NVIDIA GPU and none was found; use --sparsekv-device cpu"
        )
    if capability() < OLDEST:
        raise UnsupportedSetup(
            f"device 'triton' needs compute capability {OLDEST[0]}.{OLDEST[1]} or newer, this GPU "
            f"has {capability()[0]}.{capability()[1]}; use --sparsekv-device reference"
        )


def check_shape(head_dim: int, v_head_dim: int, dtype: torch.dtype) -> None:
    """Refuse shapes that no kernel was checked for.

    Raises:
        UnsupportedSetup: in one sentence.
    """
    for name, size in (("head_dim", head_dim), ("v_head_dim", v_head_dim)):
        if size not in HEAD_DIMS:
            raise UnsupportedSetup(
                f"device 'triton' serves {name} {', '.join(map(str, HEAD_DIMS))}, this model has "
                f"{size}; use --sparsekv-device reference"
            )
    if dtype not in DTYPES:
        raise UnsupportedSetup(
            f"device 'triton' serves a KV cache of bfloat16, float16 or float32, this one is "
            f"{dtype}; use --kv-cache-dtype auto"
        )
