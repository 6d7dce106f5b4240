"""The results page: what the files say, and nothing else."""

import json
import re
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from bench import record
from bench.model import GPUS, KERNELS, LLAMA_3_1_8B, Workload, floors
from bench.record import header, row, save
from bench.report import __main__ as report
from bench.results_schema import FOLDER, load
from bench.tables import number, tokens
from bench.targets import JUDGED, TARGETS

ROOT = Path(__file__).parents[2]
K = 1024


@pytest.fixture
def run(monkeypatch):
    monkeypatch.setattr(
        record, "device_facts", lambda: {"name": "NVIDIA H200", "clocks.sm": "1980 MHz"}
    )
    return header("h200", bandwidth=4.25, commit="0123abc")


def test_the_page_is_what_the_files_give():
    found = (ROOT / "docs" / "results.md").read_text()
    assert found == report.render(), "run `python -m bench.report`"


def test_links_of_the_docs_lead_somewhere():
    for page in (ROOT / "README.md", *(ROOT / "docs").glob("*.md")):
        for link in re.findall(r"\]\(([^)#:]+)\)", page.read_text()):
            assert (page.parent / link).exists(), f"{page.name}: {link}"


def test_without_files_nothing_is_measured(tmp_path):
    page = report.render(tmp_path)
    targets = [
        line for line in page.splitlines() if line.startswith("|") and "not measured" in line
    ]
    assert all(f"{kernels.name}, units of 64" in page for kernels in KERNELS)
    listed = sum(len(one.shapes) + one.everywhere for one in TARGETS.values())
    assert len(targets) == listed * len(JUDGED)
    assert "No run on a CPU" in page and "No run on a GPU" in page
    assert ": met" not in page and ": missed" not in page


def test_every_figure_of_a_cpu_run_is_in_the_page():
    page = report.render()
    for path in FOLDER.glob("kernels-*.json"):
        for one in json.loads(path.read_text())["rows"]:
            cells = [number(one[key]) for key in ("ms", "median_ms", "floor_ms", "of_floor")]
            assert f"| {' | '.join(cells)} |" in page


def test_methods_of_a_cpu_run_are_judged_by_quest_and_their_index_by_prefill(tmp_path):
    newest = min(FOLDER.glob("kernels-*.json"))
    found = json.loads(newest.read_text())
    found["rows"] = [one for one in found["rows"] if one["method"] in ("quest", "dense")]
    rows = {(one["op"], one["context"]): one for one in found["rows"]}
    sparse, prefill = rows["decode_sparse", 32 * K], rows["prefill", 16 * K]
    found["rows"] += [
        {**sparse, "method": "pqcache", "ms": sparse["ms"] * 0.5},
        {**sparse, "method": "clusterkv", "ms": sparse["ms"] * 1.25},
        {**prefill, "op": "index", "method": "pqcache", "ms": prefill["ms"] * 0.02}
        | {"peer": "prefill", "peer_ms": prefill["ms"], "speedup": 50.0},
    ]
    (tmp_path / "kernels-cpu-1.json").write_text(json.dumps(found))
    lines = report.render(tmp_path).splitlines()
    for name, context, bound, figure in (
        ("decode, sparse: pqcache", "32k", "<= 1 times quest's", "0.500 | met"),
        ("decode, sparse: clusterkv", "32k", "<= 1 times quest's", "1.25 | missed"),
        ("index that prompt: pqcache", "16k", "<= 10% of the prefill", "2.000% | met"),
    ):
        assert f"| {name} | {context} | 1 | {bound} | {figure} |" in lines


def test_a_run_comes_back_as_it_was_saved(run, tmp_path):
    rows = [
        row("selection", Workload(32 * K, 8), 9.5, run, median_us=9.9),
        row("attention", Workload(32 * K, 8, 16), 31.0, run, peer=("fa3", 253.5), note="x"),
    ]
    path = save(run, rows, tmp_path)
    assert path.parent.name == "h200"
    assert load(path) == (run, rows)
    with pytest.raises(FileExistsError):
        save(run, rows, tmp_path)


def test_floors_are_counted_at_the_bandwidth_of_the_run(run):
    work = Workload(128 * K, 8)
    found = row("attention", work, 40.0, run, peer=("fa3", 1000.0))
    machine = replace(GPUS["h200"], tb_per_s=4.25)
    assert found.floor_us == floors(machine, LLAMA_3_1_8B, work).sparse_us
    assert found.of_floor == 40.0 / found.floor_us
    assert found.gain == 25
    assert run.bandwidth_measured and not header("h200", commit="x").bandwidth_measured


@pytest.mark.parametrize(
    ("name", "work", "page", "targets"),
    [
        ("selection", Workload(128 * K, 8), 64, {"selection"}),
        ("selection", Workload(128 * K, 8, 16), 64, set()),
        ("selection", Workload(32 * K, 9), 64, set()),
        ("attend", Workload(4 * K, 3), 64, {"attend"}),
        ("attention", Workload(32 * K, 8), 64, {"attention 32k x 8"}),
        ("attention", Workload(32 * K, 8), 16, set()),
        ("attention", Workload(32 * K, 8, budget=1024), 64, set()),
        ("step", Workload(32 * K, 1), 64, {"step 32k x 1", "step anywhere"}),
        ("step", Workload(5 * K, 3), 64, {"step anywhere"}),
        ("shared_prefix", Workload(128 * K, 32), 64, {"shared prefix 128k x 32"}),
    ],
)
def test_which_targets_judge_a_row(run, name, work, page, targets):
    found = row(name, work, 1.0, run, page=page)
    assert set(found.targets) == targets


