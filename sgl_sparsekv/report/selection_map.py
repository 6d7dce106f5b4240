"""Which parts of the context each step read: steps down, context across, as a picture."""

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
    """One layer, all KV heads."""
    steps = layer.steps()
    high = row_height(len(steps))
    image = _image(columns(steps, layer.total), high, PLOT)
    tall = high * len(steps)
    body = f'<g transform="translate({LEFT} {TOP})">{image}</g>{_axes(layer, len(steps), high)}'
    return _svg(WIDTH, TOP + tall + AXIS, body, name)


def head_map(layer: Layer, head: int, name: str) -> str:
    """One KV head of a layer, without axes."""
    steps = [heads[head : head + 1] for heads in layer.steps()]
    high, wide = max(2, row_height(len(steps)) // 2), 240
    image = _image(columns(steps, layer.total), high, wide)
    return _svg(wide, high * len(steps), image, name)


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


def _axes(layer: Layer, steps: int, high: int) -> str:
    bottom = TOP + steps * high
    parts = [_text(LEFT - 6, TOP + high / 2 + 4, "1", "end")]
    if steps * high > 30:
        parts.append(_text(LEFT - 6, bottom - high / 2 + 4, str(steps), "end"))
    for i in range(5):
        x = LEFT + PLOT * i / 4
        anchor = "end" if i == 4 else "middle" if i else "start"
        parts.append(f'<path class="rule" d="M{x:.1f} {bottom}v4"/>')
        place = f"{layer.length * i // 4:,}" + (" tokens" if i == 4 else "")
        parts.append(_text(x, bottom + 17, place, anchor))
    return "".join(parts)


def _svg(wide: float, high: float, body: str, name: str) -> str:
    label = name.replace("&", "&amp;").replace('"', "&quot;").replace("<", "&lt;")
    return (
        f'<svg class="fig" viewBox="0 0 {wide} {high}" role="img" aria-label="{label}">{body}</svg>'
    )


def _text(x: float, y: float, text: str, anchor: str) -> str:
    return f'<text class="soft" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{text}</text>'
