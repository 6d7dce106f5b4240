"""The first minutes on a GPU, rehearsed: all of it runs, a broken kernel is named, time is kept."""

import inspect
import json
import os
import subprocess
import sys
import tarfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from sgl_sparsekv.kernels.triton.catalogue import COMMON, cases
from sgl_sparsekv.kernels.triton.ops import TritonOps

from bench.gpu.harvest import __main__ as command
from bench.gpu.harvest import candidates, drive, finish, points
from bench.gpu.harvest.archive import write_archive
from bench.gpu.harvest.differ import near, same
from bench.gpu.harvest.drive import Drive, child
from bench.gpu.harvest.jobs import JOBS, STAGES, Job, Stage
from bench.gpu.log import FAILED, OK, SKIPPED, Check, Entry, Fact, Log, Measured, read
from bench.gpu.methods import FEWER
from bench.gpu.shapes import REHEARSED_ALONE, UNITS
from bench.gpu.variants import Variant, made

ROOT = Path(__file__).parents[2]
CHECKS = {stage.name: stage for stage in STAGES}["checks"]
ROWS = {stage.name: stage for stage in STAGES}["rows"]
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning:triton")

MUTANTS = {
    "score": ("score.py", "tl.where(q > 0, q, 0.0)", "tl.where(q > 1, q, 0.0)"),
    "select": ("radix.py", "bitcast=True) ^ 0x80000000", "bitcast=True) ^ 0x00000000"),
    "attend": ("attend.py", "tl.exp2(share - joined[None, :])", "tl.exp2(share)"),
    "plan": ("step.py", "(budget - tail) // own + 1, 1)", "(budget - tail) // UNIT, 1)"),
}
"""Check -> file, a text of it, and what is wrong instead."""


def entries_of(logs: Path) -> list[Entry]:
    """What a run has found, in order of its files' names."""
    return [entry for path in sorted(logs.glob("*.jsonl")) for entry in read(path)]


def checks(entries: Sequence[Entry], status: str) -> list[str]:
    """Names of checks with a status."""
    return [e.name for e in entries if isinstance(e, Check) and e.status == status]


def test_a_rehearsal_runs_every_stage_and_packs_what_it_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    archive = tmp_path / "harvest.tgz"
    logs = tmp_path / "logs"
    before = sorted((ROOT / "bench" / "results").rglob("*"))
    done = command.main(["--rehearse", "--logs", str(logs), "--archive", str(archive)])
    assert done == 0, capsys.readouterr().out
    first = {stage.jobs[0].name if stage.name == "compile" else "" for stage in STAGES}
    ran = {job.name for stage in STAGES if stage.name != "compile" for job in stage.jobs}
    with tarfile.open(archive) as packed:
        names = set(packed.getnames())
    assert {"report.json", *(f"{name}.jsonl" for name in (ran | first) - {""})} <= names
    report = json.loads((logs / "report.json").read_text())
    kinds = [entry["kind"] for entry in report["entries"]]
    assert kinds.count("Measured") >= 3 and kinds.count("Fact") >= 30
    assert ran <= set(checks(entries_of(logs), OK))
    assert sorted((ROOT / "bench" / "results").rglob("*")) == before


def broken_kernels(*names: str) -> TritonOps:
    """Kernels with some of the mutants."""
    return made(Variant(" and ".join(names), edits=tuple(MUTANTS[name] for name in names)))


@pytest.mark.parametrize("broken", [("score", "plan"), ("select", "attend")], ids=" and ".join)
def test_a_broken_kernel_is_named(broken: tuple[str, ...], tmp_path: Path) -> None:
    """Two at once: neither hides the other, nor is another launch blamed for what it was given."""
    others = ("gate", "select-cuda", "views", "methods")
    alone = replace(CHECKS, jobs=tuple(job for job in CHECKS.jobs if job.name not in others))
    assert finish.rehearse([alone], tmp_path, None, broken_kernels(*broken)) == 1
    wrong = {
        job.name: [e for e in read(tmp_path / f"{job.name}.jsonl") if is_failed(e)]
        for job in alone.jobs
    }
    assert {name for name, found in wrong.items() if found} == set(broken)
    for name in broken:
        assert "first wrong at " in wrong[name][0].detail and "are wrong" in wrong[name][0].detail


