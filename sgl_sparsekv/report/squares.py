"""A square per layer and KV head, as a picture: layers across, heads down."""

from collections.abc import Callable, Sequence

from .selection_map import framed

CELL = 14
"""Pixels of a square."""
LEAST = 280
"""Pixels across at least: few squares are not blown up."""
Value = Callable[[float], float]
Write = Callable[[float], str]


def head_squares(
    layers: Sequence[Sequence[float]], names: Sequence[str], colour: str, dark: Value, say: Write
) -> str:
    """Squares of each layer's KV heads.

    Args:
        layers: a number per head.
        names: of the layers.
        colour: of the squares.
        dark: how strong a number is drawn, 0 to 1.
        say: a number in words, for who points at its square.
    """
    high, wide = max(map(len, layers)), len(layers)
    squares = []
    for x, (name, heads) in enumerate(zip(names, layers, strict=True)):
        for y, value in enumerate(heads):
            box = f'x="{x * CELL}" y="{y * CELL}" width="{CELL - 1}" height="{CELL - 1}"'
            said = f"<title>{name}, KV head {y}: {say(value)}</title>"
            squares.append(
                f'<rect {box} fill="{colour}" fill-opacity="{min(1.0, max(0.0, dark(value))):.2f}" '
                f'stroke="#8884" stroke-width=".5">{said}</rect>'
            )
    return framed(max(LEAST, wide * CELL), high * CELL, "".join(squares), "layers and KV heads")
