"""Launching a binary by the CUDA driver's own interface: what torch and Triton call as well."""

import ctypes
from functools import cache

import torch

_HANDLE, _COUNT = ctypes.c_void_p, ctypes.c_uint
PROTOTYPES = {
    "cuModuleLoadData": (ctypes.POINTER(_HANDLE), ctypes.c_char_p),
    "cuModuleGetFunction": (ctypes.POINTER(_HANDLE), _HANDLE, ctypes.c_char_p),
    "cuLaunchKernel": (
        _HANDLE, *[_COUNT] * 7, _HANDLE, ctypes.POINTER(_HANDLE), ctypes.POINTER(_HANDLE)
    ),
    "cuGetErrorString": (ctypes.c_int, ctypes.POINTER(ctypes.c_char_p)),
}  # fmt: skip
"""Functions that are called and the types of their arguments, as `cuda.h` has them."""


@cache
def library() -> ctypes.CDLL:
    """The driver that torch uses."""
    found = ctypes.CDLL("libcuda.so.1")
    for name, types in PROTOTYPES.items():
        getattr(found, name).argtypes = types
    return found


class Kernel:
    """A kernel of a binary, on the current device.

    Args:
        binary: cubin for this device.
        name: of the kernel, declared `extern "C"`.

    Raises:
        RuntimeError: the driver's own words.
    """

    def __init__(self, binary: bytes, name: str) -> None:
        torch.cuda.synchronize()  # makes the device's context this thread's
        module, self._function = _HANDLE(), _HANDLE()
        _check(library().cuModuleLoadData(ctypes.byref(module), binary))
        _check(library().cuModuleGetFunction(ctypes.byref(self._function), module, name.encode()))

    def launch(self, grid: tuple[int, int, int], threads: int, arguments: ctypes.Structure) -> None:
        """Put it on torch's current stream; recorded in a CUDA graph where one is being captured.

        Args:
            grid: blocks.
            threads: of a block.
            arguments: the kernel's one argument, by value: it is copied before this returns.

        Raises:
            RuntimeError: the driver's own words.
        """
        where = (_HANDLE * 1)(ctypes.addressof(arguments))
        stream = torch.cuda.current_stream().cuda_stream
        _check(
            library().cuLaunchKernel(self._function, *grid, threads, 1, 1, 0, stream, where, None)
        )


def _check(status: int) -> None:
    if status:
        text = ctypes.c_char_p()
        library().cuGetErrorString(status, ctypes.byref(text))
        raise RuntimeError(f"CUDA driver: {(text.value or b'unknown error').decode()} ({status})")
