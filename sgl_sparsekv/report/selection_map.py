"""Which parts of the context were read: steps or layers down, context across, as a picture."""

from collections.abc import Sequence

import numpy as np

from .bitmap import LEVELS, data_address
from .requests import Layer, Units

COLUMNS = 400
WIDTH, LEFT, AXIS, TOP = 560, 34, 22, 4
PLOT = WIDTH - LEFT - 12
_FINE = 800
"""Pixels that a row of the bitmap has at least: fewer would be blurred where it is shown."""


def columns(steps: Sequence[Sequence[Units]], total: int) -> list[bytes]:
    """A row per step, a byte per column: how much of it was read, from 0 to `LEVELS`.

    Args:
        steps: per step, the units of every KV head.
        total: units in the context; more than `COLUMNS` of them share columns.
    """
    width = min(COLUMNS, total)
    column = np.arange(total) * width // total
    there = np.bincount(column, minlength=width)
    rows = []
    for heads in steps:
        read = np.concatenate(heads)
        share = np.bincount(column[read[read < total]], minlength=width) / (there * len(heads))
        # Where little was read that must still be seen: half of a column is more than half as dark.
        level = 1 + np.rint((LEVELS - 1) * share**0.7)
        rows.append(np.where(share > 0, level, 0).astype(np.uint8).tobytes())
    return rows


def layer_map(layer: Layer, name: str) -> str:
    """One layer, all KV heads, a row per step."""
    steps = layer.steps()
    return context_map(steps, layer.total, layer.length, ("1", str(len(steps))), name)


def context_map(
    rows: Sequence[Sequence[Units]], total: int, length: int, ends: tuple[str, str], name: str
) -> str:
    """Rows across a context, with axes.

    Args:
        rows: per row, the units of every KV head.
        total: units in the context.
        length: tokens in it.
        ends: what the first and the last row are called.
        name: of the picture.
    """
    high = row_height(len(rows))
    image = _image(columns(rows, total), high, PLOT)
    tall = high * len(rows)
    axes = _axes(length, ends, len(rows), high)
    body = f'<g transform="translate({LEFT} {TOP})">{image}</g>{axes}'
    return framed(WIDTH, TOP + tall + AXIS, body, name)


def head_map(layer: Layer, head: int, name: str) -> str:
    """One KV head of a layer, without axes."""
    steps = [heads[head : head + 1] for heads in layer.steps()]
    return bare_map(steps, layer.total, name)


def bare_map(rows: Sequence[Sequence[Units]], total: int, name: str) -> str:
    """Rows across a context of `total` units, without axes."""
    high, wide = max(2, row_height(len(rows)) // 2), 240
    return framed(wide, high * len(rows), _image(columns(rows, total), high, wide), name)


def row_height(steps: int) -> int:
    """Pixels per step: few steps have tall rows."""
    return max(3, min(12, 150 // max(1, steps)))


def _image(rows: Sequence[bytes], high: int, wide: float) -> str:
    gap = 1 if high > 5 else 0
    lines: list[bytes] = []
    times = -(-_FINE // len(rows[0]))
    for row in rows:
        line = np.repeat(np.frombuffer(row, np.uint8), times).tobytes()
        lines += [line] * (high - gap) + [bytes(len(line))] * gap
    box = f'width="{wide}" height="{high * len(rows)}"'
    return (
        f'<rect class="field" {box}/>'
        f'<image {box} preserveAspectRatio="none" href="{data_address(lines)}"/>'
    )


def _axes(length: int, ends: tuple[str, str], rows: int, high: int) -> str:
    bottom = TOP + rows * high
    parts = [_text(LEFT - 6, TOP + high / 2 + 4, ends[0], "end")]
    if rows * high > 30:
        parts.append(_text(LEFT - 6, bottom - high / 2 + 4, ends[1], "end"))
    for i in range(5):
        x = LEFT + PLOT * i / 4
        anchor = "end" if i == 4 else "middle" if i else "start"
        parts.append(f'<path class="rule" d="M{x:.1f} {bottom}v4"/>')
        place = f"{length * i // 4:,}" + (" tokens" if i == 4 else "")
        parts.append(_text(x, bottom + 17, place, anchor))
    return "".join(parts)


def framed(wide: float, high: float, body: str, name: str) -> str:
    """A picture of so many pixels, under a name that is read aloud."""
    label = name.replace("&", "&amp;").replace('"', "&quot;").replace("<", "&lt;")
    return (
        f'<svg class="fig" viewBox="0 0 {wide} {high}" role="img" aria-label="{label}">{body}</svg>'
    )


def _text(x: float, y: float, text: str, anchor: str) -> str:
    return f'<text class="soft" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{text}</text>'
