"""The kernels with other constants, or with lines of their sources changed.

Each is a copy of `kernels/triton` imported under a name of its own, so nothing of the package's own
changes. What a line costs is what is saved without it; sweeps and the tests' mutants use the same.
"""

import atexit
import hashlib
import shutil
import sys
import tempfile
from dataclasses import dataclass, replace
from functools import cache
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

from sgl_sparsekv.kernels.triton import launch
from sgl_sparsekv.kernels.triton.ops import TritonOps

from sgl_sparsekv.kernels import triton as kernels

SOURCES = Path(kernels.__file__).parent
VARIANT = "sparsekv_variant_"
"""How names of copies begin."""


@dataclass(frozen=True)
class Variant:
    """What differs from the package's kernels.

    Attributes:
        name: as it is printed.
        edits: file, a text that it has once, and what stands there instead.
        constants: names of `tuning.py` and their values.
        tuning: fields of every architecture's `Tuning` and their values.
    """

    name: str
    edits: tuple[tuple[str, str, str], ...] = ()
    constants: tuple[tuple[str, int], ...] = ()
    tuning: tuple[tuple[str, int], ...] = ()


@cache
def made(variant: Variant) -> TritonOps:
    """The ops of a variant.

    Raises:
        ValueError: a text or a name is not in the sources of today.
    """
    digest = hashlib.sha256(repr(variant).encode()).hexdigest()[:12]
    package = _imported(f"{VARIANT}{digest}", variant)
    for name, value in variant.constants:
        _set(package, name, value)
    table: dict[Any, Any] = import_module(f"{package.__name__}.tuning").TUNING
    for key, tuned in table.items() if variant.tuning else ():
        try:
            table[key] = replace(tuned, **dict(variant.tuning))
        except TypeError as error:
            raise ValueError(f"{variant.name}: {error}") from error
    import_module(f"{package.__name__}.launch").capability = launch.capability
    ops: TritonOps = import_module(f"{package.__name__}.ops").TritonOps()
    return ops


def _imported(name: str, variant: Variant) -> ModuleType:
    """A copy of the kernels' package with the edits made."""
    edited: dict[str, str] = {}
    for file, old, new in variant.edits:
        text = edited.get(file) or (SOURCES / file).read_text()
        if text.count(old) != 1:
            raise ValueError(f"{variant.name}: {file} must have {old!r} once")
        edited[file] = text.replace(old, new)
    folder = _folder() / name
    shutil.copytree(SOURCES, folder, ignore=shutil.ignore_patterns("__pycache__"))
    for file, text in edited.items():
        (folder / file).write_text(text)
    return import_module(name)


@cache
def _folder() -> Path:
    """Where copies lie as long as this process lives: Triton reads their sources."""
    folder = Path(tempfile.mkdtemp(prefix="sparsekv-variants-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    sys.path.append(str(folder))
    return folder


def _set(package: ModuleType, name: str, value: int) -> None:
    """Set a constant in every module of a copy that has it."""
    prefix, found = f"{package.__name__}.", False
    for module in [m for key, m in sys.modules.items() if key.startswith(prefix)]:
        if name in vars(module):
            setattr(module, name, value)
            found = True
    if not found:
        raise ValueError(f"constant must be one of tuning.py, got {name}")
