"""Build the CPU kernels: `python -m sgl_sparsekv.kernels.cpu.build`.

The compiler is the clang inside the PyPI wheel `ziglang`, so a machine without a compiler can
build. A library's name holds the hash of its sources, its options and the compiler's version;
one that exists is not built again, and those of other sources are removed.
"""

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from sgl_sparsekv.errors import UnsupportedSetup

from .levels import FLAGS, FOLDER, SOURCES, Level, digest, machine_levels


def compiler_version() -> str:
    """Version of the installed `ziglang` wheel.

    Raises:
        UnsupportedSetup: it is not installed.
    """
    try:
        return version("ziglang")
    except PackageNotFoundError:
        raise UnsupportedSetup(
            "building the CPU kernels needs the package ziglang: run `pip install ziglang`"
        ) from None


def build_level(level: Level, folder: Path = FOLDER) -> Path:
    """Build one level into `folder` unless it is there; return the library.

    Raises:
        UnsupportedSetup: the compiler is missing or failed; its message is included.
    """
    target = folder / f"kernels-{level.name}-{digest(level)}-zig{compiler_version()}.so"
    if target.exists():
        return target
    partial = target.with_suffix(".partial.so")
    sources = [str(FOLDER / name) for name in SOURCES]
    command = [sys.executable, "-m", "ziglang", "c++", *FLAGS, *level.target]
    result = subprocess.run(
        [*command, "-o", str(partial), *sources], capture_output=True, text=True, check=False
    )
    if result.returncode:
        raise UnsupportedSetup(f"compiling the CPU kernels ({level.name}) failed:\n{result.stderr}")
    partial.replace(target)
    for stale in folder.glob(f"kernels-{level.name}-*.so"):
        if stale != target:
            stale.unlink()
    return target


def main() -> None:
    """Build every level of this machine, one on each core, and print where each lies."""
    levels = machine_levels()
    if not levels:
        raise SystemExit("there are no CPU kernels for this machine")
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for path in pool.map(build_level, levels):
            print(path)


if __name__ == "__main__":
    main()