def test_views_are_read_and_a_broken_read_is_named(tmp_path: Path) -> None:
    """Tokens since a view was made, taken from elsewhere."""
    stage = replace(CHECKS, jobs=(JOBS["views"],))
    assert finish.rehearse([stage], tmp_path, None, None) == 0
    wrong = ("attend.py", "chosen, token + shift)", "chosen, token)")
    broken = made(Variant("views", edits=(wrong,)))
    assert finish.rehearse([stage], tmp_path, None, broken) == 1
    failed = [e for e in read(tmp_path / "views.jsonl") if is_failed(e)]
    assert failed and "first wrong at " in failed[0].detail


READ_WRONG = (
    ("rest.py", "logit += tl.log(tl.maximum(left, 1).to(tl.float32))[None, :]", "logit += 0.0"),
    ("outliers.py", "        mark(logits, unit, keep)", "        mark(logits, unit, unit < 0)"),
    ("levels.py", "bound >= least - MARGIN", "bound >= least + 9"),
    ("cover.py", "unread = 1 - tl.load(goals + row)", "unread = 1.2 - tl.load(goals + row)"),
    ("held.py", "tl.where(uses, NOTHING, formula)", "tl.where(uses, formula, NOTHING)"),
    ("int8_bounds.py", "field + stride_plane, units, known", "field, units, known"),
)
"""A mutant for each reader that is rehearsed, in their order."""


def test_methods_are_read_and_each_that_is_broken_is_named(tmp_path: Path) -> None:
    """All at once: none hides another, and records are not blamed."""
    stage = replace(CHECKS, jobs=(JOBS["methods"],))
    broken = made(Variant("methods", edits=READ_WRONG))
    assert finish.rehearse([stage], tmp_path, None, broken) == 1
    found = {e.name: e for e in read(tmp_path / "methods.jsonl") if isinstance(e, Check)}
    assert found.pop("methods").status == OK and len(found) == len(FEWER)
    assert all(is_failed(one) and "first wrong at " in one.detail for one in found.values())


