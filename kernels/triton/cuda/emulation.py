"""`select.cu` on the CPU: the same source, thread by thread, see `emulation.h`."""

import atexit
import ctypes
import hashlib
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from functools import cache
from importlib.util import find_spec
from pathlib import Path

from sgl_sparsekv.errors import UnsupportedSetup

SOURCE = Path(__file__).with_name("emulation.cpp")
FLAGS = (
    *("-std=c++20", "-O2", "-shared", "-fPIC", "-fvisibility=hidden", "-Wall", "-Wextra"),
    *("-Wno-unknown-pragmas", "-fno-exceptions", "-fno-rtti", "-nostdlib++"),
)
order = 0
"""In which warps take turns: 0 ascending, 1 descending, else shuffled by it. Results depend on it
where a barrier is missing."""


def run(defines: Sequence[str], arguments: ctypes.Structure, heads: int, rows: int) -> None:
    """Every block of a grid, over tensors of the host.

    Raises:
        UnsupportedSetup: the compiler is missing.
        RuntimeError: it does not compile, or threads wait for some that do not come.
    """
    wrong = _library(tuple(defines)).emulate(ctypes.byref(arguments), heads, rows, order)
    if wrong:
        raise RuntimeError(f"select.cu: {wrong.decode()}")


def check_machine() -> None:
    """Refuse a machine that cannot compile.

    Raises:
        UnsupportedSetup: in one sentence.
    """
    if find_spec("ziglang") is None:
        raise UnsupportedSetup(
            "emulating CUDA kernels needs the package ziglang: run `pip install ziglang`"
        )


@cache
def _library(defines: tuple[str, ...]) -> ctypes.CDLL:
    check_machine()
    texts = [path.read_text() for path in sorted(SOURCE.parent.glob("*.[ch]*"))]
    digest = hashlib.sha256(repr((defines, texts)).encode()).hexdigest()
    target = _folder() / f"{digest[:12]}.so"
    command = [sys.executable, "-m", "ziglang", "c++", *FLAGS, *defines, str(SOURCE)]
    done = subprocess.run(
        [*command, "-o", str(target)], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise RuntimeError(f"emulating select.cu: {done.stderr}")
    library = ctypes.CDLL(str(target))
    library.emulate.restype = ctypes.c_char_p
    return library


@cache
def _folder() -> Path:
    """Where libraries lie as long as this process lives."""
    folder = Path(tempfile.mkdtemp(prefix="sparsekv-emulation-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder
