"""Decode steps from the arrival of streamed tokens."""

from collections.abc import Iterable, Sequence
from itertools import pairwise
from statistics import median

Arrivals = Sequence[tuple[float, int]]
"""When (seconds) how many tokens were there, the first token first."""
TOGETHER = 0.0005
"""Seconds; no step is that short, so what follows sooner was only read one by one."""


def ms_per_step(answers: Iterable[Arrivals]) -> float:
    """Median over every decode step of all answers; 0 if there was none.

    A machine that is busy for a while slows some steps; their mean would tell of that. Tokens that
    arrive together share the time since those before them. The first token is prefill's.
    """
    steps = []
    for arrivals in answers:
        for (start, before), (end, after) in pairwise(_pieces(arrivals)):
            steps += [(end - start) / (after - before)] * (after - before)
    return 1000 * median(steps) if steps else 0.0


def _pieces(arrivals: Arrivals) -> list[tuple[float, int]]:
    """Arrivals that a busy client read one right after the other, as one."""
    found = [arrivals[0]]
    for when, count in arrivals[1:]:
        if when - found[-1][0] < TOGETHER:
            found[-1] = found[-1][0], count
        else:
            found.append((when, count))
    return found
