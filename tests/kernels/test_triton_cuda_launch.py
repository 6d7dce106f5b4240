"""CUDA C++ without a GPU: what the driver is told, and what the compiler says."""

import ctypes
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import triton
from sgl_sparsekv.kernels.triton.cuda import driver, nvrtc, select
from sgl_sparsekv.kernels.triton.cuda.select import Arguments, Constants, launch_select

from sgl_sparsekv.errors import UnsupportedSetup

HEADER = Path(triton.__file__).parent / "backends" / "nvidia" / "include" / "cuda.h"
KINDS = {
    "CUfunction": ctypes.c_void_p, "CUmodule": ctypes.c_void_p, "CUstream": ctypes.c_void_p,
    "CUmodule *": ctypes.POINTER(ctypes.c_void_p), "CUfunction *": ctypes.POINTER(ctypes.c_void_p),
    "void **": ctypes.POINTER(ctypes.c_void_p), "unsigned int": ctypes.c_uint,
    "const void *": ctypes.c_char_p, "const char *": ctypes.c_char_p,
    "const char **": ctypes.POINTER(ctypes.c_char_p), "CUresult": ctypes.c_int,
}  # fmt: skip
"""C type -> how it is passed."""
CONSTANTS = Constants(threads=64, keys=2, group=4, block=32, mean=True, paged=False)


def test_prototypes_are_those_of_the_drivers_header() -> None:
    text = HEADER.read_text(errors="replace")
    for name, types in driver.PROTOTYPES.items():
        found = re.search(rf"CUresult CUDAAPI {name}\(([^;]*?)\);", text)
        assert found, name
        declared = [re.sub(r"\s*\w+$", "", " ".join(one.split())) for one in found[1].split(",")]
        assert [KINDS[kind] for kind in declared] == list(types), name


def test_arguments_are_those_of_the_source_in_their_order() -> None:
    """Their size is checked by the compiler."""
    (body,) = re.findall(r"struct Arguments \{(.*?)\n\};", select.SOURCE.read_text(), re.S)
    declared = [
        name for line in re.sub(r"//.*", "", body).split(";") for name in re.findall(r"\w+", line)
        if name not in ("const", "float", "int", "Offset")
    ]  # fmt: skip
    assert declared == [name for name, _ in Arguments._fields_]


class FakeDriver:
    """Stands in for the CUDA driver: keeps what it is told."""

    def __init__(self) -> None:
        self.images: list[bytes] = []
        self.launches: list[tuple[Any, ...]] = []

    def cuModuleLoadData(self, module: Any, image: bytes) -> int:
        self.images.append(image)
        module._obj.value = 11
        return 0

    def cuModuleGetFunction(self, function: Any, module: Any, name: bytes) -> int:
        assert module.value == 11 and name in self.images[-1]
        function._obj.value = 22
        return 0

    def cuLaunchKernel(self, function: Any, *numbers: Any) -> int:
        *where, stream, parameters, extra = numbers
        given = Arguments.from_buffer_copy(
            ctypes.string_at(parameters[0], ctypes.sizeof(Arguments))
        )
        self.launches.append((function.value, *where, stream, extra, given))
        return 700 if given.layer == 99 else 0

    def cuGetErrorString(self, status: int, text: Any) -> int:
        text._obj.value = b"an illegal memory access was encountered"
        return 0


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> FakeDriver:
    """As if there were a GPU of compute capability 9.0."""
    found = FakeDriver()
    monkeypatch.setattr(driver, "library", lambda: found)
    monkeypatch.setattr(select, "interpreted", lambda: False)
    monkeypatch.setattr(select, "capability", lambda: (9, 0))
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    stream = SimpleNamespace(cuda_stream=33)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: stream)
    select.compiled.cache_clear()
    return found


def tensors() -> list[torch.Tensor | None]:
    """What a launch is given, without logical units."""
    floats = [torch.zeros(8) for _ in select.FLOATS]
    integers = [torch.zeros(8, dtype=torch.int32) for _ in select.INTEGERS[:-1]]
    return [*floats, *integers, None, torch.zeros(8, dtype=torch.int64)]


def test_a_launch_is_bound_as_the_driver_wants_it(fake: FakeDriver) -> None:
    """Compiled and loaded once, on torch's stream, with one argument by value."""
    given, numbers = tensors(), (3, 5, 128, 17, 256, 1)
    for _ in range(2):
        launch_select(CONSTANTS, 8, 6, given, numbers)
    assert len(fake.images) == 1 and fake.images[0].startswith(b"\x7fELF")
    assert len(fake.launches) == 2
    *numbers_seen, arguments = fake.launches[0]
    assert numbers_seen == [22, 8, 6, 1, 64, 1, 1, 0, 33, None]
    names = [name for name, _ in Arguments._fields_]
    wanted = [None if tensor is None else tensor.data_ptr() for tensor in given]
    assert [getattr(arguments, name) for name in names] == [*wanted, *numbers]
    launch_select(CONSTANTS, 8, 0, given, numbers)
    assert len(fake.launches) == 2, "no rows, no launch"


def test_what_the_driver_says_is_raised(fake: FakeDriver) -> None:
    with pytest.raises(RuntimeError, match=r"CUDA driver: an illegal memory access .* \(700\)"):
        launch_select(CONSTANTS, 8, 6, tensors(), (99, 5, 128, 17, 256, 1))


def test_tensors_of_another_type_are_not_launched(fake: FakeDriver) -> None:
    wrong = tensors()
    wrong[3] = wrong[3].long()
    with pytest.raises(AssertionError):
        launch_select(CONSTANTS, 8, 6, wrong, (3, 5, 128, 17, 256, 1))
    assert not fake.launches


def test_what_the_compiler_says_is_raised(tmp_path: Path) -> None:
    source = tmp_path / "x.cu"
    source.write_text('extern "C" __global__ void x() { y(); }')
    with pytest.raises(
        RuntimeError, match=r'x\.cu does not compile: .*identifier "y" is undefined'
    ):
        nvrtc.compile_cubin(source, (), (9, 0))


def test_a_missing_compiler_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.version, "cuda", "1.0")
    with pytest.raises(UnsupportedSetup, match=r"libnvrtc\.so\.1: run `pip install nvidia-cuda-"):
        nvrtc.library.__wrapped__()
