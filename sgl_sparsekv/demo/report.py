"""`demo.html`: one file that explains itself and needs no network."""

from collections.abc import Sequence
from html import escape
from importlib.resources import files
from string import Template
from typing import Any

from .checks import Check
from .markup import table as html_table
from .picture import depth_picture, selection_picture, stack, telling_layer
from .real.act import RealAct
from .real.page import section
from .result import table_rows
from .scenario import Scenario
from .score import RunScore
from .selections import SelectionLog

_READS = {
    "quest": "page metadata, the smallest and the largest key of every 16 tokens",
    "mean_std": "page metadata, the mean and the spread of the keys of every 16 tokens",
    "clusterkv": "the centroid of every cluster and the cluster of every token",
    "pqcache": "a codebook for every 4,096 tokens and two codes for every token",
    "shadowkv": "the mean key of every 8 tokens and how badly it fits them",
}
_HEAD = ("", "right", "cached tokens", "KV read", "ms per step", "tokens/s")


def page(
    scenario: Scenario,
    runs: Sequence[RunScore],
    checks: Sequence[Check],
    log: SelectionLog,
    environment: dict[str, Any],
    real: RealAct,
    method: str = "quest",
) -> str:
    """The report as HTML."""
    by_name = {run.name: run for run in runs}
    chosen, streaming = by_name[method], by_name["streaming"]
    layer = telling_layer(scenario, chosen, log)
    failed = [check for check in checks if not check.passed]
    verdict = f"Not so: {failed[0].text} ({failed[0].found})." if failed else _verdict(chosen)
    return Template(files(__package__).joinpath("report.html").read_text()).substitute(
        questions=len(scenario.questions),
        context=f"{scenario.document_tokens:,}",
        model=escape(scenario.model),
        environment=escape(_environment(environment)),
        verdict=escape(verdict),
        verdict_class="bad" if failed else "good",
        table=html_table(_HEAD, table_rows(runs)),
        method=escape(method),
        reads=_READS.get(method, "what it knows of the keys"),
        metadata=f"{chosen.metadata_read_fraction:.1%}",
        layer=layer,
        chosen=selection_picture(scenario, chosen, log, layer),
        streaming=selection_picture(scenario, streaming, log, layer),
        depth=depth_picture(scenario, runs),
        real=section(real),
        checks=_checks(checks),
        answers="".join(_answers(run, scenario) for run in runs),
    )


def picture(
    scenario: Scenario, runs: Sequence[RunScore], log: SelectionLog, method: str = "quest"
) -> str:
    """What the method read, and what every run found where: one SVG that stands alone."""
    chosen = next(run for run in runs if run.name == method)
    layer = telling_layer(scenario, chosen, log)
    return stack(selection_picture(scenario, chosen, log, layer), depth_picture(scenario, runs))


def _verdict(run: RunScore) -> str:
    return (
        f"{run.name} answers all {run.questions} questions and reads {run.kv_read_fraction:.1%} "
        "of the KV cache in decode."
    )


def _environment(values: dict[str, Any]) -> str:
    commit = f", commit {values['commit']}" if values.get("commit") else ""
    return (
        f"{values['machine']} · SGLang {values['sglang']}, torch {values['torch']}, "
        f"sgl_sparsekv {values['sgl_sparsekv']}{commit} · {values['when']}"
    )


def _checks(checks: Sequence[Check]) -> str:
    rows = [("✓" if check.passed else "✗", check.text, check.found) for check in checks]
    return html_table(("", "", "found"), rows, "words")


def _answers(run: RunScore, scenario: Scenario) -> str:
    rows = []
    for answer, right in zip(run.answers, run.right, strict=True):
        question = scenario.questions[answer.question]
        rows.append(
            (
                "✓" if right else "✗",
                question.prompt.strip(),
                " ".join(question.answer),
                answer.text.strip(),
            )
        )
    table = html_table(("", "asked", "expected", "said"), rows, "words")
    summary = f"{escape(run.name)}: {run.correct} of {run.questions}"
    return f'<details><summary>{summary}</summary><div class="scroll">{table}</div></details>'
