"""Host arithmetic of a plan: from counts per row to the arrays a paged kernel reads.

A pseudo-request is one (row, head), heads innermost; all heads of a row read the same number of
units, so the host knows every length without asking the device.
"""

import numpy as np
import numpy.typing as npt

from sgl_sparsekv.types import AttendShape

Int32 = npt.NDArray[np.int32]
Int64 = npt.NDArray[np.int64]


def check_plan(counts: Int64, tails: Int64, shape: AttendShape) -> None:
    """Refuse numbers that a kernel would follow out of its buffers.

    Raises:
        ValueError: an array has another length, or a number is outside its range.
    """
    if counts.shape != (shape.rows,) or tails.shape != (shape.rows,):
        raise ValueError(
            f"counts and tails must be [{shape.rows}], got {counts.shape} and {tails.shape}"
        )
    if counts.min() < 1 or counts.max() > shape.max_units:
        raise ValueError(f"counts must be in [1, {shape.max_units}], got {counts}")
    if tails.min() < 1 or tails.max() > shape.unit_size:
        raise ValueError(f"tails must be in [1, {shape.unit_size}], got {tails}")


def write_indptr(out: Int32, counts: Int64, heads: int) -> None:
    """Fill `[rows * heads + 1]` with the start of each pseudo-request's pages."""
    out[0] = 0
    np.cumsum(np.repeat(counts, heads), out=out[1:], dtype=np.int32)


def write_tails(out: Int32, tails: Int64, heads: int) -> None:
    """Fill `[rows * heads]` with the entries of each pseudo-request's last page."""
    out.reshape(-1, heads)[:] = tails[:, None]


def write_lengths(out: Int32, counts: Int64, tails: Int64, shape: AttendShape) -> None:
    """Fill `[rows * heads]` with the tokens of each pseudo-request."""
    tokens = (counts - 1) * shape.unit_size + tails
    out.reshape(-1, shape.heads)[:] = tokens[:, None]