def test_targets_are_judged_by_the_worst_row_of_the_newest_run(run, tmp_path):
    step, fa3 = Workload(32 * K, 1), {"peer": ("fa3", 1200.0)}
    older = replace(run, when="2027-01-01T00:00:00+00:00")
    newer = replace(run, when="2027-01-02T00:00:00+00:00")
    save(older, [row("attention", Workload(128 * K, 8), 50.0, run, **fa3)], tmp_path)
    rows = [row("step", step, us, run, peer=("dense", 4883.0)) for us in (4200.0, 5000.0)]
    save(newer, [*rows, row("step", Workload(4 * K), 990.0, run)], tmp_path)
    page = report.render(tmp_path)
    assert "24.0x at 50.0 us (units of 64): met" in page
    assert "0.977x at 5,000 us (units of 64): missed" in page
    assert page.index("2027-01-02") < page.index("2027-01-01")
    anywhere = next(line for line in page.splitlines() if line.startswith("| step | any"))
    assert anywhere.endswith("missed |"), "a step without a peer shows no gain"


def test_a_run_elsewhere_meets_no_target(monkeypatch, tmp_path):
    monkeypatch.setattr(record, "device_facts", dict)
    other = header("a100", commit="0123abc")
    save(other, [row("selection", Workload(32 * K), 1.0, other)], tmp_path)
    page = report.render(tmp_path)
    assert ": met" not in page and "NVIDIA A100" in page


def test_an_h100_is_judged_by_its_own_bandwidth(monkeypatch, tmp_path):
    """12 us are too long on an H200 and not on an H100; an H200's table shows none of its rows."""
    monkeypatch.setattr(record, "device_facts", dict)
    other = header("h100", commit="0123abc")
    save(other, [row("selection", Workload(32 * K), 12.0, other)], tmp_path)
    page = report.render(tmp_path)
    fast, _, slow = page.partition("### Targets on NVIDIA H100")
    assert "| selection | 32k | 1 | <= 12.8 us |" in slow and "12.0 us (units of 64): met" in slow
    assert "| selection | 32k | 1 | <= 10 us |" in fast and ": met" not in fast
    assert not TARGETS["selection"].put("h200").met(12.0, None)


def test_a_target_that_bytes_forbid_is_put_in_bytes(run, tmp_path):
    """Two thirds of the bandwidth are asked for, and the worst row is one that misses its bound."""
    target, work = TARGETS["selection"], Workload(128 * K, 8)
    floor, _ = target.floor("h200", work)
    assert target.bound("h200", work).forbidden and floor > 10
    assert target.bound("h200", work).max_us == 1.5 * floor
    assert not target.bound("h200", Workload(32 * K, 8)).forbidden
    slow = TARGETS["attention 128k x 8"]
    gain = slow.bound("h200", Workload(128 * K, 8, 16)).min_gain
    assert gain == pytest.approx(slow.floor("h200", Workload(128 * K, 8, 16))[1] / 1.5)
    save(run, [row("selection", work, 1.4 * floor, run)], tmp_path)
    page = report.render(tmp_path)
    line = next(x for x in page.splitlines() if x.startswith("| selection | 128k | 8"))
    assert "forbids it: **<= 23.4 us**" in line and "21.8 us (units of 64): met" in line


def test_the_header_says_what_the_driver_says(monkeypatch):
    answer = "NVIDIA H200, 575.57.08, 143771 MiB, 1980 MHz, 3201 MHz, 1980 MHz\n"
    done = subprocess.CompletedProcess([], 0, stdout=answer)
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: done)
    found = header("h200", commit="0123abc")
    assert found.device["driver_version"] == "575.57.08"
    assert found.device["clocks.mem"] == "3201 MHz"
    assert "torch" in found.versions


def test_what_cannot_be_recorded_is_refused(run, tmp_path):
    work = Workload(32 * K)
    for args, message in (
        ({"name": "speed"}, "name must be one of selection"),
        ({"measured_us": 0.0}, "measured_us must be above 0"),
        ({"peer": ("fa3", -1.0)}, "peer must be above 0"),
    ):
        with pytest.raises(ValueError, match=message):
            row(**{"name": "step", "work": work, "measured_us": 1.0, "run": run, **args})
    with pytest.raises(ValueError, match="gpu must be one of"):
        header("abacus")
    with pytest.raises(ValueError, match="rows must not be empty"):
        save(run, [], tmp_path)


@pytest.mark.parametrize("change", ["schema", "field", "folder"])
def test_a_file_of_another_form_is_refused(run, tmp_path, change):
    path = save(run, [row("step", Workload(32 * K), 1.0, run)], tmp_path)
    found = json.loads(path.read_text())
    if change == "schema":
        found["schema"] = 0
    elif change == "field":
        del found["rows"][0]["floor_us"]
    else:
        found["header"]["gpu"] = "h100"
    path.write_text(json.dumps(found))
    with pytest.raises(ValueError, match="must"):
        load(path)


def test_check_compares_and_writes_nothing(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(report, "PAGE", tmp_path / "results.md")
    assert report.main(["--check"]) == 1
    assert "out of date" in capsys.readouterr().err
    assert not report.PAGE.exists()
    assert report.main([]) == 0
    assert report.main(["--check"]) == 0


def test_numbers_keep_three_digits():
    texts = ["0.457", "1.00", "9.99", "10.0", "99.9", "100", "13,155", ""]
    values = [0.45722, 0.9996, 9.994, 9.996, 99.94, 99.96, 13154.97, None]
    assert [number(value) for value in values] == texts
    assert [tokens(count) for count in (32768, 16448)] == ["32k", "16,448"]
