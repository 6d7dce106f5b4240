"""Page planes that a method brings with it: what Triton kernels write for a unit, and make of it.

A `PageSummary` names one (`kernels`), in this package or in another; `score` and `summarise` are
compiled with its functions in them. Both must give what the summary's plain torch gives, and the
same bits whatever is computed beside: a unit may be written by several programs at once.
"""

from dataclasses import dataclass
from importlib import import_module
from typing import Any

from sgl_sparsekv.errors import UnsupportedSetup
from sgl_sparsekv.summaries import PageSummary

from .primitives import key_rows, load_planes, store_planes
from .score import group_dot

__all__ = ["Planes", "group_dot", "key_rows", "load_planes", "planes_of", "store_planes"]
OURS = "sgl_sparsekv.kernels.triton"
"""This package, of which there are copies with other constants: each takes its own functions."""


@dataclass(frozen=True)
class Planes:
    """Two functions of one KV head, decorated by `triton.jit`. `units` are physical, `[n]`.

    Attributes:
        write: `(field, keys, units, inside, stride_unit, stride_plane, stride_slot, UNIT, DIM)`:
            stores the planes of whole units, where `inside`, from their keys (`key_rows`).
        estimate: `(q, field, units, known, stride_unit, stride_plane, DIM, UPCAST)` -> float32
            `[lanes, n]`: what `PageSummary.score` says of queries `[lanes, padded DIM]`; anything
            where not `known`, and nothing is read there. Queries are float32 where UPCAST.
    """

    write: Any
    estimate: Any


def planes_of(summary: PageSummary) -> Planes:
    """Those that a summary names.

    Raises:
        UnsupportedSetup: they cannot be imported, or are something else.
    """
    module, _, name = summary.kernels.partition(":")
    module = module.replace(OURS, __package__ or OURS)
    try:
        found = getattr(import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise UnsupportedSetup(
            f"kernels of page metadata {summary.name} must be in {summary.kernels}: {error}"
        ) from error
    if not (hasattr(found, "write") and hasattr(found, "estimate")):
        raise UnsupportedSetup(f"{summary.kernels} must be a Planes of device triton, got {found}")
    planes: Planes = found
    return planes
