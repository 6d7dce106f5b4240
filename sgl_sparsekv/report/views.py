"""Answers that tell their views: which tokens were kept, what attention they held, whose budget."""

from collections.abc import Sequence
from dataclasses import replace
from html import escape

from ..tooling.charts import Line, Panel, in_percent
from . import responses
from .kept_map import ByLayer, Kept, pictures
from .looks import variants
from .markup import charts, number, paragraph, percent, table
from .section import Kind, Section, Source, tokens

MEANS = (
    "A method that keeps a view chooses tokens when the prompt has been read, and again as the "
    "answer grows; decode reads these and what came since. Retained is the share of attention that "
    "they held when they were chosen, of what was read until then: a mean over the last queries, "
    "query heads and KV heads. In decode is what later queries found there, where telemetry was "
    "asked for."
)
MOST = 6
"""Requests that are drawn."""


def section(source: Source) -> Section:
    """Answers of one file.

    Raises:
        ValueError: its file is broken, or no answer tells a view.
    """
    found, answers = responses.kept_of(source.path)
    shown = found[:MOST]
    names = [_name(i, one) for i, one in enumerate(shown, 1)]
    looks = variants((one.method, name) for one, name in zip(shown, names, strict=True))
    body = [
        paragraph(_says(answers, found)),
        _table(shown, names),
        charts(_panels(shown, names), looks),
    ]
    for name, one in zip(names, shown, strict=True):
        body.append(f"<h4>{escape(_title(name, one))}</h4>{pictures(one, name)}")
    return Section(
        title=f"Kept tokens of {_count(len(found), 'request')}",
        gist=_gist(shown),
        rests_on="answers as they were saved: machine, versions, commit and date are not known",
        body="".join(body),
    )


def _says(answers: int, found: Sequence[Kept]) -> str:
    text = f"{_count(len(found), 'view')} in {_count(answers, 'answer')}."
    left = len(found) - MOST
    return text + (f" Shown are the first {MOST}, left out {left:,}." if left > 0 else "")


def _count(things: int, name: str) -> str:
    return f"{things:,} {name}{'s' * (things != 1)}"


def _table(shown: Sequence[Kept], names: Sequence[str]) -> str:
    head = ["", "budget", "made of", "since", "kept by a KV head", "least", "most", "retained"]
    rows = []
    for name, one in zip(names, shown, strict=True):
        least, most = one.reach
        row = [name, one.budget, f"{one.length:,}", f"{one.since:,}", number(one.tokens)]
        row += [f"{least:,}", f"{most:,}", percent(one.retained)]
        rows.append([*row, _worst(one), percent(one.decoded)])
    return table([*head, "least layer", "in decode"], rows)


def _worst(one: Kept) -> str:
    """What the layer that retains least does, and its number."""
    means = {layer: sum(heads) / len(heads) for layer, heads in one.mass.items()}
    layer = min(means, key=lambda one: means[one])
    return f"{percent(means[layer])} ({layer})"


def _panels(shown: Sequence[Kept], names: Sequence[str]) -> list[Panel]:
    """What is retained and what is kept, by layer."""
    pairs = list(zip(names, shown, strict=True))
    mass = _panel("Attention retained", "share", [_line(name, one.mass) for name, one in pairs])
    kept = [_line(name, one.counts) for name, one in pairs]
    return [
        replace(mass, fit=True, write_y=in_percent),
        _panel("Budget", "tokens per KV head", kept),
    ]


def _panel(title: str, y: str, lines: Sequence[Line]) -> Panel:
    return Panel(
        title=title,
        note="by layer, mean over its KV heads",
        x="layer",
        y=y,
        lines=tuple(lines),
        linear_x=True,
        spread=True,
    )


def _line(name: str, by_layer: ByLayer) -> Line:
    points = [(float(layer), sum(own) / len(own)) for layer, own in sorted(by_layer.items())]
    return Line(name, tuple(points))


def _gist(shown: Sequence[Kept]) -> str:
    parts = [
        f"{one.method} kept {number(one.tokens)} of {one.length:,} tokens and "
        f"{percent(one.retained)} of the attention"
        for one in shown
    ]
    return "; ".join(dict.fromkeys(parts))


def _title(name: str, one: Kept) -> str:
    since = f", {one.since:,} more since" if one.since else ""
    return f"Request {name}: budget {one.budget}, {tokens(one.length)} tokens{since}"


def _name(place: int, one: Kept) -> str:
    return f"{place}: {one.method}"


KIND = Kind("Views", MEANS, False, responses.claims, section, many=True)
