"""Drawn by hand: which units each decode step read, and what was found at which depth."""

from collections.abc import Sequence
from xml.sax.saxutils import escape

from ..tooling.figure import STYLE
from .scenario import Question, Scenario
from .score import RunScore
from .selections import SelectionLog, StepReads, to_spans

WIDTH, LEFT, RIGHT = 1000, 120, 20
PLOT = WIDTH - LEFT - RIGHT
ROW, GAP, TOP, AXIS = 4, 7, 46, 34


def selection_picture(scenario: Scenario, run: RunScore, log: SelectionLog, layer: int) -> str:
    """One strip per question: along it the document, down it the decode steps of the answer."""
    strips, y = [], TOP
    for question, answer, right in zip(scenario.questions, run.answers, run.right, strict=True):
        steps = log.steps(answer.rid, layer)[: len(question.answer) - 1]
        height = ROW * (len(question.answer) - 1)
        strips.append(_strip(scenario, question, steps, y))
        strips.append(_label(answer.question + 1, right, y + height / 2 + 4))
        y += height + GAP
    share = f"{100 * run.kv_read_fraction:.1f}"
    title = f"{run.name}: {run.correct} of {run.questions} right, reading {share} % of the KV cache"
    return _figure(title, "".join(strips) + _axis(scenario.document_tokens, y), y + AXIS)


def depth_picture(scenario: Scenario, runs: Sequence[RunScore], bins: int = 16) -> str:
    """A row per method, a column per part of the document: facts found there, of facts needed."""
    row, y, cells = 30, TOP, []
    width = PLOT / bins
    for run in runs:
        cells.append(
            f'<text x="{LEFT - 10}" y="{y + 19}" text-anchor="end">{escape(run.name)}</text>'
        )
        for i, (right, tried) in enumerate(depth_map(scenario, run, bins)):
            cells.append(_cell(LEFT + i * width, y, width, row - 4, right, tried))
        y += row
    title = "Facts found, by their place in the document"
    return _figure(title, "".join(cells) + _axis(scenario.document_tokens, y), y + AXIS)


def stack(*figures: str) -> str:
    """Figures one below the other, as one picture."""
    parts, y = [], 0
    for figure in figures:
        height = int(figure.partition(f'viewBox="0 0 {WIDTH} ')[2].partition('"')[0])
        parts.append(figure.replace("<svg ", f'<svg y="{y}" width="{WIDTH}" height="{height}" ', 1))
        y += height
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {y}">'
    return f"{head}{''.join(parts)}</svg>\n"


