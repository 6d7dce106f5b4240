"""The published wording of RULER, read from the installed lm-evaluation-harness.

A benchmark is defined by its words, and they belong to their authors: none is repeated here. The
harness's source files are parsed and never imported, as importing them downloads data.
"""

import ast
import hashlib
from collections.abc import Iterator
from dataclasses import astuple, dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path

NEEDED = "ruler needs lm_eval 0.4.13: pip install 'sgl-sparsekv[eval]'"
DIGEST = "b7f65b79cb2e0f8e"
"""Of the wording of lm_eval 0.4.13, so that another one is noticed."""


@dataclass(frozen=True)
class Wording:
    """Templates of the tasks, with fields in braces, and the sentences they are filled with.

    Attributes:
        needle: a hidden sentence: type_needle_v, key, value.
        noise: sentences that say nothing.
        niah, vt, cwe, fwe, qa: prompt and start of the answer; the prompt has context and query.
        document: a numbered document of `qa`: i, document.
    """

    needle: str
    noise: str
    niah: tuple[str, str]
    vt: tuple[str, str]
    cwe: tuple[str, str]
    fwe: tuple[str, str]
    qa: tuple[str, str]
    document: str


@cache
def wording() -> Wording:
    """What RULER says, with NVIDIA's spelling and spaces where the harness has others.

    Raises:
        ValueError: the harness is not installed, or its wording is another one.
    """
    spec = find_spec("lm_eval")
    if spec is None or spec.origin is None:
        raise ValueError(NEEDED)
    try:
        found = _read(Path(spec.origin).parent / "tasks" / "ruler")
    except (OSError, LookupError, StopIteration, SyntaxError):
        raise ValueError(NEEDED) from None
    if digest(found) != DIGEST:
        raise ValueError(NEEDED)
    return found


def digest(words: Wording) -> str:
    """A short mark of all of it."""
    return hashlib.sha256(repr(astuple(words)).encode()).hexdigest()[:16]


def _read(folder: Path) -> Wording:
    trees = {
        name: ast.parse((folder / f"{name}.py").read_text(encoding="utf-8"))
        for name in ("prepare_niah", "niah_utils", "vt_utils", "cwe_utils", "fwe_utils", "qa_utils")
    }
    vt, vt_start = _pair(trees["vt_utils"])
    qa, qa_start = _pair(trees["qa_utils"])
    niah_start = next(t for t in _mixed(trees["prepare_niah"], "gen_prefix") if t.endswith(" are"))
    return Wording(
        needle=_named(trees["prepare_niah"], "NEEDLE"),
        noise=max(_all_named(trees["prepare_niah"], "haystack"), key=len),
        niah=(_named(trees["niah_utils"], "TEMPLATE"), f" {niah_start}"),
        vt=(vt, vt_start.replace("assgined", "assigned")),
        cwe=_pair(trees["cwe_utils"]),
        fwe=_pair(trees["fwe_utils"]),
        qa=(qa, f" {qa_start}"),
        document=_named(trees["qa_utils"], "DOCUMENT_PROMPT"),
    )


def _all_named(tree: ast.Module, name: str) -> Iterator[str]:
    """Texts that are assigned to a variable, in order of the file."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant):
            targets = [target.id for target in node.targets if isinstance(target, ast.Name)]
            if name in targets and isinstance(node.value.value, str):
                yield node.value.value


def _named(tree: ast.Module, name: str) -> str:
    return next(_all_named(tree, name))


def _entries(tree: ast.Module, key: str) -> Iterator[ast.expr]:
    """Values of a key, in every dictionary of the file."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Dict):
            for left, right in zip(node.keys, node.values, strict=True):
                if isinstance(left, ast.Constant) and left.value == key:
                    yield right


def _pair(tree: ast.Module) -> tuple[str, str]:
    """Prompt and start of the answer, as the file's settings have them."""
    found = []
    for key in ("template", "answer_prefix"):
        values = (ast.literal_eval(node) for node in _entries(tree, key))
        found.append(next(value for value in values if isinstance(value, str)))
    return found[0], found[1]


def _mixed(tree: ast.Module, key: str) -> Iterator[str]:
    """Formatted texts of a key, each variable as a field in braces again."""
    for node in (inner for entry in _entries(tree, key) for inner in ast.walk(entry)):
        if isinstance(node, ast.JoinedStr):
            yield "".join(
                str(part.value)
                if isinstance(part, ast.Constant)
                else f"{{{ast.unparse(part.value)}}}"
                for part in node.values
                if isinstance(part, ast.Constant | ast.FormattedValue)
            )
