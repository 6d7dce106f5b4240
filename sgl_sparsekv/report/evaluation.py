"""Results of `sparsekv eval`: tables, needle maps, and the metric against bytes."""

import json
import re
from collections.abc import Sequence
from html import escape
from typing import Any

from ..evaluation.kept import KEPT
from ..evaluation.metrics import METRICS, SHARE, Metric, metric_of
from ..evaluation.picture import needle_picture
from ..evaluation.results import Cell, read
from ..evaluation.summary import Score, ranking, short, tables, tables_along
from ..tooling.charts import Line, Panel, in_bytes, in_percent, plainly
from .fields import Wanted, check, check_known
from .looks import looks_of
from .markup import charts, details, paragraph, percent, side_by_side, table
from .section import Kind, Section, Source, rests_on

MEANS = (
    "Right is the mean of the evaluation's own verdict, from 0 to 100 %; perplexity and KL are "
    "better when lower. KV read is what attention read in decode, of what dense decode would have "
    "read. As full is the share of full's words that a method said too, up to the first difference."
)
COUNTED = ("KV, a step", "metadata, at most")
OPEN_MAPS = 12
"""Needle maps that are shown at once; more are shown on demand."""
_MOST_NATS = 700.0
"""A likelihood below e to minus this is 0 to a computer."""
_CELL: Wanted = {"task": str, "method": str, "said": str, "metric": str, "value": None}
_CELL |= {"budget": float, "detail": dict}
_CELL |= dict.fromkeys(("length", "sample", "nth", "decode_steps"), int)
_CELL |= dict.fromkeys(("tokens_attended", "tokens_in_context"), int)
_STYLE = re.compile(r"<style>.*?</style>", re.DOTALL)


def claims(content: dict[str, Any]) -> bool:
    """Whether a first line is an evaluation's header."""
    return content.get("kind") == "header" and "task" in content


def section(source: Source) -> Section:
    """One evaluation.

    Raises:
        ValueError: its file is broken, or has no finished cell.
    """
    header, cells = read(source.path)
    _check(header, cells)
    scores = ranking(cells)
    metric = metric_of(cells)
    body = [paragraph(_asked(header, cells)), *_tables(cells, header)]
    body.append(charts(_panels(cells, header), looks_of(score.method for score in scores)))
    if "kv_bytes_per_token" in header:
        body.append(
            paragraph(_bytes_note(header, any(s.method == "oracle" for s in scores)), "soft note")
        )
    if header["task"] == "needle":
        body.append(_maps(cells, header["depths"], scores))
    return Section(
        title=f"{header['task']}: {_model(header)}",
        gist=_gist(scores, metric),
        rests_on=_rests_on(source, header),
        body="".join(body),
    )


def bytes_per_step(cells: Sequence[Cell], header: dict[str, Any]) -> tuple[float, float]:
    """Bytes of K and V that a decode step read over all layers, and of metadata at most.

    Args:
        cells: of one way of reading, with decode steps.
        header: of their file, with `kv_bytes_per_token`.
    """
    steps = sum(cell.decode_steps for cell in cells)
    each = header["kv_bytes_per_token"] / steps
    shares = header.get("metadata_share") or {}
    share = 0.0 if cells[0].method == "full" else shares.get(cells[0].method) or 0.0
    read_tokens = sum(cell.tokens_attended for cell in cells)
    return each * read_tokens, each * share * sum(cell.tokens_in_context for cell in cells)


def _tables(cells: Sequence[Cell], header: dict[str, Any]) -> list[str]:
    """The tables of the command line, each below its title."""
    found = []
    for title, own, by_task in tables(cells):
        named = f"{title} tokens" if by_task and title else title
        found += [*([f"<h4>{escape(named)}</h4>"] if named else []), _table(own, header, by_task)]
    for title, (head, *rows) in tables_along(cells):
        found += [f"<h4>{escape(title)}</h4>", table(head, rows)]
    return found


def _table(cells: Sequence[Cell], header: dict[str, Any], by_task: bool) -> str:
    metric, scores = metric_of(cells), ranking(cells)
    columns = sorted({column for score in scores for column in score.columns})
    if len(columns) == 1:
        columns = []  # it would repeat the total
    extra = sorted({name for score in scores for name in score.detail})
    counted = "kv_bytes_per_token" in header
    head = ["", metric.title, *(task if by_task else short(n) for task, n in columns), "asked"]
    agreeing = any(score.agreement is not None for score in scores)
    head += [*(["as full"] if agreeing else []), *extra, "KV read", *(COUNTED if counted else ())]
    rows = []
    for score in scores:
        own = _of(cells, score)
        row = [score.name, metric.text(score.value)]
        row += [metric.text(score.columns[c]) if c in score.columns else "-" for c in columns]
        row += [f"{score.asked:,}", *([percent(score.agreement)] if agreeing else [])]
        row += [f"{score.detail[name]:.4g}" if name in score.detail else "-" for name in extra]
        row.append(percent(score.read))
        if counted:
            sizes = bytes_per_step(own, header) if any(c.decode_steps for c in own) else None
            row += [in_bytes(size) for size in sizes] if sizes else ["-", "-"]
            row[-1] = "every key" if score.method == "oracle" else row[-1]
        rows.append(row)
    return table(head, rows)


