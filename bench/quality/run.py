"""Every method at every budget over one model's dumps."""

from collections.abc import Callable, Sequence
from statistics import fmean

import torch

from bench.quality.cost import bytes_read, equal_budget
from bench.quality.dump import Dump
from bench.quality.measure import Bench, Quality
from bench.quality.methods import VARIANTS, Variant
from bench.quality.results import Header, Row
from bench.quality.subjects import Subject
from sgl_sparsekv.ops import Ops, load_ops
from sgl_sparsekv.tooling.environment import environment

BUDGETS = (256, 512, 1024, 2048)
QUEST = VARIANTS[0]


def measure(
    subject: Subject,
    contexts: Sequence[int],
    budgets: Sequence[int] = BUDGETS,
    variants: Sequence[Variant] = VARIANTS,
    device: str = "reference",
    say: Callable[[str], None] = lambda line: None,
) -> tuple[Header, list[Row]]:
    """Dump a model at every context and measure every variant, at equal budgets and equal bytes.

    Budgets that are no smaller than the context are left out.
    """
    about, ops, rows = environment(), load_ops(device), list[Row]()
    accuracy, dump = {}, None
    for context in contexts:
        dump = subject.dump(context)
        accuracy[str(context)] = round(dump.accuracy, 4)
        say(f"{subject.name} {context}: dense accuracy {dump.accuracy:.3f}")
        rows += measure_dump(dump, context, budgets, variants, ops, say)
    assert dump is not None, "no context was given"
    _, heads, dim = dump.layers[0].keys.shape
    what = (subject.name, subject.about, len(dump.positions), heads, dim)
    return Header(*what, accuracy, device, about), rows


def measure_dump(
    dump: Dump,
    context: int,
    budgets: Sequence[int],
    variants: Sequence[Variant],
    ops: Ops,
    say: Callable[[str], None] = lambda line: None,
) -> list[Row]:
    """Rows of one context."""
    lengths = dump.positions.numpy() + 1
    dim = dump.layers[0].keys.shape[-1]
    benches = [Bench(layer, dump.positions, ops) for layer in dump.layers]
    dense = float(lengths.mean()) * 2 * dim * 2
    rows = []
    for variant in variants:
        for budget in budgets:
            if budget >= context:
                continue
            target = bytes_read(QUEST, QUEST.plan(lengths, budget), lengths, dim).total
            same = equal_budget(variant, target, lengths, dim)
            for equal, own in (("budget", budget), ("bytes", same)):
                key = (context, variant.name, equal, budget, own)
                rows.append(_row(key, dense, benches, variant, own))
        say(f"{context} {variant.name}")
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
