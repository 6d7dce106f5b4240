"""The page itself: contents, a section per file, and what was not read."""

import os
from collections import Counter
from collections.abc import Sequence
from html import escape
from importlib.resources import files as resources
from pathlib import Path
from string import Template

from .. import __version__
from ..evaluation.picture import EXTRA
from ..tooling import charts
from ..tooling.figure import STYLE
from . import coverage, decode, evaluation, gpu, kernels, quality, selections, serving, views
from .files import Found, read, under
from .markup import table
from .section import Kind, Section, Source

KINDS = (
    evaluation.KIND,
    quality.KIND,
    coverage.KIND,
    serving.KIND,
    decode.KIND,
    kernels.KIND,
    gpu.KIND,
    views.KIND,
    selections.KIND,
)
"""In the order of the page."""
MOST_LISTED = 200
"""Files that could not be read and are named; of more the number is said."""


def report(folder: Path, out: Path) -> Found:
    """Write one page about all results under a folder.

    Raises:
        ValueError: the page is there already, the folder is not, or holds no readable result.
    """
    if out.exists():
        raise ValueError(f"{out} is there already, --out names another")
    paths, others = under(folder)
    found = read([path for path in paths if path != out], folder, KINDS)
    found.others = others
    if not found.sections:
        raise ValueError(f"{folder} must hold a readable result, {_why_none(found)}")
    _write(out, render(found, folder.resolve().name or str(folder)))
    return found


def write_page(files: Sequence[Path], out: Path) -> Path:
    """Write one page about some files; a page that is there is replaced.

    Raises:
        ValueError: none of them is a readable result.
    """
    found = read(files, None, KINDS)
    if not found.sections:
        raise ValueError(f"{out} must be about a readable result, {_why_none(found)}")
    _write(out, render(found, out.stem))
    return out


def render(found: Found, title: str) -> str:
    """HTML of what was found."""
    numbered = list(enumerate(found.sections, 1))
    by_kind = {kind: [one for one in numbered if one[1][0] is kind] for kind in KINDS}
    return Template(resources(__package__).joinpath("report.html").read_text()).substitute(
        title=escape(title),
        style=STYLE + EXTRA + charts.STYLE,
        summary=escape(_summary(found)),
        contents="".join(_contents(number, *one) for number, one in numbered),
        sections="".join(
            _kind(kind, [_section(n, source, one) for n, (_, source, one) in some])
            for kind, some in by_kind.items()
            if some
        ),
        unread=_unread(found),
        version=escape(__version__),
    )


def _write(out: Path, text: str) -> None:
    """Whole or not at all: whoever looks at it while it is written sees the one before."""
    out.parent.mkdir(parents=True, exist_ok=True)
    part = out.with_name(f".{out.name}.{os.getpid()}")
    part.write_text(text)
    part.replace(out)


def _summary(found: Found) -> str:
    text = f"{_files(len(found.sections))} of results"
    return text + (f", {_files(len(found.unread))} not shown (named below)" if found.unread else "")


def _contents(number: int, kind: Kind, source: Source, one: Section) -> str:
    return (
        f'<li><a href="#s{number}">{escape(one.title)}</a> <code>{escape(source.name)}</code>'
        f"<span>{escape(one.gist)}</span></li>"
    )


def _kind(kind: Kind, sections: Sequence[str]) -> str:
    head = f"<h2>{escape(kind.title)}</h2><p>{escape(kind.means)}</p>"
    return f'<div class="kind">{head}{"".join(sections)}</div>'


def _section(number: int, source: Source, one: Section) -> str:
    return (
        f'<section id="s{number}"><h3>{escape(one.title)}</h3>'
        f'<p class="gist">{escape(one.gist)}</p>'
        f'<p class="soft from"><code>{escape(source.name)}</code> · {escape(one.rests_on)}</p>'
        f"{one.body}</section>"
    )


def _unread(found: Found) -> str:
    parts = []
    if found.unread:
        parts.append(table(("file", "why it is not shown"), found.unread[:MOST_LISTED], "words"))
        more = len(found.unread) - MOST_LISTED
        parts.append(f"<p>And {more:,} more.</p>" if more > 0 else "")
    if found.others:
        others = f"results end in .json or .jsonl: {_other(found.others)}"
        parts.append(f"<p>Not looked into, as {others}.</p>")
    body = "".join(parts)
    return f'<section id="unread"><h2>Not shown</h2>{body}</section>' if body else ""


def _other(others: Counter[str]) -> str:
    return escape(", ".join(f"{count} {ending}" for ending, count in others.most_common(12)))


def _why_none(found: Found) -> str:
    if not found.unread:
        return "there is no .json or .jsonl file"
    name, why = found.unread[0]
    more = f", and {_files(len(found.unread) - 1)} more" if len(found.unread) > 1 else ""
    return f"{name} {why}{more}"


def _files(count: int) -> str:
    return "1 file" if count == 1 else f"{count:,} files"
