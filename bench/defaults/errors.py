"""Error of the attention output under every candidate, at equal total bytes."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import torch

from bench.defaults.candidates import (
    DENSE,
    Candidate,
    budget_within,
    candidates,
    dense_bytes,
    middle_of,
    total_bytes,
)
from bench.quality.run import QUEST, Context
from bench.quality.subjects import Subject
from sgl_sparsekv.ops import load_ops
from sgl_sparsekv.tooling.journal import Journal

LEVELS = ((512, 0), (2048, 0), (2048, DENSE[-1]))
"""Total bytes that are compared: Quest's, with that budget and so many dense layers."""


@dataclass(frozen=True)
class Finding:
    """One candidate at one level.

    Attributes:
        context: tokens.
        quest_budget: of the level.
        quest_dense_layers: of the level.
        method: of the registry.
        axis: what differs from the middle.
        shape: of its metadata.
        sink: first tokens that are always read.
        window: newest tokens that are always read.
        dense_layers: first layers that read everything.
        budget: tokens; None where no budget reads as little.
        share: bytes of all layers over those of dense attention.
        error: relative L2 error of the output, mean over all layers; 0 in dense ones.
        error_p90: where its worst tenth begins, likewise.
    """

    context: int
    quest_budget: int
    quest_dense_layers: int
    method: str
    axis: str
    shape: str
    sink: int
    window: int
    dense_layers: int
    budget: int | None
    share: float
    error: float | None = None
    error_p90: float | None = None

    @property
    def setting(self) -> str:
        """What its axis sets."""
        if self.axis == "kept":
            return f"{self.sink} + {self.window}"
        return str(self.dense_layers) if self.axis == "dense" else self.shape or "as it is"

    @property
    def served(self) -> bool:
        """It is what a server does by default, but for dense layers."""
        return (
            self.axis == "shape"
            and self.shape == Candidate(self.method, "", middle_of(self.method)).shape
        )


def findings(
    subject: Subject, contexts: Sequence[int], device: str, journal: Journal
) -> list[Finding]:
    """Every candidate of a model at every context and level.

    Args:
        subject: model and text.
        contexts: tokens.
        device: ops that choose and attend.
        journal: keeps what is measured.
    """
    tried, found = list(candidates()), list[Finding]()
    journal.expect(len(tried) * len(contexts))
    for tokens in contexts:
        context, before = Context(subject, tokens, load_ops(device)), ""
        for one in tried:
            if one.variant.name != before:
                context.forget()
            before = one.variant.name
            kept = f"{one.variant.sink}+{one.variant.window}"
            name = f"{subject.name} {tokens}, {one.method} {one.shape}, {kept}, {one.dense_layers}"

            def measured(context: Context = context, one: Candidate = one) -> list[object]:
                return [asdict(_finding(context, one, level)) for level in LEVELS]

            found += [Finding(**row) for row in journal.once(name, measured)]
    return found


def _finding(context: Context, one: Candidate, level: tuple[int, int]) -> Finding:
    layers, lengths = len(context.benches), context.dump.positions.numpy() + 1
    dim = context.dump.layers[0].keys.shape[-1]
    total = total_bytes(QUEST, *level, layers, lengths, dim)
    budget = budget_within(one, total, layers, lengths, dim)
    whole = dense_bytes(lengths, dim) * layers
    about = (context.tokens, *level, one.method, one.axis, one.shape)
    kept = (one.variant.sink, one.variant.window, one.dense_layers, budget)
    if budget is None or budget >= context.tokens:
        return Finding(*about, *kept, total / whole)
    with torch.no_grad():
        sparse = [
            bench.measure(one.variant, budget)[0] for bench in context.benches[one.dense_layers :]
        ]
    read = total_bytes(one.variant, budget, one.dense_layers, layers, lengths, dim)
    error = sum(quality.error for quality in sparse) / layers
    p90 = sum(quality.error_p90 for quality in sparse) / layers
    return Finding(*about, *kept, read / whole, error, p90)
