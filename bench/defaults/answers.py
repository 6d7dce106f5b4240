"""What a served model says under the methods and dense layers in question, at equal total bytes."""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np

from bench.defaults.candidates import (
    DENSE,
    Candidate,
    budget_within,
    dense_bytes,
    middle_of,
    total_bytes,
)
from bench.defaults.errors import LEVELS
from bench.quality.run import QUEST
from sgl_sparsekv.evaluation.client import Client
from sgl_sparsekv.evaluation.model import Model
from sgl_sparsekv.evaluation.server import server_spec
from sgl_sparsekv.evaluation.settings import Reading, Settings
from sgl_sparsekv.evaluation.tasks.asking import Asking
from sgl_sparsekv.evaluation.tasks.fidelity import FidelityTask
from sgl_sparsekv.evaluation.tasks.generate.prompts import RealPrompts
from sgl_sparsekv.evaluation.tasks.needle.task import Grid, NeedleTask
from sgl_sparsekv.tooling.journal import Journal
from sgl_sparsekv.tooling.progress import Progress
from sgl_sparsekv.tooling.servers import serve

METHODS = ("quest", "mean_std", "pqcache", "residual_pq", "streaming")
LEVEL = LEVELS[-1]
"""Bytes of what was served before there was any data."""
FOLLOWED, PROMPTS, DEPTHS = 128, 4, 10


@dataclass(frozen=True)
class Answered:
    """One method with so many dense layers.

    Attributes:
        context: tokens of the prompts.
        method: of the registry.
        dense_layers: first layers that read everything.
        budget: tokens, at the bytes of `LEVEL`.
        share: bytes of all layers over those of dense attention.
        kl: nats per token, mean over prompts; dense against this, led along the same words.
        top_1: share of tokens for which both find the same one likeliest.
        needles: share of needles found, one document, one per depth.
    """

    context: int
    method: str
    dense_layers: int
    budget: int
    share: float
    kl: float
    top_1: float
    needles: float


def answers(folder: Path, contexts: Sequence[int], journal: Journal) -> list[Answered]:
    """Ask one server about prompts and needles of every context.

    Args:
        folder: of a model with a chat template.
        contexts: tokens.
        journal: keeps what was answered.

    Raises:
        ValueError: the model has no chat template, or a context has no room for a prompt.
    """
    model = Model(folder)
    tasks = {context: _tasks(model, context) for context in contexts}
    asked = {context: list(_readings(model, context)) for context in contexts}
    journal.expect(sum((PROMPTS + DEPTHS) * len(readings) for readings in asked.values()))
    longest = max((task for pair in tasks.values() for task in pair), key=lambda t: t.longest)
    spec = server_spec(folder, Settings(str(folder), ("full", *METHODS), LEVEL[:1], None), longest)
    spec = replace(spec, flags=(*spec.flags, "--enable-custom-logit-processor"))
    assert journal.path is not None, "a server's log needs a place"
    with serve([spec], journal.path.with_suffix(".logs"), Progress(quiet=True)) as servers:
        client = Client(servers[spec.name].url)
        return [
            found
            for context in contexts
            for found in _ask(tasks[context], asked[context], client, journal, context)
        ]


def _tasks(model: Model, context: int) -> tuple[FidelityTask, NeedleTask]:
    """Prompts of a context led along 128 tokens, and a document with a needle at every depth."""
    tokens = model.tokens
    chat = tokens.chat()
    texts = RealPrompts(tokens, chat, FOLLOWED).texts(context - FOLLOWED, 0, PROMPTS)
    grid = Grid(documents="prose", lengths=(context,), depths=DEPTHS)
    return FidelityTask(tokens, texts, FOLLOWED), NeedleTask(Asking(tokens, chat=chat), grid)


def _readings(model: Model, context: int) -> Iterator[tuple[Reading, float]]:
    """Every method with every number of dense layers that leaves bytes for the others, and the
    share of the cache that it reads."""
    config = model.config
    layers, lengths = config["num_hidden_layers"], np.array([context])
    dim = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    total = total_bytes(QUEST, *LEVEL, layers, lengths, dim)
    for method in METHODS:
        for dense in DENSE:
            one = Candidate(method, "dense", middle_of(method), dense)
            budget = budget_within(one, total, layers, lengths, dim)
            if budget is not None:
                read = total_bytes(one.variant, budget, dense, layers, lengths, dim)
                yield (
                    Reading(method, budget, dense),
                    read / (dense_bytes(lengths, dim) * layers),
                )


def _ask(
    tasks: tuple[FidelityTask, NeedleTask],
    readings: Sequence[tuple[Reading, float]],
    client: Client,
    journal: Journal,
    context: int,
) -> Iterator[Answered]:
    """All questions of a context; a document is read once, by whoever asks first."""
    found: dict[tuple[Reading, str], list[dict[str, float]]] = defaultdict(list)
    for task in tasks:
        for part in task.parts():
            for nth, question in enumerate(task.build(part)):
                for reading, _ in readings:
                    name = f"{task.name} {context} {part.sample} {nth}, {reading}"

                    def ask(
                        task: Any = task, question: Any = question, reading: Reading = reading
                    ) -> dict[str, float]:
                        outcome = task.ask(question, reading, client)
                        return {"value": outcome.value, "top-1": outcome.detail.get("top-1", 0.0)}

                    found[reading, task.name].append(journal.once(name, ask))
    fidelity, needle = tasks
    for reading, share in readings:
        followed, hits = found[reading, fidelity.name], found[reading, needle.name]
        yield Answered(
            *(context, reading.method, int(reading.dense_layers or 0), int(reading.budget), share),
            kl=fmean(one["value"] for one in followed),
            top_1=fmean(one["top-1"] for one in followed),
            needles=fmean(one["value"] for one in hits),
        )
