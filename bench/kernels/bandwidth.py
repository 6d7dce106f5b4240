"""What memory gives: the ground that byte floors stand on."""

import time
from collections.abc import Callable
from statistics import median

import torch


def clock(calls: dict[str, Callable[[int], object]], repeats: int) -> dict[str, list[float]]:
    """Milliseconds of each call, which take turns so that a disturbance meets all of them.

    Args:
        calls: name -> function of the repeat's number; run once before the clock starts.
        repeats: timed runs of each.
    """
    times: dict[str, list[float]] = {name: [] for name in calls}
    for repeat in range(repeats + 1):
        for name, call in calls.items():
            start = time.perf_counter()
            call(repeat)
            if repeat:
                times[name].append((time.perf_counter() - start) * 1e3)
    return times


def read_bandwidth(buffer: torch.Tensor, repeats: int = 10) -> tuple[float, float]:
    """Bytes per millisecond of summing a float32 buffer on all threads: (best, median)."""
    times = clock({"sum": lambda _: buffer.sum()}, repeats)["sum"]
    size = buffer.numel() * buffer.element_size()
    return size / min(times), size / median(times)
