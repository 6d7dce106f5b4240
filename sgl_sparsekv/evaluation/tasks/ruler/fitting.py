"""How much haystack fits: found by measuring a document a few times."""

from collections.abc import Callable

STEPS = 8
"""Measurements by extrapolation before halving."""


def largest(size: Callable[[int], int], room: int, least: int, scale: int) -> int | None:
    """The most units whose document takes at most `room` tokens; None if `least` are too many.

    Sizes grow nearly in proportion to units, so a straight line through two documents almost hits
    it. The result depends on the documents alone, not on what was measured before.

    Args:
        size: tokens of a document of so many units, not shrinking.
        room: tokens there are.
        least: units a document needs.
        scale: units of a second, small document that the first guess rests on.
    """
    low, low_size = least, size(least)
    if low_size > room:
        return None
    high, high_size = least + scale, size(least + scale)
    step = 0
    while high_size <= room:
        slope = max(high_size - low_size, 1) / (high - low)
        low, low_size = high, high_size
        high = low + max(1, round((room - low_size) / slope) + step)
        high_size = size(high)
        step += 1
    while high - low > 1:
        share = (room - low_size) / (high_size - low_size) if step < STEPS else 0.5
        middle = min(max(low + int((high - low) * share), low + 1), high - 1)
        if (middle_size := size(middle)) <= room:
            low, low_size = middle, middle_size
        else:
            high, high_size = middle, middle_size
        step += 1
    return low
