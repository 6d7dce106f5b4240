"""Cells added up: per way of reading for the table, per square for the map."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from .kept import KEPT
from .metrics import Metric, metric_of
from .results import Cell

Square = tuple[int, int]
Column = tuple[str, int]
"""Task and length."""
ALONG = "along"
"""In a cell's detail: numbers by part of an output or a conversation, each a list, by name."""


@dataclass(frozen=True)
class Score:
    """One way of reading over all cells.

    Attributes:
        method: its name.
        budget: of it.
        value: of the metric, all cells together.
        asked: cells.
        columns: value per task and length.
        read: share of the KV cache that decode read, 0 to 1, all cells together.
        agreement: share of `full`'s words that it said too, up to the first difference; None where
            `full` was not asked.
        detail: mean of further numbers that every cell has.
        lost: rows of the map where a question was missed.
    """

    method: str
    budget: int | float
    value: float
    asked: int
    columns: dict[Column, float]
    read: float
    agreement: float | None
    detail: dict[str, float]
    lost: tuple[int, ...]

    @property
    def name(self) -> str:
        """Method and budget, as a row is called; `full` has no budget that matters."""
        return self.method if self.method == "full" else f"{self.method} {self.budget}"


def ranking(cells: Sequence[Cell]) -> list[Score]:
    """Ways of reading, the best first; of two as good the one closer to `full`, then reading less.

    Args:
        cells: of one run, at least one.
    """
    metric, said = metric_of(cells), _full(cells)
    readings = sorted({(cell.method, cell.budget) for cell in cells}, key=str)
    scores = [
        _score([cell for cell in cells if (cell.method, cell.budget) == reading], metric, said)
        for reading in readings
    ]
    sign = -1 if metric.higher_is_better else 1
    return sorted(scores, key=lambda s: (sign * s.value, -(s.agreement or 0.0), s.read))


def squares(cells: Iterable[Cell]) -> dict[Square, tuple[float, int]]:
    """Mean value and questions, by length and row of the map."""
    found: dict[Square, list[float]] = {}
    for cell in cells:
        found.setdefault((cell.length, cell.nth), []).append(cell.value)
    return {square: (sum(values) / len(values), len(values)) for square, values in found.items()}


def kept_squares(cells: Iterable[Cell]) -> dict[Square, float]:
    """Mean share of the needle that a view kept, where that was told."""
    found: dict[Square, list[float]] = {}
    for cell in cells:
        share = cell.detail.get(KEPT)
        if share is not None:
            found.setdefault((cell.length, cell.nth), []).append(share)
    return {square: sum(shares) / len(shares) for square, shares in found.items()}


def table(cells: Sequence[Cell]) -> str:
    """The ranking as text, one line per way of reading; a column per length, or per task.

    Several tasks at several lengths are a table per length. Tasks with numbers of their own have
    a table each besides, and numbers that were noted along an output or a conversation, too.
    """
    parts = [
        "\n".join([*([title] if title else []), _table(own, by_task)])
        for title, own, by_task in tables(cells)
    ]
    parts += [f"{title}\n{aligned(rows)}" for title, rows in tables_along(cells)]
    return "\n\n".join(parts)


def tables(cells: Sequence[Cell]) -> list[tuple[str, list[Cell], bool]]:
    """What stands in a table each: its title or "", its cells, and whether columns are tasks."""
    tasks, lengths = sorted({cell.task for cell in cells}), sorted({cell.length for cell in cells})
    if len(tasks) == 1 or len(lengths) == 1:
        found = [("", list(cells), len(tasks) > 1)]
    else:
        found = [(short(n), [c for c in cells if c.length == n], True) for n in lengths]
    numbers = {task: _numbers([c for c in cells if c.task == task]) for task in tasks}
    if any(own != numbers[tasks[0]] for own in numbers.values()):
        found += [(task, [c for c in cells if c.task == task], False) for task in tasks]
    return found


