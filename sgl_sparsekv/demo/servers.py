"""The two servers of an act: SGLang's own dense attention, and ours; all else is the same."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..geometry import ceil_div
from ..tooling.room import room
from ..tooling.servers import ServerSpec

PAGE_SIZE = 64
DENSE, SPARSE = "torch_native", "sparsekv"


@dataclass(frozen=True)
class Sizes:
    """What both servers are made for.

    Attributes:
        model: its folder.
        longest: tokens of the longest prompt and its answer, together.
        held: tokens of all that is held at a time.
    """

    model: Path
    longest: int
    held: int


def pair(
    sizes: Sizes,
    device: str,
    methods: Sequence[str],
    both: tuple[str, ...] = (),
    ours: tuple[str, ...] = (),
) -> list[ServerSpec]:
    """Both servers, dense first.

    Args:
        sizes: what they are made for.
        device: kernels of ours.
        methods: that ours offers.
        both: further flags of both.
        ours: further flags of ours.
    """
    chunk = str(ceil_div(sizes.longest, PAGE_SIZE) * PAGE_SIZE)
    common = (
        *("--model-path", str(sizes.model), "--device", "cpu", "--page-size", str(PAGE_SIZE)),
        *room(sizes.longest, sizes.held, PAGE_SIZE),
        *("--max-running-requests", "32"),
        # One prefill chunk: torch_native computes the whole prefix anew for every chunk.
        *("--chunked-prefill-size", chunk, "--max-prefill-tokens", chunk),
        # Left to itself SGLang sets most of the memory aside for a chunk of this size.
        *("--mem-fraction-static", "0.6"),
        # Such a chunk can take long on a busy machine; SGLang would end itself after 300 s.
        *("--watchdog-timeout", "1800"),
        "--sleep-on-idle",  # the server that waits leaves the cores to the one that works
        *both,
    )
    offered = ("--sparsekv-device", device, "--sparsekv-methods", ",".join(methods))
    return [
        ServerSpec(DENSE, (*common, "--attention-backend", DENSE)),
        ServerSpec(SPARSE, (*common, "--attention-backend", SPARSE, *offered, *ours)),
    ]
