"""What the documents tell a reader to type, send or run: every block of code, by its kind."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = (
    *(ROOT / "README.md", ROOT / "patches" / "README.md"),
    *sorted((ROOT / "docs").rglob("*.md")),
    *sorted((ROOT / "examples").rglob("*.md")),
    *sorted((ROOT / "grafana").rglob("*.md")),
)
PROGRAMS = ("python", "sparsekv", "make", "pip", "lm_eval", "mkdir", "cp", "curl", "pytest")
"""First words of a command."""
KINDS = ("sh", "json", "python", "promql", "text")
"""What a fence may say that it holds; `text` is a drawing and nothing to run."""
MINUTES = "minutes"
MARKS = (MINUTES, "a quarter of an hour", "half an hour", "hours", "downloads", "GPU host")
"""What a command's own comment, or the comment above it, says in parentheses if it is excepted."""
_MARK = re.compile(r"\((" + "|".join(MARKS) + r")\)")
_SPAN = re.compile(r"`((?:python -m|sparsekv|make|pip install|pytest) [^`]+)`")


@dataclass(frozen=True)
class Block:
    """A fenced or indented block.

    Attributes:
        page: of the repository, as a path.
        line: of its first line of code.
        kind: one of `KINDS`; "" when nothing tells.
        lines: without indentation.
    """

    page: str
    line: int
    kind: str
    lines: tuple[str, ...]

    @property
    def text(self) -> str:
        """All of it."""
        return "\n".join(self.lines) + "\n"

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


@dataclass(frozen=True)
class Command:
    """One command of a block, continued lines joined.

    Attributes:
        block: where it stands.
        line: of the page.
        text: as written, without its comment.
        comment: behind it, and the comment above it.
        mark: why it is excepted; "" where it is not.
    """

    block: Block
    line: int
    text: str
    comment: str
    mark: str

    @property
    def serves(self) -> bool:
        """Whether it starts a server, and so does not end."""
        return "sglang.launch_server" in self.text

    def __str__(self) -> str:
        return f"{self.block.page}:{self.line} {' '.join(self.text.split()[:4])}"


def blocks() -> list[Block]:
    """Every block of every page."""
    return [block for page in PAGES for block in _blocks(page)]


def commands() -> list[Command]:
    """Every command of every block of commands, in the order of the pages."""
    return [one for block in blocks() if block.kind == "sh" for one in _commands(block)]


def spans() -> list[tuple[str, str]]:
    """Commands within running text: (page, command)."""
    found = []
    for page in PAGES:
        text = "\n".join(line for line in page.read_text().splitlines() if line[:4] != "    ")
        for one in _SPAN.findall(re.sub(r"^```.*?^```", "", text, flags=re.M | re.S)):
            found.append((str(page.relative_to(ROOT)), " ".join(one.split())))
    return found


def _blocks(page: Path) -> Iterator[Block]:
    name = str(page.relative_to(ROOT))
    fence, held, start = "", [], 0
    for number, line in enumerate([*page.read_text().splitlines(), ""], 1):
        if line.startswith("```"):
            if fence:
                yield Block(name, start, fence.strip("`"), tuple(held))
            fence, held, start = "" if fence else line + "`", [], number + 1
        elif fence:
            held.append(line)
        elif line.startswith("    "):
            held, start = [*held, line[4:]], start if held else number
        elif held:
            yield Block(name, start, _kind(held), tuple(held))
            held = []
    assert not fence, f"{name}: the fence before line {start} has no end"


def _kind(lines: list[str]) -> str:
    """Of an indented block, by its beginning."""
    first = next(line for line in lines if not line.startswith("#"))
    if first.startswith("{"):
        return "json"
    return "sh" if first.split()[0] in PROGRAMS else ""


def _commands(block: Block) -> Iterator[Command]:
    held, above, begun = "", "", 0
    for number, line in enumerate(block.lines, block.line):
        if line.startswith("#"):
            above = line
            continue
        begun = begun if held else number
        code, _, comment = line.partition(" # ") if " # " in line else (line, "", "")
        held += code.removesuffix("\\")
        if line.endswith("\\") or not held.strip():
            continue
        said = f"{above} {comment}".strip()
        mark = _MARK.search(said)
        yield Command(block, begun, held.strip(), said, mark.group(1) if mark else "")
        held, above = "", ""
