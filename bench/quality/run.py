"""Every method at every budget over one model's dumps."""

from collections.abc import Sequence
from dataclasses import asdict
from functools import cached_property
from statistics import fmean

import torch

from bench.quality.cost import bytes_read, equal_budget
from bench.quality.dump import Dump
from bench.quality.measure import Bench, Quality
from bench.quality.methods import VARIANTS, Variant
from bench.quality.results import Header, Row, as_row
from bench.quality.subjects import Subject
from sgl_sparsekv.ops import Ops, load_ops
from sgl_sparsekv.tooling.environment import environment
from sgl_sparsekv.tooling.journal import Journal

BUDGETS = (256, 512, 1024, 2048)
QUEST = VARIANTS[0]


class Context:
    """One model at one context; dumped when the first figure of it is asked for."""

    def __init__(self, subject: Subject, tokens: int, ops: Ops) -> None:
        self.subject, self.tokens, self.ops = subject, tokens, ops

    @cached_property
    def dump(self) -> Dump:
        """Keys, values and queries of every layer."""
        return self.subject.dump(self.tokens)

    @cached_property
    def benches(self) -> list[Bench]:
        """Layers with their truth."""
        return [Bench(layer, self.dump.positions, self.ops) for layer in self.dump.layers]

    def forget(self) -> None:
        """Drop what variants made of the dump so far."""
        for bench in self.__dict__.get("benches", ()):
            bench.forget()

    def shape(self) -> dict[str, float]:
        """What the header says of the dump."""
        _, heads, dim = self.dump.layers[0].keys.shape
        accuracy = round(self.dump.accuracy, 4)
        queries = len(self.dump.positions)
        return {"accuracy": accuracy, "queries": queries, "heads": heads, "head_dim": dim}

    def rows(self, variant: Variant, budgets: Sequence[int]) -> list[Row]:
        """A variant at every budget that is smaller than the context."""
        return measure_variant(self.dump, self.benches, self.tokens, variant, budgets)


def measure(
    subject: Subject,
    contexts: Sequence[int],
    budgets: Sequence[int] = BUDGETS,
    variants: Sequence[Variant] = VARIANTS,
    device: str = "reference",
    journal: Journal | None = None,
) -> tuple[Header, list[Row]]:
    """Dump a model at every context and measure every variant, at equal budgets and equal bytes.

    What the journal holds is not measured again; a context that it holds is not dumped.
    """
    assert contexts, "no context was given"
    about, ops, rows = environment(), load_ops(device), list[Row]()
    journal = journal or Journal()
    journal.expect(len(contexts) * (1 + len(variants)))
    accuracy, shape = {}, dict[str, float]()
    for tokens in contexts:
        context = Context(subject, tokens, ops)
        shape = journal.once(f"{subject.name} {tokens}, dense", context.shape)
        accuracy[str(tokens)] = shape["accuracy"]
        for variant in variants:

            def found(context: Context = context, variant: Variant = variant) -> list[object]:
                return [asdict(row) for row in context.rows(variant, budgets)]

            name = f"{subject.name} {tokens}, {variant.name}"
            rows += [as_row(one) for one in journal.once(name, found)]
    what = (subject.name, subject.about, shape["queries"], shape["heads"], shape["head_dim"])
    return Header(*what, accuracy, device, about), rows


def measure_dump(
    dump: Dump, context: int, budgets: Sequence[int], variants: Sequence[Variant], ops: Ops
) -> list[Row]:
    """Rows of one context."""
    benches = [Bench(layer, dump.positions, ops) for layer in dump.layers]
    found = [measure_variant(dump, benches, context, variant, budgets) for variant in variants]
    return [row for rows in found for row in rows]


def measure_variant(
    dump: Dump, benches: Sequence[Bench], context: int, variant: Variant, budgets: Sequence[int]
) -> list[Row]:
    """Rows of one variant at one context."""
    lengths = dump.positions.numpy() + 1
    dim = dump.layers[0].keys.shape[-1]
    dense = float(lengths.mean()) * 2 * dim * 2
    rows = []
    for budget in budgets:
        if budget >= context:
            continue
        target = bytes_read(QUEST, QUEST.plan(lengths, budget), lengths, dim).total
        same = equal_budget(variant, target, lengths, dim)
        for equal, own in (("budget", budget), ("bytes", same)):
            key = (context, variant.name, equal, budget, own)
            rows.append(_row(key, dense, benches, variant, own))
    return rows


def _row(
    key: tuple[int, str, str, int, int | None],
    dense: float,
    benches: Sequence[Bench],
    variant: Variant,
    budget: int | None,
) -> Row:
    if budget is None:
        return Row(*key, dense)
    with torch.no_grad():
        found = [bench.measure(variant, budget) for bench in benches]
    layers = [_figures(quality) for quality, _ in found]
    recall, mass, error, p90 = (fmean(column) for column in zip(*layers, strict=True))
    read = found[0][1]
    return Row(*key, dense, read.metadata, read.kv, recall, mass, error, p90, tuple(layers))


def _figures(quality: Quality) -> tuple[float, float, float, float]:
    return quality.recall, quality.mass, quality.error, quality.error_p90
