"""What every kernel needs on every architecture, from the compiler: no GPU is needed.

python -m bench.compile_report           writes docs/results/kernels.md (a few minutes)
python -m bench.compile_report --common [sm_90 ...]
                                         prints what tests compare with it, as JSON
"""

import argparse
import hashlib
import json
from collections.abc import Iterable, Sequence
from pathlib import Path

import triton
from sgl_sparsekv.kernels.triton.catalogue import ARCHITECTURES, COMMON, VARIANTS, Variant
from sgl_sparsekv.kernels.triton.compile import (
    LIMITS,
    Build,
    compile_all,
    compile_cuda,
    compile_early,
)

from bench.instructions.listing import disassemble
from bench.instructions.table import table
from bench.instructions.waits import ahead_of_the_turn

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "results" / "kernels.md"
SOURCES = ROOT / "kernels" / "triton"
HEAD = """# What the Triton kernels need

Written by `python -m bench.compile_report`; do not edit. Every kernel that a server launches is
compiled ahead of time for five architectures, and the compiler's own figures are listed: no GPU ran
anything here. [Triton kernels](../triton_kernels.md) says what each does.

| | |
|---|---|
| Triton | {version} |
| kernels/triton, SHA-256 | `{hash}` |
| builds | {builds}, of which {spilling} spill registers to memory |

A cell reads `warps x registers / shared KiB / local bytes / programs`: warps of a program,
registers per thread, shared memory per program, stack and spills per thread, and the programs that
registers, shared memory, warps and program slots of one multiprocessor allow at once. A variant is
head size, element type, tokens per unit, query heads per KV head and reduction. CUDA C++ is
compiled by NVRTC; a program of it is a block. `early` are launches that wait for the one in front
of them (programmatic dependent launch), which older architectures do not know.

"""


NOT_COMPILED = ("__init__.py", "interpreter/*.py")
"""Files of that folder which no build depends on."""


def source_hash() -> str:
    """Hash of the kernels' sources, names and contents."""
    digest = hashlib.sha256()
    found = {path for kind in ("*.py", "*.cu") for path in SOURCES.rglob(kind)}
    for path in sorted(path for path in found if not any(map(path.match, NOT_COMPILED))):
        digest.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()


def named(arch: tuple[int, int]) -> str:
    """An architecture as compilers name it: `sm_90`."""
    return f"sm_{arch[0]}{arch[1]}"


def rows(builds: Iterable[Build], architectures: Sequence[tuple[int, int]]) -> dict[str, list[str]]:
    """Cells of the table's lines: kernel and variant -> one per architecture, "-" if not built."""
    cells: dict[str, list[str]] = {}
    for build in builds:
        v = build.variant
        kind = f"{v.head_dim} {v.dtype} {v.unit} {v.group} {'mean' if v.mean else 'max'}"
        used = f"{build.warps}x{build.registers} / {build.shared_bytes / 1024:.3g}"
        cell = f"{used} / {build.local_bytes} / {build.resident}"
        line = cells.setdefault(f"{build.case} | {kind}", ["-"] * len(architectures))
        line[architectures.index(build.arch)] = cell
    return cells


def builds_of(
    variants: Sequence[Variant], architectures: Sequence[tuple[int, int]] = ARCHITECTURES
) -> list[Build]:
    """Kernels in Triton, as they are where launches start early, then that in CUDA C++."""
    return [
        *compile_all(variants, architectures), *compile_early(variants, architectures),
        *compile_cuda(variants, architectures),
    ]  # fmt: skip


def page(builds: list[Build]) -> str:
    """The whole page."""
    head = HEAD.format(
        version=triton.__version__, hash=source_hash(), builds=len(builds),
        spilling=sum(build.local_bytes > 0 for build in builds),
    )  # fmt: skip
    names = " | ".join(map(named, ARCHITECTURES))
    lines = [f"| kernel | variant | {names} |", "|---" * (2 + len(ARCHITECTURES)) + "|"]
    lines += (
        f"| {kind} | {' | '.join(cells)} |" for kind, cells in rows(builds, ARCHITECTURES).items()
    )
    return head + "\n".join(lines) + "\n"


def main() -> None:
    """Write the page, or print the builds of the common variant."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    told = "print the common variant's builds on these (default: all) architectures"
    known = [named(arch) for arch in ARCHITECTURES]
    parser.add_argument("--common", nargs="*", choices=known, metavar="sm_NN", help=told)
    wanted: list[str] | None = parser.parse_args().common
    if wanted is None:
        PAGE.parent.mkdir(exist_ok=True)
        PAGE.write_text(page(builds_of(VARIANTS)))
        print(PAGE)
        return
    chosen = [arch for arch in ARCHITECTURES if named(arch) in (wanted or known)]
    builds = builds_of([COMMON], chosen)
    found = {
        "triton": triton.__version__,
        "hash": source_hash(),
        "rows": rows(builds, chosen),
        "instructions": table(),
        "builds": [
            {
                "name": f"{build.case} {named(build.arch)}",
                "local_bytes": build.local_bytes,
                "shared_bytes": build.shared_bytes,
                "shared_limit": LIMITS[build.arch].shared_bytes - 1024,
                "resident": build.resident,
            }
            for build in builds
        ],
        "early": {
            f"{build.case} {named(build.arch)}": ahead_of_the_turn(disassemble(build.binary))
            for build in builds
            if build.case.endswith(", early")
        },
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main()
