"""The kernels are built once, found again, and missed with one clear sentence."""

import re
import subprocess
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from sgl_sparsekv.kernels.cpu import build, levels, library

from sgl_sparsekv.errors import UnsupportedOnDevice, UnsupportedSetup
from sgl_sparsekv.kernels import cpu
from sgl_sparsekv.selection.quest import Quest
from sgl_sparsekv.summaries import PageSummary


def test_building_twice_compiles_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    level = levels.runnable_levels()[-1]
    first = build.build_level(level, tmp_path)
    assert levels.built_library(level, tmp_path) == first

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("compiled again")

    monkeypatch.setattr(subprocess, "run", refuse)
    assert build.build_level(level, tmp_path) == first
    assert list(tmp_path.iterdir()) == [first]


def test_a_failed_compilation_says_what_the_compiler_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(build, "FLAGS", ("--no-such-option",))
    with pytest.raises(UnsupportedSetup, match="no-such-option"):
        build.build_level(levels.runnable_levels()[0], tmp_path)
    assert not list(tmp_path.iterdir())


def test_missing_build_says_what_to_run(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(library, "built_library", lambda level: None)
    with pytest.raises(
        UnsupportedSetup, match=r"run `python -m sgl_sparsekv\.kernels\.cpu\.build`"
    ):
        cpu.load()


def test_a_level_that_this_cpu_lacks_is_refused():
    with pytest.raises(UnsupportedSetup, match="level neon2"):
        cpu.load("neon2")


def test_arguments_are_packed_in_the_order_of_their_structs():
    source = re.sub(r"//.*", "", (levels.FOLDER / "args.h").read_text())
    bodies = dict(re.findall(r"struct (\w+)(?: : Memory)? \{(.*?)\};", source, re.DOTALL))

    def fields(name: str) -> list[tuple[str, bool]]:
        """Names, each with whether it is a double; those of a member struct in its place."""
        found = []
        for kind, star, names in re.findall(r"(?:const )?(\w+)(\*?)\** ([^;]+);", bodies[name]):
            members = [one.strip(" *") for one in names.split(",")]
            inner = fields(kind) if kind in bodies and not star else None
            found += inner or [(one, kind == "double") for one in members]
        return found

    names = {"score_clusters": "CodeArgs", "score_codes": "CodeArgs", "select_units": "SelectArgs"}
    names |= {"index_segments": "IndexArgs", "attend_all": "AttendAllArgs"}
    for kernel, listed in library.FIELDS.items():
        want = fields(names.get(kernel, f"{kernel.capitalize()}Args"))
        assert [(one, one in library.REAL) for one in listed.split()] == want, kernel


def test_unknown_summary_and_wrong_tensors_are_refused():
    ops = cpu.load()
    other = PageSummary("sum", ("sum",), Quest.summary.summarise, Quest.summary.score)
    keys = torch.zeros(32, 1, 8)
    with pytest.raises(UnsupportedOnDevice, match="sum"):
        ops.summarise(other, keys, torch.zeros(2, 1, 2, 8), torch.zeros(1, dtype=torch.int64))
    with pytest.raises(ValueError, match="keys must be contiguous"):
        strided = torch.zeros(32, 1, 16)[..., ::2]
        ops.summarise(Quest.summary, strided, torch.zeros(2, 1, 2, 8), torch.tensor([0]))
    one = torch.ones(1, dtype=torch.int32)
    with pytest.raises(ValueError, match="q must have the pool's dtype"):
        table = torch.zeros(1, 1, 1, dtype=torch.int32)
        ops.attend(torch.zeros(1, 1, 1, 8).half(), keys, keys, table, one, one, 1.0, 16)


def test_the_kernels_run_on_torchs_own_threads() -> None:
    """Another package's OpenMP runtime in the process must not become a second, spinning pool."""
    with suppress(ImportError):  # loads the libgomp of its own wheel
        import sklearn.utils._openmp_helpers  # noqa: F401
    own = Path(torch.__file__).parent / "lib"
    assert Path(library.openmp_library()._name).parent == own
