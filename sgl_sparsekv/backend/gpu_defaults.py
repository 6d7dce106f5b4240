"""On a GPU, what the user did not name: units whose metadata is worth its bytes."""

from collections.abc import Mapping
from typing import Any

from ..config import DEFAULT_PAGE_SIZE, ServerOptions, parse_server_options
from ..errors import ConfigError

UNIT_SIZE = 32
"""Half the metadata of units of 16, which is most of what a sparse step reads of a long context.
What that costs in quality stands in docs/gpu.md."""
SERVED = ("auto", "triton")
"""Devices, as options name them, that come to kernels for a GPU on a GPU."""


def with_gpu_unit(named: Mapping[str, Any], page_size: int | None) -> ServerOptions:
    """Options with the unit of a GPU, where the user named none and pages and budget take it.

    Args:
        named: flat values of the options that the user gave.
        page_size: slots per page; None: our own.

    Raises:
        ConfigError: one of them is wrong.
    """
    options = parse_server_options(named)
    if "unit_size" in named or options.device not in SERVED:
        return options
    if (page_size or DEFAULT_PAGE_SIZE) % UNIT_SIZE:
        return options
    try:
        return parse_server_options({**named, "unit_size": UNIT_SIZE})
    except ConfigError:  # a budget with room for sink and window in smaller units alone
        return options