def test_a_broken_candidate_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`select` in CUDA C++, emulated; its other check is made all the same."""
    wrong = ("cuda/select.cu", "0x7fffffff)) ^ 0x80000000", "0x7fffffff)) ^ 0x00000000")
    broken = Variant("CUDA C++", edits=(*points.SELECT_CUDA.edits, wrong))
    monkeypatch.setattr(candidates, "SELECT_CUDA", broken)
    stage = replace(CHECKS, jobs=(JOBS["select-cuda"],))
    assert finish.rehearse([stage], tmp_path, None) == 1
    found = [e.detail for e in read(tmp_path / "select-cuda.jsonl") if is_failed(e)]
    assert len(found) == 1 and "first wrong at row 0, head 0" in found[0]
    assert "select in CUDA C++ in a step" in " ".join(checks(entries_of(tmp_path), OK))


def test_kernels_that_are_wrong_are_timed_and_not_judged(tmp_path: Path) -> None:
    """All of them broken: every row is there."""
    gate = Check(f"gate {REHEARSED_ALONE}, units of {UNITS[-1]}", FAILED)
    Log(tmp_path / "gate.jsonl").add(gate)
    assert finish.rehearse([ROWS], tmp_path, None, broken_kernels(*MUTANTS)) == 0
    found = read(tmp_path / "rows.jsonl")
    rows = [entry for entry in found if isinstance(entry, Measured)]
    assert {row.name for row in rows} == {"selection", "attend", "attention", "shared_prefix"}
    assert not any(row.judged for row in rows)
    notes = {(row.batch, row.note.rpartition("gate ")[2]) for row in rows}
    assert notes == {(1, "failed: not judged"), (2, "not run: not judged")}


def is_failed(entry: Entry) -> bool:
    """Whether a check failed."""
    return isinstance(entry, Check) and entry.status == FAILED


def test_the_first_wrong_place_is_named() -> None:
    want = torch.zeros(2, 3, 4)
    got = want.clone()
    got[1, 0, 2], got[1, 2, 3] = 0.5, torch.nan
    text = r"scores: first wrong at row 1, head 0, unit 2: got 0\.5, want 0; 2 of 24 are wrong"
    for compare in (lambda: same("scores", got, want), lambda: near("scores", got, want, 0.25)):
        with pytest.raises(AssertionError, match=text):
            compare()
    near("scores", got.nan_to_num(), want, 0.5)
    empty = torch.full((2,), torch.nan)
    same("what nobody wrote", empty, empty.clone())


WORDS = {
    "writes": "note('ok'); print('said')",
    "dies": "note('ok'); print('last words'); raise SystemExit(3)",
    "hangs": "note('ok'); signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(60)",
    "says nothing": "pass",
    "late": "note('ok')",
}
SCRIPT = (
    "import json, signal, sys, time\n"
    "assert float(sys.stdin.readline()) > 0\n"
    "def note(status):\n"
    "    entry = dict(kind='Check', name='inside', status=status, detail='', seconds=0.0)\n"
    "    open(sys.argv[1], 'a').write(json.dumps(entry) + '\\n')\n"
)


def stages(*names: tuple[str, ...]) -> list[Stage]:
    """Stages of small jobs."""
    return [
        Stage(f"stage {i}", 10, "whether", tuple(Job(job, lambda run: None) for job in jobs))
        for i, jobs in enumerate(names)
    ]


def small(logs: Path) -> Any:
    """The command of a small job."""
    return lambda job: [
        sys.executable, "-c", SCRIPT + WORDS[job.name], str(logs / f"{job.name}.jsonl")
    ]  # fmt: skip


def test_a_job_that_dies_or_hangs_leaves_the_others(tmp_path: Path) -> None:
    """Those beside it and behind it; and the bound is kept though one ignores that it is ended."""
    start, wrote = time.monotonic(), []
    one = Drive(tmp_path, start + 13, small(tmp_path), lambda entries: wrote.append(len(entries)))
    found = one.run(stages(("writes", "dies", "hangs", "says nothing"), ("late",)))
    assert time.monotonic() - start < 13 + 3
    status = {e.name: e for e in found if isinstance(e, Check) and e.name != "inside"}
    assert {name: one.status for name, one in status.items()} == {
        "writes": OK, "dies": FAILED, "hangs": FAILED, "says nothing": FAILED, "late": OK,
    }  # fmt: skip
    assert status["dies"].detail == "ended with 3: last words"
    assert status["hangs"].detail.startswith("ended after 6 s")
    assert checks(found, OK).count("inside") == 4, "what they had found is kept"
    assert wrote == [7, 9] and (tmp_path / "writes.log").read_text() == "said\n"


def test_what_there_is_no_time_for_is_said(tmp_path: Path) -> None:
    one = Drive(tmp_path, time.monotonic() + 1, small(tmp_path))
    found = one.run(stages(("writes",), ("late",)))
    assert [(e.name, e.status, e.detail) for e in found if isinstance(e, Check)] == [
        (name, SKIPPED, "cut: out of time") for name in ("writes", "late")
    ]


def test_a_run_that_is_stopped_has_its_archive(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By Ctrl-C as the second stage begins; what waits for its turn is ended too."""
    told: list[Any] = []

    def go(process: Any, seconds: float) -> None:
        told.append(process)
        if len(told) == 2:
            raise KeyboardInterrupt
        real_go(process, seconds)

    monkeypatch.setattr(finish, "child", lambda job, logs: small(logs)(job))
    real_go = drive.go
    monkeypatch.setattr(drive, "go", go)
    archive, logs = tmp_path / "x.tgz", tmp_path / "logs"
    logs.mkdir()
    asked = (stages(("writes",), ("late",)), logs, archive, time.monotonic() + 60, "0123abc")
    with pytest.raises(KeyboardInterrupt):
        finish.harvest(*asked)
    with tarfile.open(archive) as packed:
        report = json.load(packed.extractfile("report.json"))  # type: ignore[arg-type]
        assert {"report.json", "writes.jsonl", "writes.log"} <= set(packed.getnames())
    assert [entry["name"] for entry in report["entries"]] == ["inside", "writes"]
    assert report["commit"] == "0123abc"
    assert all(process.poll() is not None for process in told)


def test_an_archive_has_its_most_and_says_what_it_lacks(tmp_path: Path) -> None:
    logs = tmp_path / "logs"
    logs.mkdir()
    for name, size in (("report.json", 500), ("a.log", 100), ("layer.ncu-rep", 5000)):
        (logs / name).write_bytes(os.urandom(size))
    assert write_archive(tmp_path / "x.tgz", logs, 2000) == ["layer.ncu-rep"]
    with tarfile.open(tmp_path / "x.tgz") as packed:
        assert packed.getnames() == ["report.json", "a.log"]
    assert write_archive(tmp_path / "x.tgz", logs) == []


