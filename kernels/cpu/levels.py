"""Instruction sets the kernels are built for, and where the built libraries lie."""

import hashlib
import platform
from dataclasses import dataclass
from pathlib import Path

FOLDER = Path(__file__).parent
GLIBC = "2.17"
"""The oldest C library that the kernels run on."""
SOURCES = (
    *("allot.cpp", "attend.cpp", "choose.cpp", "clusters.cpp", "codes.cpp", "cover.cpp"),
    *("estimate.cpp", "index.cpp", "known.cpp", "layers.cpp", "linear.cpp", "sample.cpp"),
    *("score.cpp", "select.cpp", "summarise.cpp", "weigh.cpp"),
)
HEADERS = (
    *("allot.h", "args.h", "cluster_scene.h", "cluster_steps.h", "cluster_tables.h"),
    *("cluster_weights.h", "code_keys.h", "code_scene.h", "code_tables.h", "dot.h", "exact.h"),
    *("kmeans.h", "lookup.h", "order.h", "parallel.h", "permute.h", "runs.h", "sample.h"),
    *("select.h", "shares.h", "simd.h"),
)
FLAGS = (
    *("-std=c++20", "-O3", "-shared", "-fPIC", "-Wall", "-Wextra"),
    *("-fno-exceptions", "-fno-rtti", "-nostdlib", "-nostdlib++"),
)
"""No -ffast-math: NaN, infinities and the order of sums keep their meaning."""


@dataclass(frozen=True)
class Level:
    """One build of the kernels.

    Attributes:
        name: part of the library's file name.
        target: compiler options for the machine.
        needs: flags of /proc/cpuinfo without which it cannot run.
    """

    name: str
    target: tuple[str, ...]
    needs: frozenset[str]


def _x86(name: str, cpu: str, needs: str) -> Level:
    target = ("-target", f"x86_64-linux-gnu.{GLIBC}", f"-mcpu={cpu}")
    return Level(name, target, frozenset(needs.split()))


_AVX2 = "avx2 bmi1 bmi2 f16c fma abm movbe"
_AVX512 = f"{_AVX2} avx512f avx512bw avx512cd avx512dq avx512vl"
LEVELS = {
    "x86_64": (
        _x86("avx512bf16", "x86_64_v4+avx512bf16", f"{_AVX512} avx512_bf16"),
        _x86("avx512", "x86_64_v4", _AVX512),
        _x86("avx2", "x86_64_v3", _AVX2),
        _x86("sse4", "x86_64_v2", "sse4_1 sse4_2 ssse3 popcnt"),
    ),
    "aarch64": (Level("neon", ("-target", f"aarch64-linux-gnu.{GLIBC}"), frozenset()),),
}
"""Machine -> levels, best first."""


def machine_levels() -> tuple[Level, ...]:
    """Levels of this kind of machine, best first; empty on machines without kernels."""
    return LEVELS.get(platform.machine(), ()) if platform.system() == "Linux" else ()


def runnable_levels() -> tuple[Level, ...]:
    """Levels that this CPU can run, best first."""
    flags: set[str] = set()
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("flags"):
            flags.update(line.split(":", 1)[1].split())
            break
    return tuple(level for level in machine_levels() if level.needs <= flags)


def digest(level: Level) -> str:
    """Hash of the sources and compiler options of a level."""
    hasher = hashlib.sha256(" ".join((*FLAGS, *level.target)).encode())
    for name in (*SOURCES, *HEADERS):
        hasher.update((FOLDER / name).read_bytes())
    return hasher.hexdigest()[:12]


def built_library(level: Level, folder: Path = FOLDER) -> Path | None:
    """The library built from the present sources, by any compiler; None when there is none."""
    return next(iter(sorted(folder.glob(f"kernels-{level.name}-{digest(level)}-*.so"))), None)
