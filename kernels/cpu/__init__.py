"""CPU kernels: portable C++ built once per instruction set, called through ctypes."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .ops import CpuOps


def load(level: str | None = None) -> "CpuOps":
    """Return the CPU ops.

    Args:
        level: instruction set of `levels.LEVELS`; the best that this CPU runs when None.

    Raises:
        UnsupportedSetup: the kernels are not built, or this CPU cannot run them.
    """
    from .ops import CpuOps  # not above: whoever builds the kernels has no torch

    return CpuOps(level)