def test_rows_of_a_card_are_saved_with_its_name(tmp_path: Path) -> None:
    """An H100's by its own bandwidth; what may not be judged has no target."""
    at = (32_768, 8, 64)
    entries = [
        Check("device", OK, "NVIDIA H100 80GB HBM3"),
        Fact("copy bandwidth", 3.0, "TB/s"),
        Measured("selection", *at, 12.0, 12.5),
        Measured("attention", *at, 50.0, 51.0, "torch flash", 390.0, judged=False),
    ]
    finish.conclude(entries, tmp_path, tmp_path / "x.tgz", "0123abc")
    (path,) = (tmp_path / "results" / "h100").glob("*.json")
    saved = json.loads(path.read_text())
    assert saved["header"]["tb_per_s"] == 3.0
    assert [row["targets"] for row in saved["rows"]] == [["selection"], []]
    with tarfile.open(tmp_path / "x.tgz") as packed:
        assert f"results/h100/{path.name}" in packed.getnames()


def test_a_job_runs_by_its_own_command(tmp_path: Path) -> None:
    job = JOBS["machine"]
    command = child(job, tmp_path, "--rehearse")
    done = subprocess.run(command, input=b"100\n", cwd=ROOT, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode()[-2000:]
    names = checks(read(tmp_path / "machine.jsonl"), OK)
    assert "versions" in names and any(name.startswith("Triton ") for name in names)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so_in_one_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main([]) == 2
    said = capsys.readouterr().err.strip()
    assert said.count("\n") == 0 and "no NVIDIA GPU" in said
    with pytest.raises(SystemExit):
        command.main(["--only", "nothing"])


def test_kernels_have_no_argument_that_a_launch_keeps_for_itself() -> None:
    """Triton binds arguments beside `**options`; only a launch on a GPU would say so."""
    for case in cases((9, 0), COMMON):
        names = set(case.kernel.arg_names)
        assert not names & {"options", "params", "specialization", "grid", "warmup"}, case.name


def test_launches_are_compiled_as_a_gpu_would() -> None:
    """By Triton's own launcher, for a Hopper, in a process that is not interpreted."""
    script = (
        "import bench.gpu.checkout, torch\n"
        "from bench.gpu.harvest import compile\n"
        "from bench.gpu.kernels import Run\n"
        "from bench.gpu.log import Log\n"
        "compile.compile_ahead(compile.HOPPER)\n"
        "run = Run(Log(), torch.device('cpu'), quick=True)\n"
        "every = compile.launches(run)\n"
        "print(len(every), sorted({one.kernel.fn.__name__ for one in every}))\n"
        "for name in ('begin_kernel', 'forget_kernel', 'seal_kernel'):\n"
        "    print(compile.compiled(next(o for o in every if o.kernel.fn.__name__ == name)))\n"
        "with compile.recorded() as early:\n"
        "    compile.launch_point(run, compile.Point(compile.LAYER, compile.EARLY))\n"
        "assert all(one.constants['EARLY'] for one in early)\n"
        "(attend, *_) = [one for one in early if one.kernel.fn.__name__ == 'attend_kernel']\n"
        "print(compile.compiled(attend), attend.compile().metadata.launch_pdl)\n"
    )
    env = {k: v for k, v in os.environ.items() if not k.startswith("TRITON_")}
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, env=env,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    count, _, names = done.stdout.partition(" ")
    assert int(count) > 50
    for name in ("score", "select", "attend", "summarise", "share", "begin", "forget", "seal"):
        assert f"'{name}_kernel'" in names
    assert done.stdout.count("registers, 0 bytes spilled") == 4
    assert done.stdout.rstrip().endswith(" s True"), "launched to start early"


def test_every_variant_changes_todays_sources() -> None:
    """An ablation whose line is gone tells nothing on a GPU."""
    measured = [*points.ablations(), *points.candidates(), *list(points.sweeps())[::9]]
    assert {point.launch for point in measured} == {"score", "select", "attend", "decode"}
    for point in measured:
        assert inspect.signature(made(point.variant).fused)
    gone = Variant("x", edits=(("score.py", "no such line", ""),))
    for _ in range(2):
        with pytest.raises(ValueError, match=r"score\.py must have 'no such line' once"):
            made(gone)
    with pytest.raises(ValueError, match=r"constant must be one of tuning\.py, got NO_SUCH"):
        made(Variant("x", constants=(("NO_SUCH", 1),)))
    with pytest.raises(ValueError, match="no_such"):
        made(Variant("x", tuning=(("no_such", 1),)))


def test_docs_name_every_stage() -> None:
    text = (ROOT / "docs" / "gpu.md").read_text()
    for stage in STAGES:
        assert f"| `{stage.name}` | {stage.answers} | {stage.seconds} s |" in text
