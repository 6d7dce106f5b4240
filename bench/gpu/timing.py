"""CUDA graphs over many layers' buffers, and a clock that lets all competitors take turns."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from statistics import median

import torch

Call = Callable[[int], object]
WARM_UP = 3


@dataclass(frozen=True)
class Times:
    """Microseconds of one call.

    Attributes:
        least: of the repeats.
        median: of the repeats.
    """

    least: float
    median: float


@dataclass(frozen=True)
class Recording:
    """A call recorded for some layers in turn.

    Attributes:
        replay: runs them all.
        count: how many.
    """

    replay: Callable[[], object]
    count: int


def record(call: Call, count: int, device: torch.device) -> Recording:
    """Capture `call(0) .. call(count - 1)` in one CUDA graph; on a CPU the last one is replayed."""
    if device.type != "cuda":
        return Recording(lambda: call(count - 1), count)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for i in range(min(count, WARM_UP)):
            call(i)
    torch.cuda.current_stream().wait_stream(side)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for i in range(count):
            call(i)
    return Recording(graph.replay, count)


def interleave(
    recordings: Mapping[str, Recording], repeats: int, device: torch.device
) -> dict[str, Times]:
    """Replay every recording in turn, so that a disturbance meets all of them.

    Returns:
        microseconds per call; on a CPU there is no clock and every time is 1.
    """
    if device.type != "cuda":
        for one in recordings.values():
            one.replay()
        return {name: Times(1.0, 1.0) for name in recordings}
    marks: dict[str, list[tuple[torch.cuda.Event, torch.cuda.Event]]] = {}
    for repeat in range(WARM_UP + repeats):
        for name, one in recordings.items():
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            one.replay()
            end.record()
            if repeat >= WARM_UP:
                marks.setdefault(name, []).append((start, end))
        torch.cuda.synchronize()
    found = {}
    for name, pairs in marks.items():
        each = [1e3 * a.elapsed_time(b) / recordings[name].count for a, b in pairs]
        found[name] = Times(min(each), median(each))
    return found


def l2_bytes(device: torch.device) -> int:
    """Second-level cache of the device; 64 KiB for a rehearsal."""
    if device.type != "cuda":
        return 1 << 16
    return int(getattr(torch.cuda.get_device_properties(device), "L2_cache_size", 0)) or 64 << 20


def layers_beyond_cache(bytes_per_layer: int, device: torch.device, most: int) -> int:
    """Layers whose reads together are four times the second-level cache, 2 or more; 1 on a CPU."""
    if device.type != "cuda":
        return 1
    return max(2, min(most, -(-4 * l2_bytes(device) // bytes_per_layer)))
