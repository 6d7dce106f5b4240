"""Fused GPU kernels in Triton; on a CPU they run in Triton's interpreter, for tests."""

from .ops import TritonOps


def load() -> TritonOps:
    """Return the Triton ops.

    Raises:
        UnsupportedSetup: no GPU that Triton compiles for, and no interpreter asked for.
    """
    from .interpreter import quicken
    from .launch import check_machine, interpreted

    check_machine()
    if interpreted():
        quicken()
    return TritonOps()
