"""What a file comes to on the page, and what its figures rest on."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

UNKNOWN = "not known"
_VERSIONS = ("sglang", "torch", "transformers", "triton", "flashinfer-python", "sgl-kernel")


@dataclass(frozen=True)
class Source:
    """One file that was recognised.

    Attributes:
        path: where it is.
        name: how the page calls it.
        content: JSON of the whole file; of JSON lines the first.
    """

    path: Path
    name: str
    content: dict[str, Any]


@dataclass(frozen=True)
class Section:
    """One file on the page.

    Attributes:
        title: what was measured.
        gist: its main figures in a sentence.
        rests_on: machine, versions, commit, date.
        body: HTML.
    """

    title: str
    gist: str
    rests_on: str
    body: str


@dataclass(frozen=True)
class Kind:
    """One kind of file.

    Attributes:
        title: heading on the page.
        means: what its numbers mean, in a sentence or two.
        lines: whether it is JSON lines.
        claims: whether the JSON, or its first line, is of this kind.
        section: makes the section; raises ValueError for what is broken.
        many: a file may also hold a list of such JSON, or one a line.
    """

    title: str
    means: str
    lines: bool
    claims: Callable[[dict[str, Any]], bool]
    section: Callable[[Source], Section]
    many: bool = False


def rests_on(found: Mapping[str, Any], machine: str | None = None) -> str:
    """Machine, versions, commit and date of a header that `tooling.environment` wrote.

    Args:
        found: the header; what it does not say is "not known".
        machine: in words, where the header has no `machine`.
    """
    versions = [f"{name} {found[name]}" for name in _VERSIONS if found.get(name)]
    own = found.get("sgl_sparsekv") or found.get("sgl-sparsekv")
    versions += [f"sgl_sparsekv {own}"] if own else []
    where = machine or found.get("machine") or f"machine {UNKNOWN}"
    parts = [str(where), ", ".join(versions) or f"versions {UNKNOWN}"]
    if found.get("threads"):
        parts.append(f"{found['threads']} threads" if str(found["threads"]) != "1" else "1 thread")
    parts.append(f"commit {found.get('commit') or UNKNOWN}")
    when = str(found.get("when") or f"date {UNKNOWN}")
    parts.append(when.replace("T", " ").replace("+00:00", " UTC"))
    return " · ".join(parts)


def tokens(count: int) -> str:
    """A context, in units of 1024 where that is exact."""
    return f"{count // 1024}k" if count and count % 1024 == 0 else f"{count:,}"
