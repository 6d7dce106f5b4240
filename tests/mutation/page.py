"""The sweep's section of `docs/invariants.md`, between two marks."""

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from .reasons import reason_for
from .survivors import Survivor, Swept

PAGE = Path(__file__).parents[2] / "docs" / "invariants.md"
BEGIN, END = "<!-- mutation sweep -->", "<!-- end of mutation sweep -->"
UNEXPLAINED = "none yet: a test is missing"


def share(found: Sequence[Swept]) -> float:
    """Share of the tried mutants that a test kills; 1 where none was tried."""
    tried = sum(each.tried for each in found)
    return sum(each.killed for each in found) / tried if tried else 1.0


def write(page: Path, found: Sequence[Swept]) -> None:
    """Put the section in its place.

    Raises:
        ValueError: the page lacks a mark.
    """
    text = page.read_text()
    for mark in (BEGIN, END):
        if text.count(mark) != 1:
            raise ValueError(f"{page} must have the line {mark} once")
    before, _, rest = text.partition(BEGIN)
    page.write_text(f"{before}{BEGIN}\n{section(found)}\n{END}{rest.partition(END)[2]}")


def section(found: Sequence[Swept]) -> str:
    """Tables of files and of those that live."""
    rows = [
        f"| `{each.file}` | {each.total} | {each.tried} | {each.killed} | {share([each]):.0%} |"
        for each in found
    ]
    total, tried, killed = (
        sum(getattr(each, name) for each in found) for name in ("total", "tried", "killed")
    )
    return "\n".join(
        (
            "| module | mutants | tried | killed | of those tried |",
            "|---|---|---|---|---|",
            *rows,
            f"| all | {total:,} | {tried:,} | {killed:,} | {share(found):.1%} |",
            "",
            "| lives | in | reason |",
            "|---|---|---|",
            *_survivors([one for each in found for one in each.survivors]),
        )
    )


def _survivors(lives: Sequence[Survivor]) -> list[str]:
    """A line for each change; several of one line of code and one reason share it."""
    groups: dict[tuple[str, str, str, str], list[str]] = defaultdict(list)
    for one in lives:
        why = reason_for(one) or ("no unit test runs it" if not one.reached else UNEXPLAINED)
        groups[one.file, one.function, one.old, why].append(one.new)
    return [
        f"| {_code(old)}, {len(new)} of its mutants | `{file}`, `{function}` | {why} |"
        for (file, function, old, why), new in groups.items()
    ]


def _code(text: str) -> str:
    """Code in a cell of a table."""
    cut = text if len(text) <= 90 else f"{text[:87]}..."
    written = cut.replace("|", "\\|").replace("`", "'")
    return f"`{written}`"
