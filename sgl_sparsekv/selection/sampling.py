"""How far a row must read to cover a share of attention, from the keys of a few units.

Scores say which units have more attention than others, but not how much: codes and bounds mislead
by amounts that differ from head to head and from text to text. So a sample of the candidates is
looked at. They are drawn at equal steps of the cube roots of their estimated shares, summed up in
order of position (systematic sampling with probability proportional to size), and each stands for
as many as its probability says (Horvitz, Thompson, 1952): what any set of units has of the
attention is, without bias, the sum over those of the sample that are in it. Nothing is left to
chance, so a step is the same whoever runs it again.
"""

import torch

from ..ops import Ops
from ..types import Goal, Ranking, ScoreInputs, Selection

LEAST_UNITS, LEAST_TOKENS = 16, 128
"""Of a sample."""


def sample_size(unit_size: int) -> int:
    """Units whose keys are looked at, of each row and KV head."""
    return max(LEAST_UNITS, LEAST_TOKENS // unit_size)


def sampled_ranking(
    ops: Ops, scores: torch.Tensor, inputs: ScoreInputs, coverage: torch.Tensor
) -> Ranking:
    """Hold estimated shares `[rows, H, U]` against a sample of them: see `Ops.sample`."""
    return ops.sample(scores, inputs, coverage, sample_size(inputs.unit_size))


def covering_selection(
    ops: Ops, scores: torch.Tensor, inputs: ScoreInputs, goal: Goal
) -> Selection:
    """What is read by estimated shares `[rows, H, U]` held against a sample: see `Ops.cover`."""
    return ops.cover(scores, inputs, goal, sample_size(inputs.unit_size))