def tables_along(cells: Sequence[Cell]) -> list[tuple[str, list[tuple[str, ...]]]]:
    """Of each number that was noted by part: a title, and rows with a column per part."""
    cells = [cell for cell in cells if ALONG in cell.detail]
    found = []
    for name in cells[0].detail[ALONG] if cells else ():
        rows = []
        for score in ranking(cells):
            own = [c for c in cells if (c.method, c.budget) == (score.method, score.budget)]
            parts = [cell.detail[ALONG][name] for cell in own]
            means = [sum(part) / len(part) for part in zip(*parts, strict=False)]
            rows.append((score.name, *(f"{mean:.4g}" for mean in means)))
        count = max(map(len, rows)) - 1
        heads = ("", *(f"{nth} of {count}" for nth in range(1, count + 1)))
        found.append((f"{name}, from start to end", [heads, *rows]))
    return found


def short(tokens: int) -> str:
    """`8k` for 8192, else the number; `all` for 0, where the data decides."""
    if not tokens:
        return "all"
    return f"{tokens // 1024}k" if tokens % 1024 == 0 else str(tokens)


def _table(cells: Sequence[Cell], by_task: bool) -> str:
    metric, scores = metric_of(cells), ranking(cells)
    columns = sorted({column for score in scores for column in score.columns})
    if [length for _, length in columns] == [0]:
        columns = []  # it would repeat the total
    agreeing = any(score.agreement is not None for score in scores)
    extra = sorted({name for score in scores for name in score.detail})
    heads = [task if by_task else short(length) for task, length in columns]
    rows = [("", *heads, metric.title, *(["as full"] if agreeing else []), *extra, "KV read")]
    for score in scores:
        values = [
            metric.text(score.columns[column]) if column in score.columns else "-"
            for column in columns
        ]
        same = ["-" if score.agreement is None else f"{score.agreement:.1%}"] if agreeing else []
        more = [f"{score.detail[name]:.4g}" if name in score.detail else "-" for name in extra]
        read = f"{score.read:.1%}"
        rows.append((score.name, *values, metric.text(score.value), *same, *more, read))
    return aligned(rows)


def aligned(rows: Sequence[Sequence[str]]) -> str:
    """Text columns: the first to the left, the others to the right; a rule under the head."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = []
    for row in rows:
        rest = [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
        lines.append("  ".join((row[0].ljust(widths[0]), *rest)).rstrip())
    return "\n".join([lines[0], "-" * max(map(len, lines)), *lines[1:]])


def _score(own: list[Cell], metric: Metric, full: dict[tuple[object, ...], list[str]]) -> Score:
    there = sum(cell.tokens_in_context for cell in own)
    columns = sorted({(cell.task, cell.length) for cell in own})
    same = [_common(cell.said.split(), full[_where(cell)]) for cell in own if _where(cell) in full]
    judged = metric.higher_is_better
    return Score(
        method=own[0].method,
        budget=own[0].budget,
        value=metric.total(own),
        asked=len(own),
        columns={
            column: metric.total([c for c in own if (c.task, c.length) == column])
            for column in columns
        },
        read=sum(cell.tokens_attended for cell in own) / there if there else 1.0,
        agreement=sum(same) / len(same) if same and judged else None,
        detail=_means(own),
        lost=tuple(sorted({cell.nth for cell in own if judged and cell.value < 1})),
    )


def _full(cells: Sequence[Cell]) -> dict[tuple[object, ...], list[str]]:
    """What `full` said, by question."""
    return {_where(cell): cell.said.split() for cell in cells if cell.method == "full"}


def _where(cell: Cell) -> tuple[object, ...]:
    return (cell.task, cell.length, cell.sample, cell.nth)


def _common(said: list[str], full: list[str]) -> float:
    """Share of `full` that `said` repeats from the start."""
    if not full:
        return float(not said)
    pairs = zip(said, full, strict=False)
    return next((i for i, (a, b) in enumerate(pairs) if a != b), min(map(len, (said, full)))) / len(
        full
    )


def _means(own: list[Cell]) -> dict[str, float]:
    """Mean of each number that every cell has and no token count."""
    numbers = _numbers(own)
    return {name: sum(cell.detail[name] for cell in own) / len(own) for name in numbers}


def _numbers(own: Sequence[Cell]) -> list[str]:
    names = set.intersection(*(set(cell.detail) for cell in own)) - {"tokens"}
    return [
        name
        for name in sorted(names)
        if all(isinstance(cell.detail[name], (int, float)) for cell in own)
    ]
