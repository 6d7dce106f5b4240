"""CUDA C++ to a binary, by the compiler library that torch brings: no GPU is needed."""

import ctypes
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path

import torch

from sgl_sparsekv.errors import UnsupportedSetup

OPTIONS = ("--std=c++17", "--fmad=true")


@cache
def library() -> ctypes.CDLL:
    """NVRTC of torch's CUDA version.

    Raises:
        UnsupportedSetup: it is not installed.
    """
    name = f"libnvrtc.so.{(torch.version.cuda or '13').partition('.')[0]}"
    try:
        return ctypes.CDLL(name)
    except OSError:
        raise UnsupportedSetup(
            f"compiling CUDA kernels needs {name}: run `pip install nvidia-cuda-nvrtc`"
        ) from None


def compile_cubin(source: Path, defines: Sequence[str], capability: tuple[int, int]) -> bytes:
    """The binary of one file for one architecture.

    Args:
        source: it includes nothing.
        defines: options `-DNAME=VALUE`.
        capability: compute capability.

    Raises:
        UnsupportedSetup: NVRTC is not installed.
        RuntimeError: the compiler's own words.
    """
    nvrtc, program = library(), ctypes.c_void_p()
    architecture = f"--gpu-architecture=sm_{capability[0]}{capability[1]}"
    options = [option.encode() for option in (architecture, *OPTIONS, *defines)]
    text, name = source.read_bytes(), source.name.encode()
    _check(nvrtc.nvrtcCreateProgram(ctypes.byref(program), text, name, 0, None, None))
    try:
        failed = nvrtc.nvrtcCompileProgram(
            program, len(options), (ctypes.c_char_p * len(options))(*options)
        )
        if failed:
            said = _read(nvrtc.nvrtcGetProgramLogSize, nvrtc.nvrtcGetProgramLog, program)
            raise RuntimeError(f"{source.name} does not compile: {said.decode(errors='replace')}")
        return _read(nvrtc.nvrtcGetCUBINSize, nvrtc.nvrtcGetCUBIN, program)
    finally:
        nvrtc.nvrtcDestroyProgram(ctypes.byref(program))


def _read(size_of: Callable[..., int], get: Callable[..., int], program: ctypes.c_void_p) -> bytes:
    size = ctypes.c_size_t()
    _check(size_of(program, ctypes.byref(size)))
    found = ctypes.create_string_buffer(size.value)
    _check(get(program, found))
    return found.raw


def _check(status: int) -> None:
    if status:
        text = library().nvrtcGetErrorString
        text.restype = ctypes.c_char_p
        raise RuntimeError(f"NVRTC: {text(status).decode()}")
