"""A PNG in one colour, without a library: what a browser shows from a data address."""

import struct
import zlib
from base64 import b64encode
from collections.abc import Sequence

import numpy as np

LEVELS = 15
"""Opacities beside nothing at all; a pixel has four bits."""
COLOUR = (47, 111, 222)
FAINTEST = 0.28
"""Opacity of the first level: what is there at all can be seen, on light pages and dark ones."""


def opacity(level: int) -> float:
    """Of a pixel, 0 to 1."""
    return FAINTEST + (1 - FAINTEST) * (level - 1) / (LEVELS - 1) if level else 0.0


def data_address(rows: Sequence[bytes]) -> str:
    """A picture as a `data:` address.

    Args:
        rows: of equal length, a byte per pixel, each from 0 to `LEVELS`.
    """
    return "data:image/png;base64," + b64encode(png(rows)).decode()


def png(rows: Sequence[bytes]) -> bytes:
    """The file itself."""
    head = struct.pack(">IIBBBBB", len(rows[0]), len(rows), 4, 3, 0, 0, 0)
    lines = {row: b"\0" + _packed(row) for row in set(rows)}
    clear = bytes(round(255 * opacity(level)) for level in range(LEVELS + 1))
    parts = (
        (b"IHDR", head),
        (b"PLTE", bytes(COLOUR) * (LEVELS + 1)),
        (b"tRNS", clear),
        (b"IDAT", zlib.compress(b"".join(lines[row] for row in rows))),
        (b"IEND", b""),
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(_chunk(*one) for one in parts)


def _packed(row: bytes) -> bytes:
    """Two pixels in a byte, the first in the high bits."""
    pixels = np.frombuffer(row + b"\0" * (len(row) % 2), np.uint8)
    return (pixels[::2] << 4 | pixels[1::2]).tobytes()


def _chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
