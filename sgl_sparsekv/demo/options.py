"""What a user of the demo may choose."""

from dataclasses import dataclass
from pathlib import Path

FETCHED, NONE = "smollm2", "none"


@dataclass(frozen=True)
class DemoOptions:
    """What a user may choose.

    Attributes:
        out: folder for logs and results.
        budget: tokens that the method and streaming may read per KV head and step.
        device: kernels of the sparsekv server.
        method: what the demo is about.
        real: model of the second act: `smollm2`, a folder, or `none` for the first act alone.
    """

    out: Path
    budget: int = 512
    device: str = "auto"
    method: str = "quest"
    real: str = FETCHED