def depth_map(scenario: Scenario, run: RunScore, bins: int) -> list[tuple[int, int]]:
    """Per equal part of the document: facts read right, facts tried.

    The first word of an answer comes from dense prefill and does not count; nor do words after a
    wrong one, which the model never had a chance to look up.
    """
    cells = [[0, 0] for _ in range(bins)]
    for question, words in zip(scenario.questions, run.words, strict=True):
        for place, right in list(zip(question.needles, words, strict=True))[1:]:
            cell = cells[min(bins - 1, place * bins // scenario.document_tokens)]
            cell[0] += right
            cell[1] += 1
            if not right:
                break
    return [(right, tried) for right, tried in cells]


def telling_layer(scenario: Scenario, run: RunScore, log: SelectionLog) -> int:
    """The layer whose selections hold the needed facts most often: where the model looks them up.

    Returns:
        The first such layer; 0 if the trace is empty.
    """

    def hits(layer: int) -> int:
        found = 0
        for question, answer in zip(scenario.questions, run.answers, strict=True):
            steps = log.steps(answer.rid, layer)
            for place, step in zip(question.needles[1:], steps, strict=False):
                found += step.reads(place) > 0
        return found

    return max(log.layers(), key=hits, default=0)


def _strip(scenario: Scenario, question: Question, steps: Sequence[StepReads], y: float) -> str:
    scale = PLOT / scenario.document_tokens
    height = ROW * (len(question.answer) - 1)
    parts = [f'<rect class="field" x="{LEFT}" y="{y}" width="{PLOT}" height="{height}"/>']
    if steps:
        last = scenario.document_tokens
        paths = {"some": "", "all": ""}
        for i, step in enumerate(steps):
            for name, spans in _by_agreement(step).items():
                paths[name] += "".join(
                    f"M{a} {i * ROW + ROW // 2}h{min(n, last - a)}" for a, n in spans if a < last
                )
        move = f'transform="translate({LEFT} {y}) scale({scale:.5f} 1)"'
        parts += [
            f'<path class="{name}" {move} stroke-width="{ROW - 1}" d="{path}"/>'
            for name, path in paths.items()
            if path
        ]
    for i, place in enumerate(question.needles[1:]):
        read = i < len(steps) and steps[i].reads(place)
        kind = "hit" if read else "lost"
        x, row = LEFT + place * scale, y + i * ROW + ROW / 2
        parts.append(f'<circle class="{kind}" cx="{x:.1f}" cy="{row:.1f}" r="3.4"/>')
    return "".join(parts)


def _by_agreement(step: StepReads) -> dict[str, list[tuple[int, int]]]:
    """Positions read by every KV head, and by some only, as runs."""
    sets = [{u for a, n in spans for u in range(a, a + n)} for spans in step.heads]
    if not sets:
        return {"some": [], "all": []}
    every = set.intersection(*sets)
    return {"some": to_spans(set.union(*sets) - every), "all": to_spans(every)}


def _label(number: int, right: bool, y: float) -> str:
    kind, mark = ("good", "✓") if right else ("bad", "✗")
    return (
        f'<text x="{LEFT - 28}" y="{y}" text-anchor="end">question {number}</text>'
        f'<text class="{kind}" x="{LEFT - 10}" y="{y}" text-anchor="end">{mark}</text>'
    )


def _cell(x: float, y: float, width: float, height: float, right: int, tried: int) -> str:
    box = f'x="{x + 1:.1f}" y="{y}" width="{width - 2:.1f}" height="{height}" rx="2"'
    if not tried:
        return f'<rect class="field" {box}/>'
    if 0 < right < tried:
        good = f'width="{(width - 2) * right / tried:.1f}"'
        colour = f'<rect class="bad" {box}/><rect class="good" x="{x + 1:.1f}" y="{y}" {good} '
        colour += f'height="{height}" rx="2"/>'
    else:
        colour = f'<rect class="{"good" if right else "bad"}" {box}/>'
    middle = f'x="{x + width / 2:.1f}" y="{y + height / 2 + 4}" text-anchor="middle"'
    return f'{colour}<text class="on" {middle}>{right}/{tried}</text>'


def _axis(tokens: int, y: float) -> str:
    parts = [f'<path class="rule" d="M{LEFT} {y}h{PLOT}"/>']
    for i in range(5):
        x = LEFT + PLOT * i / 4
        parts.append(f'<path class="rule" d="M{x} {y}v5"/>')
        anchor = "end" if i == 4 else "middle" if i else "start"
        parts.append(
            f'<text class="soft" x="{x}" y="{y + 19}" text-anchor="{anchor}">'
            f"{tokens * i // 4:,}</text>"
        )
    parts.append(f'<text class="soft" x="{LEFT - 10}" y="{y + 19}" text-anchor="end">token</text>')
    return "".join(parts)


def _figure(title: str, body: str, height: float) -> str:
    return (
        f'<svg class="fig" xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height:.0f}" '
        f'role="img" aria-label="{escape(title)}"><style>{STYLE}</style>'
        f'<rect class="back" width="{WIDTH}" height="{height:.0f}"/>'
        f'<text class="title" x="{LEFT}" y="28">{escape(title)}</text>{body}</svg>'
    )
