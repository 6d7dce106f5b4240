"""Recorded traces: which parts of the context each layer and head read, step by step."""

from collections import Counter
from collections.abc import Sequence
from html import escape

from ..tooling.charts import Line, Panel, in_percent
from . import recording
from .fields import check
from .kept_map import Kept, pictures
from .looks import variants
from .markup import charts, details, paragraph, percent, pictured, side_by_side
from .requests import DENSE, MOST_STEPS, Layer, Request, Tally, choose, collect, tally
from .section import Kind, Section, Source, rests_on, tokens
from .selection_map import COLUMNS, head_map, layer_map

MEANS = (
    "One map per layer that selects: down the decode steps of one request, across its context. "
    "Blue is what a step read: strong where every KV head read it, pale where some did, and paler "
    "where several units share a column and few of them were read. Overlap is the share of the "
    "units a step read that the same head had read in the step before, first and newest tokens "
    "included. Where a view was read, a map of all layers shows the last step that is drawn: what "
    "is kept, and what came since."
)
MOST_HEADS = 48
"""Maps of single heads, per request."""


def section(source: Source) -> Section:
    """One trace.

    Raises:
        ValueError: its file is broken, or holds no record.
    """
    head = source.content if source.content.get("kind") == "trace" else {}
    if head:
        check(head, {"schema": int, "environment": dict}, "the header")
        if head["schema"] != recording.SCHEMA:
            raise ValueError(f"schema must be {recording.SCHEMA}, got {head['schema']}")
    found = tally(recording.records(source.path))
    if not found:
        raise ValueError("holds no record")
    kept = collect(recording.records(source.path), found, choose(found))
    requests = [one for one in kept if one.layers]
    body = [paragraph(_says(found, requests, recording.ending(source.path)))]
    if requests:
        looks = variants((one.method, _name(i, one)) for i, one in enumerate(requests, 1))
        body.append(charts([_overlap_panel(requests)], looks))
    body += [_request(i, one) for i, one in enumerate(requests, 1)]
    environment = head.get("environment", {})
    return Section(
        title=f"Selections of {len(found):,} requests",
        gist=_gist(requests),
        rests_on=rests_on(environment)
        if head
        else "recorded without a header: machine, versions, "
        "commit and date are not known (sparsekv watch --record writes them)",
        body="".join(body),
    )


def _says(found: dict[str, Tally], shown: Sequence[Request], lost: int | None) -> str:
    methods = Counter(one.method for one in found.values())
    counts = ", ".join(f"{count} with {name}" for name, count in methods.most_common())
    records = sum(sum(one.methods.values()) for one in found.values())
    text = f"{records:,} records of {len(found):,} requests ({counts})."
    left = len(found) - methods[DENSE] - len(shown)
    text += f" Shown: {len(shown)}"
    text += f"; left out: {left} that select" if left else ""
    text += f"; not drawn, as they read everything: {methods[DENSE]}" if methods[DENSE] else ""
    if lost is None:
        return text + ". Whether records got lost on the way was not recorded."
    return f"{text}. Records lost on the way: {lost:,}."


def _request(number: int, one: Request) -> str:
    drawn = sorted(one.layers)
    maps = [
        pictured(
            f"layer {index}", _layer_note(one.layers[index]),
            layer_map(one.layers[index], f"layer {index} of request {number}"),
        )
        for index in drawn
    ]  # fmt: skip
    head = f"<h4>{_title(number, one)}</h4>"
    kept = pictures(_kept(one), f"request {number}") if one.last else ""
    note = paragraph(_left_out(one), "soft note")
    return head + note + kept + side_by_side(maps) + _heads(one, drawn)


def _kept(one: Request) -> Kept:
    """What the last step that is shown read: what the view keeps, and what came since."""
    ranks = {layer: sorted(found.items()) for layer, found in one.last.items()}
    return Kept(
        method=one.method,
        budget="",
        length=max(layer.length for layer in one.layers.values()),
        since=0,
        layers={
            layer: [head for _, heads in found for head in heads] for layer, found in ranks.items()
        },
    )


def _heads(one: Request, drawn: Sequence[int]) -> str:
    """Every KV head by itself, on demand."""
    pairs = [
        (index, head) for index in drawn for head in range(min(map(len, one.layers[index].steps())))
    ]
    maps = [
        pictured(f"layer {i}, KV head {h}", "", head_map(one.layers[i], h, f"layer {i} head {h}"))
        for i, h in pairs[:MOST_HEADS]
    ]
    left = len(pairs) - len(maps)
    title = f"Each KV head, {len(maps)} maps" + (f"; {left} more are left out" if left else "")
    return details(title, side_by_side(maps, "heads"))


def _overlap_panel(requests: Sequence[Request]) -> Panel:
    lines = []
    for i, one in enumerate(requests, 1):
        points = tuple((float(step), share) for step, share in enumerate(one.overlaps(), 2))
        lines.append(Line(_name(i, one), points))
    return Panel(
        title="Overlap with the step before",
        note="share of a step's units that the step before read too; mean over what is shown",
        x="decode step of the request",
        y="overlap",
        lines=tuple(lines),
        linear_x=True,
        spread=True,
        write_y=in_percent,
    )


def _layer_note(layer: Layer) -> str:
    overlaps = layer.overlaps()
    read = f"read {percent(_mean(layer.shares))} of the context"
    return read + (f"; overlap {_mean(overlaps):.0%}" if overlaps else "")


def _left_out(one: Request) -> str:
    some = next(iter(one.layers.values()))
    size = "single tokens" if some.unit_size == 1 else f"units of {some.unit_size} tokens"
    text = f"Request id {one.rid}; {size}"
    if some.total > COLUMNS:
        text += f", {some.total / COLUMNS:.1f} of them in a column"
    if one.found.dense:
        text += f"; layers that read everything: {', '.join(map(str, sorted(one.found.dense)))}"
    if len(one.found.steps) > MOST_STEPS:
        text += f"; the first {MOST_STEPS} of {len(one.found.steps)} steps"
    if len(one.layers) < len(one.found.layers):
        text += f"; {len(one.layers)} of {len(one.found.layers)} layers that select, evenly spread"
    return text + "."


def _title(number: int, one: Request) -> str:
    longest = max(layer.length for layer in one.layers.values())
    return escape(
        f"Request {number}: {one.method}, {tokens(longest)} tokens, {len(one.found.steps)} steps"
    )


def _name(number: int, one: Request) -> str:
    return f"{number}: {one.method}"


def _gist(requests: Sequence[Request]) -> str:
    if not requests:
        return "no request selected anything"
    parts = []
    for method in dict.fromkeys(one.method for one in requests):
        own = [one for one in requests if one.method == method]
        layers = [layer for one in own for layer in one.layers.values()]
        read = _mean([share for layer in layers for share in layer.shares])
        overlaps = [share for layer in layers for share in layer.overlaps()]
        again = f", {_mean(overlaps):.0%} of it as the step before" if overlaps else ""
        parts.append(f"{method} read {percent(read)}{again}")
    return "; ".join(parts)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0


KIND = Kind("Selections", MEANS, True, recording.claims, section)
