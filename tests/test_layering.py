"""Who may import whom: the arrows of `docs/design.md`, read from the source."""

import ast
import json
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = "sgl_sparsekv"
BASE = {"types", "segment_records", "summaries", "geometry", "errors"}
ALLOWED = {
    "errors": set(),
    "geometry": set(),
    "segment_records": set(),
    "types": {"segment_records", "summaries"},
    "summaries": set(),
    "routes": {"types"},
    "layer_ops": set(),
    "segment_ops": {"types", "segment_records", "summaries"},
    "ops": {"types", "segment_ops", "summaries"},
    "fused_ops": {"types", "routes", "ops"},
    "selection": {*BASE, "ops", "segments"},
    "page_metadata": {*BASE, "ops"},
    "segments": BASE,
    "tooling": {"errors", "geometry"},
    "config_file": {"errors"},
    "config": {*BASE, "selection", "ops", "routes"},
    "views": {"types", "selection", "config"},
}
"""Parts below the backend or the tools, and the parts they may import."""
SGLANG = ("plugin.py", "platform_cpu.py", "backend/")
"""Where SGLang may be imported."""
SGLANG_LAZILY = ("serving/", "commands/", "with_plugins.py")
"""Where it may be imported when a function runs."""
SGLANG_PROGRAMS = ("serving/frontend.py", "serving/worker.py", "demo/program.py")
"""Imported only by who writes a program in SGLang's frontend language, and by SGLang itself."""
ONE_SCHEDULER = {"plugin", "backend", "serving"}
"""Parts that import each other's modules: the observer counts what the front end reports."""
NO_SLOTS = ("models", "demo")
"""Tools that know documents and no pool: their pages are a way to cut a text."""

SCHEDULER_STATE = {
    "backend/gate.py",
    "backend/host_copies.py",
    "backend/request_table.py",
    "backend/sharing.py",
    "backend/views/short_memory.py",
    "serving/metrics.py",
}
"""Modules that rebind a name of their own."""


@dataclass(frozen=True)
class Import:
    """One import of one file.

    Attributes:
        module: absolute name.
        lazy: it happens when a function runs.
        line: for the message.
    """

    module: str
    lazy: bool
    line: int


def files() -> list[Path]:
    """Every Python file of the package and its kernels."""
    found = [*(ROOT / PACKAGE).rglob("*.py"), *(ROOT / "kernels").rglob("*.py")]
    return sorted(path for path in found if "__pycache__" not in path.parts)


def name_of(path: Path) -> str:
    """Dotted name of a file's module."""
    relative = path.relative_to(ROOT).with_suffix("")
    parts = [*relative.parts]
    if parts[0] == "kernels":
        parts = [PACKAGE, *parts]
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(path: Path) -> Iterator[Import]:
    """Imports of a file, those for type checking only left out."""

    def visit(node: ast.AST, lazy: bool) -> Iterator[Import]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
                continue
            if isinstance(child, ast.Import):
                yield from (Import(alias.name, lazy, child.lineno) for alias in child.names)
            elif isinstance(child, ast.ImportFrom):
                base = absolute(path, child)
                yield Import(base, lazy, child.lineno)
                for alias in child.names:
                    yield Import(f"{base}.{alias.name}", lazy, child.lineno)
            inside = isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
            yield from visit(child, lazy or inside)

    return visit(ast.parse(path.read_text()), False)


def absolute(path: Path, node: ast.ImportFrom) -> str:
    """Module that a `from ... import` names."""
    if not node.level:
        return node.module or ""
    package = name_of(path).split(".")
    keep = len(package) - node.level + (path.name == "__init__.py")
    return ".".join([*package[:keep], *filter(None, [node.module])])


def part_of(module: str) -> str | None:
    """Part of the package that a module belongs to; None outside the package."""
    head, _, rest = module.partition(".")
    return rest.partition(".")[0] or "root" if head == PACKAGE else None


def test_files_are_found() -> None:
    """The checks below look at something."""
    assert len(files()) > 30


def test_parts_below_the_backend_import_only_what_they_may() -> None:
    """plugin -> backend -> {selection, page_metadata, ops} -> {types, geometry, config, errors}."""
    known = {part_of(name_of(path)) for path in files()}
    wrong = []
    for path in files():
        part = part_of(name_of(path))
        if part not in ALLOWED:
            continue
        for found in imports(path):
            target = part_of(found.module)
            if target in known and target not in {*ALLOWED[part], part, "root"}:
                wrong.append(f"{path.relative_to(ROOT)}:{found.line} {found.module}")
    assert not wrong


def graph() -> dict[str, set[str]]:
    """Modules that each module imports, whenever it does."""
    known = {name_of(path): path for path in files()}
    found: dict[str, set[str]] = {}
    for name, path in known.items():
        named = {each.module for each in imports(path)} & set(known)
        # `from package import module` names both; the module is what is meant.
        packages = {parent for parent in named if any(m.startswith(f"{parent}.") for m in named)}
        found[name] = named - packages - {name}
    return found


def circle(imported: Mapping[str, set[str]]) -> list[str]:
    """Names that import each other in turn, from one back to itself; empty where none do."""
    try:
        TopologicalSorter(imported).prepare()
    except CycleError as error:
        names: list[str] = error.args[1]
        return names
    return []


def test_a_circle_is_seen() -> None:
    """The checks below can fail."""
    assert circle({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}})[0] in "abc"
    assert circle({"a": {"b", "c"}, "b": {"c"}}) == []


