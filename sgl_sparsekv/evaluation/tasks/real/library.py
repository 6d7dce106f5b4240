"""What every Python carries to read: the reference that `help()` shows, and sources."""

import ast
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

MODULES = (
    *("textwrap", "heapq", "shlex", "fnmatch", "glob", "shutil", "tempfile", "calendar"),
    *("statistics", "fractions", "random", "difflib", "csv", "configparser", "contextlib"),
    *("dataclasses", "inspect", "pickle", "copy", "gettext", "selectors", "socketserver"),
    *("tarfile", "json/decoder", "json/encoder", "urllib/parse", "http/client", "ftplib"),
    *("imaplib", "smtplib", "mimetypes", "locale", "warnings", "traceback", "weakref"),
    *("datetime", "ipaddress", "plistlib", "tokenize", "trace", "timeit", "uuid"),
)
"""Files of the standard library that have been there for long."""

CHAPTER = 2000
"""Letters of a chapter, at least."""


@dataclass(frozen=True)
class Block:
    """A piece of text that is not cut: a paragraph, or what a module defines at its top level.

    Attributes:
        text: without blank lines around it.
        function: its name, if it is a function.
    """

    text: str
    function: str = ""


@dataclass(frozen=True)
class Function:
    """A public function of the library that has a docstring.

    Attributes:
        name: with its module.
        purpose: first line of its docstring.
        parameters: names that a call may give, in order.
    """

    name: str
    purpose: str
    parameters: tuple[str, ...]


@cache
def chapters() -> tuple[tuple[Block, ...], ...]:
    """Paragraphs of the language reference, by chapter; short chapters are left out."""
    from pydoc_data.topics import topics

    found = {
        name: tuple(Block(part.strip("\n")) for part in text.split("\n\n") if part.strip())
        for name, text in topics.items()
    }
    return tuple(found[name] for name in sorted(found) if len(topics[name]) >= CHAPTER)


@cache
def modules() -> tuple[tuple[Block, ...], ...]:
    """Top-level pieces of each source of `MODULES` that this Python has."""
    return tuple(tuple(_pieces(text, tree)) for _, text, tree in _sources())


@cache
def functions() -> tuple[Function, ...]:
    """Public functions at the top level of these sources."""
    found = []
    for name, _, tree in _sources():
        for node in tree.body:
            if not isinstance(node, ast.FunctionDef) or node.name.startswith("_"):
                continue
            purpose = (ast.get_docstring(node) or "").partition("\n")[0]
            own = node.args.posonlyargs + node.args.args + node.args.kwonlyargs
            if purpose and own:
                module = name.replace("/", ".")
                parameters = tuple(argument.arg for argument in own)
                found.append(Function(f"{module}.{node.name}", purpose, parameters))
    return tuple(found)


def _sources() -> Iterator[tuple[str, str, ast.Module]]:
    root = Path(sysconfig.get_path("stdlib"))
    for name in MODULES:
        path = root / f"{name}.py"
        if path.is_file():
            text = path.read_text(encoding="utf-8")
            yield name, text, ast.parse(text)


def _pieces(text: str, tree: ast.Module) -> Iterator[Block]:
    """A definition with its decorators is a piece, and what stands between two of them."""
    lines, start = text.splitlines(), 0
    for node in tree.body:
        if not isinstance(node, (ast.FunctionDef, ast.ClassDef)) or node.end_lineno is None:
            continue
        first = min([node.lineno, *(mark.lineno for mark in node.decorator_list)]) - 1
        plain = isinstance(node, ast.FunctionDef) and not node.decorator_list
        yield from _block(lines[start:first])
        yield from _block(lines[first : node.end_lineno], node.name if plain else "")
        start = node.end_lineno
    yield from _block(lines[start:])


def _block(lines: list[str], function: str = "") -> Iterator[Block]:
    """These lines, if they say anything."""
    if text := "\n".join(lines).strip("\n"):
        yield Block(text, function)
