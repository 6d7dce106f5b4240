"""CPU kernels: portable C++ built once per instruction set, called through ctypes."""

from .ops import CpuOps


def load(level: str | None = None) -> CpuOps:
    """Return the CPU ops.

    Args:
        level: instruction set of `levels.LEVELS`; the best that this CPU runs when None.

    Raises:
        UnsupportedSetup: the kernels are not built, or this CPU cannot run them.
    """
    return CpuOps(level)
