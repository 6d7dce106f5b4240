"""What a call would launch, without launching it."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from triton.runtime.interpreter import InterpretedFunction
from triton.runtime.jit import JITFunction

from bench.gpu.variants import VARIANT

GRAIN = 16
"""Pointers and numbers that are multiples of it have kernels of their own."""


@dataclass(frozen=True)
class Launch:
    """One launch.

    Attributes:
        kernel: Triton's function.
        arguments: by position; tensors may have no memory.
        constants: by name, options of the compiler among them.
    """

    kernel: Any
    arguments: tuple[Any, ...]
    constants: dict[str, Any]

    @property
    def name(self) -> str:
        """The kernel's, whether it is a variant, and the constants that it was given."""
        given = ", ".join(f"{key} {value}" for key, value in self.constants.items())
        kind = " (variant)" if self.kernel.fn.__module__.startswith(VARIANT) else ""
        return f"{self.kernel.fn.__name__.removesuffix('_kernel')}{kind}: {given}"

    @property
    def key(self) -> tuple[object, ...]:
        """Equal for launches of the same binary."""
        source = getattr(self.kernel, "src", None) or self.kernel.fn.__code__.co_code
        names = self.kernel.arg_names
        free = set(getattr(self.kernel, "do_not_specialize", None) or ())
        kinds = (
            kind_of(value) if name not in free else type(value)
            for name, value in zip(names, self.arguments, strict=False)
        )
        module = self.kernel.fn.__module__
        return module, self.kernel.fn.__name__, source, *kinds, *sorted(self.constants.items())

    def compile(self) -> Any:
        """The binary, from Triton's cache where it is there already."""
        return self.kernel.warmup(*self.arguments, grid=(1,), **self.constants)


def kind_of(value: Any) -> object:
    """What Triton compiles for: element type and alignment; a number that is 1, aligned, or not."""
    if isinstance(value, torch.Tensor):
        return str(value.dtype), value.data_ptr() % GRAIN == 0
    if isinstance(value, int):
        return value if value == 1 else ("int", value % GRAIN == 0)
    return type(value).__name__


@contextmanager
def recorded() -> Iterator[list[Launch]]:
    """Launches inside are listed and not done."""
    found: list[Launch] = []

    def run(kernel: Any, *arguments: Any, grid: Any, warmup: bool, **constants: Any) -> None:
        found.append(Launch(kernel, arguments, constants))

    kinds = (JITFunction, InterpretedFunction)
    originals = [kind.run for kind in kinds]
    for kind in kinds:
        kind.run = run
    try:
        yield found
    finally:
        for kind, original in zip(kinds, originals, strict=True):
            kind.run = original
