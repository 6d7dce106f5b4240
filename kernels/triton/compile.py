"""Compile the catalogue ahead of time and say what each kernel needs: no GPU is needed.

for build in compile_all(): build.case, build.arch, build.registers, build.local_bytes ...
"""

import re
import subprocess
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from .catalogue import ARCHITECTURES, COMMON, EARLY, VARIANTS, Case, Variant, cases, early_cases
from .cuda.nvrtc import compile_cubin
from .cuda.select import SOURCE, constants_for
from .launch import interpreted
from .tuning import CUDA_SELECT_UNITS

KV_POINTERS = {
    "q", "keys", "values", "queries", "min_max", "mean_std", "landmarks", "misfits", "codebooks",
    "planes", "own_planes", "out", "out_a", "out_b",
}  # fmt: skip
FLOAT_POINTERS = {
    "logits", "parts", "part_lse", "lse", "lse_a", "lse_b", "ranks", "scales", "bounds",
    "masses", "asked", "goals", "known", "lses", "lowests",
    "highests", "thresholds", "shares",
}  # fmt: skip
BYTE_POINTERS = {"sealed", "codes", "labels", "centroids", "read"}
LONG_POINTERS = {"offsets", "request_rows", "lengths", "slots", "key_pointers"}
DOUBLE_POINTERS = {"ratios", "sums"}
FLOATS = {"scale", "spread", "share"}
SCALARS = {
    "layer", "view_layer", "nth", "layers", "width", "widest", "capacity", "entry_scale",
    "plan_stride", "count", "rows", "chunks", "blocks", "heads", "ranked", "segments", "kind",
    "size", "pages", "most", "most_rows", "skip", "room",
}  # fmt: skip
REGISTERS, REGISTER_GRAIN, WARP = 65_536, 8, 32


@dataclass(frozen=True)
class Limits:
    """What programs of one multiprocessor share (CUDA programming guide, compute capabilities).

    Attributes:
        warps: resident at once.
        programs: resident at once.
        shared_bytes: of the multiprocessor; each program takes 1 KiB more than it asks for, and
            none may ask for more than all but that.
    """

    warps: int
    programs: int
    shared_bytes: int


LIMITS = {
    (8, 0): Limits(64, 32, 164 << 10),
    (8, 9): Limits(48, 24, 100 << 10),
    (9, 0): Limits(64, 32, 228 << 10),
    (10, 0): Limits(64, 32, 228 << 10),
    (12, 0): Limits(48, 24, 100 << 10),
}


@dataclass(frozen=True)
class Build:
    """What the compiler made of a case for one architecture.

    Attributes:
        case: name of the case.
        variant: kind of server.
        arch: compute capability.
        registers: per thread.
        shared_bytes: per program, static and dynamic.
        local_bytes: stack and spills per thread; 0 is wanted.
        warps: per program.
        binary: the cubin.
    """

    case: str
    variant: Variant
    arch: tuple[int, int]
    registers: int
    shared_bytes: int
    local_bytes: int
    warps: int
    binary: bytes = field(repr=False)

    @property
    def resident(self) -> int:
        """Programs that fit one multiprocessor at once; 0 if one alone does not."""
        limits = LIMITS[self.arch]
        per_warp = -(-self.registers // REGISTER_GRAIN) * REGISTER_GRAIN * WARP
        return min(
            limits.programs,
            limits.warps // self.warps,
            REGISTERS // per_warp // self.warps,
            limits.shared_bytes // (self.shared_bytes + 1024),
        )


def compile_case(case: Case, arch: tuple[int, int]) -> Build:
    """Compile one case and read what it needs from the binary."""
    assert not interpreted(), "Triton's own functions must not be decorated for the interpreter"
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
    options = {"num_warps": case.warps, "maxnreg": case.registers, "launch_pdl": case.early}
    built = triton.compile(source, target=target, options=options)
    binary = built.asm["cubin"]
    registers, stack, local, _ = _resources(binary)
    return Build(
        case.name, case.variant, arch, registers, built.metadata.shared, stack + local, case.warps,
        binary,
    )  # fmt: skip


def compile_all(
    variants: Iterable[Variant] = VARIANTS, architectures: Iterable[tuple[int, int]] = ARCHITECTURES
) -> Iterator[Build]:
    """Every case of some variants on some architectures."""
    for variant, arch in product(variants, architectures):
        for case in cases(arch, variant):
            yield compile_case(case, arch)


def compile_early(
    variants: Iterable[Variant] = VARIANTS, architectures: Iterable[tuple[int, int]] = EARLY
) -> Iterator[Build]:
    """The launches of a layer as they are where they start early."""
    for variant, arch in product(variants, architectures):
        for case in early_cases(arch, variant) if arch in EARLY else ():
            yield compile_case(case, arch)


def cuda_build(
    arch: tuple[int, int], units: int, variant: Variant = COMMON, paged: bool = False
) -> Build:
    """`cuda/select.cu`, compiled for rows of up to `units` units.

    Raises:
        UnsupportedSetup: NVRTC is not installed.
    """
    block = variant.tuning(arch).score_units
    constants = constants_for(units, variant.group, block, variant.mean, paged)
    binary = compile_cubin(SOURCE, constants.defines, arch)
    registers, stack, local, shared = _resources(binary)
    name = f"select in CUDA C++, {constants.keys} keys{', stock pages' if paged else ''}"
    warps = constants.threads // WARP
    return Build(name, variant, arch, registers, shared, stack + local, warps, binary)


def compile_cuda(
    variants: Iterable[Variant] = VARIANTS, architectures: Iterable[tuple[int, int]] = ARCHITECTURES
) -> Iterator[Build]:
    """It for the longest rows that it serves; for COMMON also for those of 128k in units of 64."""
    for variant, arch in product(variants, architectures):
        for units in (2049, CUDA_SELECT_UNITS) if variant == COMMON else (CUDA_SELECT_UNITS,):
            yield cuda_build(arch, units, variant, paged=variant.unit == 64)


def _type(name: str, case: Case) -> str:
    """Triton's type of a kernel argument, from its name."""
    if name in case.constants:
        return "constexpr"
    if name in case.types:
        return case.types[name].format(case.variant.dtype)
    if name == "out" and case.float_out:
        return "*fp32"
    kinds = (
        (KV_POINTERS, "*" + case.variant.dtype), (FLOAT_POINTERS, "*fp32"),
        (BYTE_POINTERS, "*u8"), (LONG_POINTERS, "*i64"), (DOUBLE_POINTERS, "*fp64"),
        (FLOATS, "fp32"), (SCALARS, "i32"),
    )  # fmt: skip
    for names, kind in kinds:
        if name in names:
            return kind
    return "i32" if name.startswith("stride_") else "*i32"


def _is_aligned(name: str) -> bool:
    """Arguments that are multiples of 16 on every server."""
    return name.startswith("stride_") or name in ("width", "capacity", "room")


def _resources(binary: bytes) -> tuple[int, int, int, int]:
    """Registers, stack, local and static shared bytes of the one kernel in a cubin."""
    tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(binary)
        file.flush()
        text = subprocess.run(
            [tool, "--dump-resource-usage", file.name], capture_output=True, text=True, check=True
        ).stdout
    found = re.search(r"REG:(\d+) STACK:(\d+) SHARED:(\d+) LOCAL:(\d+)", text)
    assert found, f"cuobjdump says nothing about resources: {text!r}"
    return int(found[1]), int(found[2]), int(found[4]), int(found[3])