def test_no_modules_import_each_other() -> None:
    """Not even when a function runs: whoever reads one must not need the other first."""
    assert circle(graph()) == []


def test_no_parts_import_each_other() -> None:
    """But those that share a scheduler."""
    parts: dict[str, set[str]] = {}
    for name, imported in graph().items():
        mine, theirs = part_of(name), {str(part_of(module)) for module in imported}
        both = ONE_SCHEDULER if mine in ONE_SCHEDULER else set()
        parts.setdefault(str(mine), set()).update(theirs - {mine, "root"} - both)
    assert circle(parts) == []


def test_kernels_import_only_the_shared_types() -> None:
    """A device is reached through `ops.load_ops` and knows no method, pool or option."""
    wrong = []
    for path in files():
        module = name_of(path).split(".")
        if module[:2] != [PACKAGE, "kernels"] or len(module) < 3:
            continue
        own = ".".join(module[:3])
        for found in imports(path):
            target = part_of(found.module)
            if target not in {*BASE, None, "root"} and not f"{found.module}.".startswith(f"{own}."):
                wrong.append(f"{path.relative_to(ROOT)}:{found.line} {found.module}")
    assert not wrong


def test_sglang_is_imported_only_at_the_border() -> None:
    """And only when a function runs, where a client or a command may be without it."""
    wrong = []
    for path in files():
        place = str(path.relative_to(ROOT)).removeprefix(f"{PACKAGE}/")
        for found in imports(path):
            if found.module.split(".")[0] == "sglang" and not place.startswith(SGLANG):
                lazily = found.lazy and place.startswith(SGLANG_LAZILY)
                if not lazily and place not in SGLANG_PROGRAMS:
                    wrong.append(f"{path.relative_to(ROOT)}:{found.line} {found.module}")
    assert not wrong


def test_programs_in_the_frontend_language_are_imported_lazily() -> None:
    """Nothing else of the package pulls SGLang in through them."""
    programs = {name_of(ROOT / PACKAGE / place) for place in SGLANG_PROGRAMS}
    wrong = [
        f"{path.relative_to(ROOT)}:{found.line} {found.module}"
        for path in files()
        if name_of(path) not in programs
        for found in imports(path)
        if found.module in programs and not found.lazy
    ]
    assert not wrong


@pytest.mark.parametrize(
    ("library", "folder"),
    (("triton", "triton"), ("flashinfer", "flashinfer"), ("sgl_kernel", "flashinfer")),
)
def test_gpu_libraries_stay_in_their_device(library: str, folder: str) -> None:
    """Each in one `kernels/` folder; stock attention kernels share one."""
    wrong = [
        f"{path.relative_to(ROOT)}:{found.line}"
        for path in files()
        for found in imports(path)
        if found.module.split(".")[0] == library
        and path.relative_to(ROOT).parts[:2] != ("kernels", folder)
    ]
    assert not wrong


def test_only_geometry_divides_by_a_page_size() -> None:
    """`// page_size` and `% page_size` occur in one file of those that know slots."""
    wrong = []
    for path in files():
        if part_of(name_of(path)) in ("geometry", *NO_SLOTS):
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.BinOp) and isinstance(node.op, (ast.FloorDiv, ast.Mod)):
                divisor = ast.unparse(node.right)
                if divisor.split(".")[-1].lower() in ("page_size", "default_page_size"):
                    wrong.append(f"{path.relative_to(ROOT)}:{node.lineno} {ast.unparse(node)}")
    assert not wrong


def test_only_a_scheduler_process_keeps_state_of_its_own() -> None:
    """It serves one engine and ends with it; front ends of several may share a process."""
    found = {
        str(path.relative_to(ROOT / PACKAGE))
        for path in (ROOT / PACKAGE).rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Global)
    }
    assert found == SCHEDULER_STATE


def test_serving_has_no_circles() -> None:
    """Its modules can be read in an order, each after those that it imports."""
    inside = {name_of(path): path for path in files() if part_of(name_of(path)) == "serving"}
    needs = {
        name: {found.module for found in imports(path)} & set(inside) - {name}
        for name, path in inside.items()
    }
    while needs:
        free = [name for name, needed in needs.items() if not needed & set(needs)]
        assert free, f"a circle among {sorted(needs)}"
        for name in free:
            del needs[name]


def test_nothing_imports_the_backend_but_the_plugin_and_commands() -> None:
    """The arrow from the plugin points one way; `serving` and `backend` share the scheduler."""
    allowed = {"plugin", "backend", "serving", "commands", "cli"}
    wrong = [
        f"{path.relative_to(ROOT)}:{found.line} {found.module}"
        for path in files()
        for found in imports(path)
        if part_of(found.module) == "backend" and part_of(name_of(path)) not in allowed
    ]
    assert not wrong


def test_a_cold_import_needs_no_sglang() -> None:
    """Options, methods, ops and models can be used where SGLang is not running."""
    modules = ["config", "selection", "ops", "models", "errors", "types", "geometry", "plugin"]
    script = (
        "import importlib, json, sys\n"
        f"for name in {modules!r}: importlib.import_module('{PACKAGE}.' + name)\n"
        f"importlib.import_module('{PACKAGE}.ops').load_ops('reference')\n"
        f"importlib.import_module('{PACKAGE}.routes').load_route('fa2')\n"
        "heads = sorted({name.split('.')[0] for name in sys.modules})\n"
        "gpu = ('sglang', 'triton', 'flashinfer', 'sgl_kernel')\n"
        "print(json.dumps([h for h in heads if h in gpu]))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd="/"
    )
    assert json.loads(done.stdout) == []
