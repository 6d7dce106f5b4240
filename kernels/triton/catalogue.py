"""The kernels as a server launches them, compiled ahead of time: no GPU is needed.

for build in compile_all(): build.kernel, build.arch, build.registers, build.local_bytes ...
"""

import re
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from .attend import attend_kernel, merge_kernel
from .fused import BEGIN_UNITS, FORGET_SLOTS, SEAL_UNITS
from .score import score_kernel, summarise_kernel
from .select import select_kernel
from .share import share_kernel
from .step import begin_kernel, forget_kernel, seal_kernel
from .tuning import SELECT_CHUNK, SELECT_WARPS, TUNING, num_splits, tuning_for

ARCHITECTURES = tuple(sorted(TUNING))
"""Compute capabilities that are compiled for."""
WIDTH = 8192
"""Units of the longest context in the catalogue: 128k tokens in units of 16."""
KV_POINTERS = {"q", "keys", "values", "min_max", "mean_std", "out", "out_a", "out_b"}
FLOAT_POINTERS = {"logits", "parts", "part_lse", "split_out", "lse", "lse_a", "lse_b", "share"}
BYTE_POINTERS = {"sealed"}
LONG_POINTERS = {"offsets", "request_rows", "lengths", "slots"}
DOUBLE_POINTERS = {"ratios"}
FLOATS = {"scale", "spread"}
SCALARS = {
    "layer", "width", "widest", "capacity", "entry_scale", "plan_stride", "count", "rows",
}  # fmt: skip


@dataclass(frozen=True)
class Case:
    """One kernel with the constants of one use.

    Attributes:
        name: kernel and use, as the report shows it.
        kernel: the function.
        constants: its compile-time arguments.
        dtype: Triton's name of the cache's element type.
        warps: warps per program.
        float_out: `out` is float32 whatever the cache.
    """

    name: str
    kernel: Any
    constants: dict[str, Any]
    dtype: str = "bf16"
    warps: int = 4
    float_out: bool = False


@dataclass(frozen=True)
class Build:
    """What the compiler made of a case for one architecture.

    Attributes:
        case: name of the case.
        arch: compute capability.
        registers: per thread.
        shared_bytes: per program, static and dynamic.
        local_bytes: stack and spills per thread; 0 is wanted.
        warps: per program.
    """

    case: str
    arch: tuple[int, int]
    registers: int
    shared_bytes: int
    local_bytes: int
    warps: int


def cases(arch: tuple[int, int], head_dim: int, dtype: str = "bf16", group: int = 4) -> list[Case]:
    """Every kernel for one head size."""
    tuned = tuning_for(arch, head_dim)
    blocks = triton.cdiv(WIDTH, tuned.score_units)
    unit = {"UNIT": 16, "DIM": head_dim}
    ranks = {"BLOCKS": blocks, "BLOCK": tuned.score_units, "GROUP": group}
    score = {**unit, **ranks, "IN_STEP": True, "UPCAST": False}
    table = {**ranks, "BLOCKS_PADDED": triton.next_power_of_2(blocks), "MEAN": False}
    page = {"UNITS_PER_PAGE": 4}
    uses = {"quest": (True, False, False), "mean_std": (False, True, False),
            "quest + oracle": (True, False, True)}  # fmt: skip
    found = [
        Case(f"score, {name}", score_kernel,
             {**score, "HAS_MIN_MAX": low, "HAS_MEAN_STD": std, "HAS_EXACT": exact},
             dtype, tuned.score_warps)
        for name, (low, std, exact) in uses.items()
    ]  # fmt: skip
    found += [
        Case("select", select_kernel,
             {**table, "CHUNK": SELECT_CHUNK, "REDUCED": False, "COPY_DENSE": False, "LOGICAL": False},
             dtype, SELECT_WARPS),
        Case("attend", attend_kernel,
             {**unit, "HEADS": 8, "GROUP": group, "VALUE_DIM": head_dim, "UPCAST": False,
              "SPLITS": num_splits(8), "TOKENS": tuned.attend_tokens,
              "STAGES": tuned.attend_stages}, dtype, tuned.attend_warps),
        Case("merge", merge_kernel, {"VALUE_DIM": head_dim, "BLOCK": 16}, dtype),
        Case("summarise, quest", summarise_kernel,
             {**unit, "HAS_MIN_MAX": True, "HAS_MEAN_STD": False}, dtype),
        Case("summarise, mean_std", summarise_kernel,
             {**unit, "HAS_MIN_MAX": False, "HAS_MEAN_STD": True}, dtype),
    ]  # fmt: skip
    if head_dim == 128:  # these do not depend on it
        found += [
            Case("share", share_kernel, table, dtype, float_out=True),
            Case("begin", begin_kernel, {"UNIT": 16, "BLOCK": BEGIN_UNITS, **page}),
            Case("forget", forget_kernel, {"PAGE": 64, "BLOCK": FORGET_SLOTS, **page}),
            Case("seal", seal_kernel, {"BLOCK": SEAL_UNITS}),
        ]
    return found


def compile_case(case: Case, arch: tuple[int, int]) -> Build:
    """Compile one case and read what it needs from the binary."""
    names = case.kernel.arg_names
    signature = {name: _type(name, case) for name in names}
    attributes = {
        (i,): [["tt.divisibility", 16]]
        for i, name in enumerate(names)
        if signature[name].startswith("*") or _is_aligned(name)
    }
    constants = {(names.index(name),): value for name, value in case.constants.items()}
    source = ASTSource(case.kernel, signature, constants, attributes)
    target = GPUTarget("cuda", arch[0] * 10 + arch[1], 32)
    built = triton.compile(source, target=target, options={"num_warps": case.warps})
    registers, stack, local = _resources(built.asm["cubin"])
    return Build(case.name, arch, registers, built.metadata.shared, stack + local, case.warps)


def compile_all(
    head_dims: tuple[int, ...] = (64, 128, 256), dtype: str = "bf16"
) -> Iterator[tuple[int, Build]]:
    """(head size, build) of every case on every architecture."""
    for head_dim in head_dims:
        for arch in ARCHITECTURES:
            for case in cases(arch, head_dim, dtype):
                yield head_dim, compile_case(case, arch)


def _type(name: str, case: Case) -> str:
    """Triton's type of a kernel argument, from its name."""
    if name in case.constants:
        return "constexpr"
    if name == "out" and case.float_out:
        return "*fp32"
    kinds = (
        (KV_POINTERS, "*" + case.dtype), (FLOAT_POINTERS, "*fp32"), (BYTE_POINTERS, "*u8"),
        (LONG_POINTERS, "*i64"), (DOUBLE_POINTERS, "*fp64"), (FLOATS, "fp32"), (SCALARS, "i32"),
    )  # fmt: skip
    for names, kind in kinds:
        if name in names:
            return kind
    return "i32" if name.startswith("stride_") else "*i32"


def _is_aligned(name: str) -> bool:
    """Arguments that are multiples of 16 on every server."""
    return name.startswith("stride_") or name in ("width", "capacity")


def _resources(binary: bytes) -> tuple[int, int, int]:
    """Registers, stack bytes and local bytes of the one kernel in a cubin."""
    tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(binary)
        file.flush()
        text = subprocess.run(
            [tool, "--dump-resource-usage", file.name], capture_output=True, text=True, check=True
        ).stdout
    found = re.search(r"REG:(\d+) STACK:(\d+) SHARED:\d+ LOCAL:(\d+)", text)
    assert found, f"cuobjdump says nothing about resources: {text!r}"
    return int(found[1]), int(found[2]), int(found[3])
