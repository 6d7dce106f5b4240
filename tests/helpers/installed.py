"""Installed packages, read without importing them: some need a GPU to be imported."""

import ast
import inspect
from functools import cache
from importlib.util import find_spec
from pathlib import Path


@cache
def signature_of(package: str, file: str, *names: str) -> inspect.Signature:
    """Signature of a function (inside other functions) read from an installed source file."""
    spec = find_spec(package)
    assert spec is not None and spec.origin is not None
    node: ast.AST = ast.parse((Path(spec.origin).parent / file).read_text())
    for name in names:
        inner = (n for n in ast.walk(node) if isinstance(n, ast.FunctionDef) and n.name == name)
        node = next(inner)
    assert isinstance(node, ast.FunctionDef)
    kinds, given = inspect.Parameter, node.args
    plain = [*given.posonlyargs, *given.args]
    missing = len(plain) - len(given.defaults)
    found = [
        kinds(a.arg, kinds.POSITIONAL_OR_KEYWORD, default=kinds.empty if i < missing else None)
        for i, a in enumerate(plain)
    ]
    for a, default in zip(given.kwonlyargs, given.kw_defaults, strict=True):
        found.append(kinds(a.arg, kinds.KEYWORD_ONLY, default=None if default else kinds.empty))
    return inspect.Signature(found)