def _panels(cells: Sequence[Cell], header: dict[str, Any]) -> list[Panel]:
    """Metric against bytes, a panel per length."""
    if "kv_bytes_per_token" not in header:
        return []
    metric, lengths = metric_of(cells), sorted({cell.length for cell in cells})
    found = []
    for length in lengths:
        own = [cell for cell in cells if cell.length == length and cell.decode_steps]
        scores = ranking(own) if own else []
        lines = [
            _line(method, [s for s in scores if s.method == method], own, header)
            for method in reversed(looks_of(score.method for score in scores))
        ]
        where = "any length" if not length else f"{short(length)} tokens"
        found.append(
            Panel(
                title=f"{_titled(metric)} against bytes, {where}",
                note="marks: K and V; whiskers: with what choosing reads at most; dotted: full",
                x="bytes read per decode step, all layers",
                y=metric.title,
                lines=tuple(lines),
                fit=not metric.higher_is_better,
                log_y=not metric.higher_is_better and _wide([score.value for score in scores]),
                spread=True,
                levels=tuple(("full", s.value) for s in scores if s.method == "full"),
                write_x=in_bytes,
                write_y=in_percent if metric is SHARE else plainly,
            )
        )
    return found


def _wide(values: Sequence[float]) -> bool:
    """Whether values differ so much that only ratios can be seen."""
    return min(values, default=0.0) > 0 and max(values) > 20 * min(values)


def _line(
    method: str, scores: Sequence[Score], cells: Sequence[Cell], header: dict[str, Any]
) -> Line:
    found = []
    for score in scores:
        kv, metadata = bytes_per_step(_of(cells, score), header)
        if kv > 0:
            found.append((kv, score.value, kv + metadata))
    found.sort()
    points = tuple((kv, value) for kv, value, _ in found)
    return Line(method, points, until=tuple(end for _, _, end in found))


def _maps(cells: Sequence[Cell], depths: int, scores: Sequence[Score]) -> str:
    """One map per way of reading, side by side, the best first."""
    maps = [
        f"<figure>{_STYLE.sub('', needle_picture(_of(cells, score), depths))}</figure>"
        for score in scores
    ]
    shown, more = maps[:OPEN_MAPS], maps[OPEN_MAPS:]
    note = "Across: tokens of context; down: where in it the needle was. Green was found."
    if any(KEPT in cell.detail for cell in cells):
        note += (
            " Of views, the number is the share of the needle's tokens that was kept, the mean "
            "over layers and KV heads."
        )
    rest = details(f"{len(more)} more maps", side_by_side(more, "maps")) if more else ""
    return f"<h4>Needle maps</h4>{paragraph(note)}{side_by_side(shown, 'maps')}{rest}"


def _of(cells: Sequence[Cell], score: Score) -> list[Cell]:
    return [c for c in cells if (c.method, c.budget) == (score.method, score.budget)]


def _asked(header: dict[str, Any], cells: Sequence[Cell]) -> str:
    tasks = ", ".join(sorted({cell.task for cell in cells}))
    budgets = ", ".join(str(budget) for budget in header.get("budgets") or ())
    parts = [f"{len(cells):,} answers of {tasks}"]
    parts += [f"budgets {budgets}"] if budgets else []
    for name in ("protocol", "dense_layers", "seed", "concurrency"):
        if header.get(name) is not None:
            parts.append(f"{name.replace('_', ' ')} {header[name]}")
    parts.append(f"judged by: {', '.join(sorted({cell.metric for cell in cells}))}")
    return "; ".join(parts) + "."


def _bytes_note(header: dict[str, Any], oracle: bool) -> str:
    each = header["kv_bytes_per_token"]
    return (
        f"Bytes: {each:,} of K and V per token and layer, times the tokens that attention read. "
        "To choose them a method reads page metadata too, at most what the whiskers add; layers "
        "that read everything need none."
        + (" The oracle reads every key to choose, which is not counted." if oracle else "")
    )


def _gist(scores: Sequence[Score], metric: Metric) -> str:
    sparse = [score for score in scores if score.method not in ("full", "oracle")]
    full = [score for score in scores if score.method == "full"]
    told = [*sparse[:1], *full] or scores[:1]
    return "; ".join(
        f"{score.name}: {metric.text(score.value)} {metric.title}, {score.read:.1%} of the KV cache"
        for score in told
    )


def _titled(metric: Metric) -> str:
    return metric.title if metric.title[:1].isupper() else metric.title.capitalize()


def _model(header: dict[str, Any]) -> str:
    return str(header.get("model", "model not known")).rstrip("/").rpartition("/")[2]


def _rests_on(source: Source, header: dict[str, Any]) -> str:
    text = rests_on(header.get("environment") or {})
    for line in source.path.read_text().splitlines():
        found = json.loads(line)
        if found["kind"] == "resumed":
            text += f"; resumed: {rests_on(found.get('environment') or {})}"
    return text


def _check(header: dict[str, Any], cells: Sequence[Cell]) -> None:
    if not cells:
        raise ValueError("holds no finished cell")
    check(header, {"task": str}, "the header")
    known: Wanted = {"environment": dict, "budgets": list, "metadata_share": dict}
    check_known(header, known, "the header")
    if header["task"] == "needle":
        check(header, {"depths": int}, "the header")
    if "kv_bytes_per_token" in header:
        check(header, {"kv_bytes_per_token": float}, "the header")
        shares = header.get("metadata_share") or {}
        check(shares, dict.fromkeys(shares), "metadata_share")
    for number, cell in enumerate(cells, 1):
        found = check(vars(cell), _CELL, f"cell {number}")
        if found["value"] is None or (cell.metric == "nll" and cell.value > _MOST_NATS):
            raise ValueError(f"value of cell {number} must be a number in reach, got {cell.value}")
        check_known(cell.detail, {KEPT: None}, f"detail of cell {number}")
        if cell.metric in METRICS:
            check(cell.detail, {"tokens": float}, f"detail of cell {number}")


KIND = Kind("Evaluations", MEANS, True, claims, section)
