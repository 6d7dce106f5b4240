"""What a route can serve: one sentence for the first thing that it cannot."""

from importlib.util import find_spec

import torch

from sgl_sparsekv.geometry import PAGE_SIZES
from sgl_sparsekv.types import AttendShape

DTYPES = (torch.bfloat16, torch.float16)
"""Element types of q, K and V that all routes take."""


def unsupported_anywhere(route: str, package: str, shape: AttendShape) -> str | None:
    """What no route serves, or a package that is not installed."""
    if find_spec(package) is None:
        return f"attend route {route!r} needs the package {package!r}, which is not installed"
    if shape.dtype not in DTYPES:
        return f"attend route {route!r} needs a bfloat16 or float16 KV cache, got {shape.dtype}"
    if shape.unit_size not in PAGE_SIZES:
        return f"attend route {route!r} needs units of {PAGE_SIZES} tokens, got {shape.unit_size}"
    return None
