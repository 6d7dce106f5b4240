"""A sweep as a whole: bad input, failures, its files, its picture and its table."""

import io
import json
import re
import xml.etree.ElementTree as ElementTree
from contextlib import contextmanager, nullcontext
from dataclasses import replace

import pytest
from serve_samples import GRID, sample_result, sample_row

from bench.report.serving import serving_part
from bench.serve import __main__ as command
from bench.serve import sweep
from bench.serve.arguments import parse
from bench.serve.grid import plan
from bench.serve.model import Model
from bench.serve.picture import panels_of, picture
from bench.serve.results import Failure, load, save
from bench.serve.table import gain_over_peer, text
from bench.serve.tool import PointFailed
from bench.tables import number
from sgl_sparsekv.tooling.charts import ticks
from sgl_sparsekv.tooling.journal import Journal
from sgl_sparsekv.tooling.progress import Progress
from sgl_sparsekv.tooling.servers import ServerFailed, ServerSpec

QUIET = Progress(io.StringIO(), quiet=True)


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["--methods", "nonsense"], "methods must be of"),
        (["--contexts", "100"], "contexts must be multiples of 64"),
        (["--contexts", "8k,8k"], "contexts must be different values"),
        (["--budgets", "0.5"], "budgets: a whole number above 0"),
        (["--peers", "sparsekv"], "peers must be attention backends of SGLang's own"),
        (["--goodput", "itl:50"], "goodput must be of ttft, tpot, e2el"),
        (["--rates", "inf"], "rates: a number above 0"),
        (["--workloads", "warm"], "workloads must be of cold, hit"),
        (["--layers", "100"], "layers must be in"),
        (["--model", "nowhere"], "model must be a folder"),
        (["--contexts", "256k"], "contexts must leave room for 32 tokens"),
        (["--nonsense"], "unrecognized arguments"),
        (["--json", "README.md/found.json"], "File exists"),
    ],
)
def test_bad_input_is_one_sentence(monkeypatch, capsys, argv, said):
    monkeypatch.setattr(command, "measure", lambda *args: pytest.fail("it was measured anyway"))
    with pytest.raises(SystemExit) as ended:
        raise SystemExit(command.main(argv))
    assert ended.value.code == 2
    error = capsys.readouterr().err.strip()
    assert error.startswith("bench.serve: ") and said in error and "\n" not in error


@pytest.mark.parametrize("flag", ["--json", "--svg"])
def test_nothing_is_overwritten(tmp_path, capsys, flag):
    path = tmp_path / "there"
    path.write_text("kept")
    with pytest.raises(SystemExit) as ended:
        command.main([flag, str(path)])
    assert ended.value.code == 2 and "not overwritten" in capsys.readouterr().err
    assert path.read_text() == "kept"


def test_defaults_follow_the_device():
    cpu, cuda, quick = (parse(a).grid for a in ([], ["--device", "cuda"], ["--quick"]))
    assert cpu.peers == quick.peers == ("torch_native",) and cuda.peers == ("flashinfer", "fa3")
    assert cuda.contexts == (8192, 32_768, 131_072) and cuda.concurrency == (1, 8, 32)
    assert quick.longest < cpu.longest
    assert parse(["--budgets", "1k,2048"]).grid.load_budgets == (1024,)


@pytest.mark.parametrize(("failures", "status"), [([], 0), ([Failure("a point", "it broke")], 1)])
def test_a_failure_decides_the_status_and_is_kept(tmp_path, monkeypatch, capsys, failures, status):
    result = replace(sample_result(), failures=failures)
    monkeypatch.setattr(command, "measure", lambda *args: result)
    path = tmp_path / "results" / "found.json"
    assert command.main(["--layers", "1", "--json", str(path)]) == status
    assert load(path) == result
    assert path.with_suffix(".svg").read_text() == picture(result)
    assert ("failed: a point: it broke" in capsys.readouterr().out) == bool(failures)


def test_a_saved_run_names_no_place_of_its_machine(tmp_path):
    result = sample_result()
    place = result.header.model
    save(result, tmp_path / "run.json", {place: "FOLDER"})
    written = (tmp_path / "run.json").read_text()
    assert "FOLDER" in written and place not in written


@pytest.mark.parametrize(
    ("break_it", "said"),
    [
        (lambda found: found["rows"][0].pop("itl_ms"), "Row must have its own fields"),
        (lambda found: found["rows"][0].update(itl_ms="fast"), "Row.itl_ms must be"),
        (lambda found: found["header"].update(seconds=None), "Header.seconds must be"),
        (lambda found: found["header"].update(goodput={"ttft": "1"}), "Header.goodput must be"),
        (lambda found: found.update(schema=0), "schema must be 1"),
    ],
)
def test_a_file_of_another_schema_is_refused(tmp_path, break_it, said):
    path = tmp_path / "found.json"
    save(sample_result(), path)
    with pytest.raises(FileExistsError):
        save(sample_result(), path)
    found = json.loads(path.read_text())
    break_it(found)
    path.write_text(json.dumps(found))
    with pytest.raises(ValueError, match=re.escape(said)):
        load(path)


class StandIn:
    """A server that answers."""

    url, command = "http://nowhere", ("python", "-m", "server")

    def ready(self):
        return True


@pytest.fixture
def stand_ins(monkeypatch, tmp_path):
    """A sweep whose servers and tools are stand-ins; `fail(point, server)` decides what breaks."""
    started = []

    @contextmanager
    def serve(specs, folder, progress):
        started.append(specs[0].name)
        yield {specs[0].name: StandIn()}

    def make(fail):
        def measure(point, *rest):
            server = next(one for one in rest if one == StandIn.url)
            assert server
            if fail(point, len(started)):
                raise PointFailed("the tool ended with 1")
            return sample_row(point)

        monkeypatch.setattr(sweep, "serve", serve)
        monkeypatch.setattr(sweep, "Documents", lambda *args: None)
        monkeypatch.setattr(sweep, "ServingTool", nullcontext)
        monkeypatch.setattr(sweep, "measure_serving", measure)
        monkeypatch.setattr(sweep, "measure_program", measure)
        monkeypatch.setattr(sweep, "measure_offline", lambda point, *rest: sample_row(point))
        specs = {name: ServerSpec(name, ()) for name in GRID.servers}
        return sweep.Sweep(GRID, Model(tmp_path, tmp_path, "", ()), specs, tmp_path, QUIET)

    make.started = started
    return make


def test_one_point_that_fails_costs_no_other(stand_ins):
    run = stand_ins(lambda point, _: point.words.startswith("shared, quest 256, 2,048 tokens, 2"))
    run.run()
    assert len(run.failures) == 1 and run.failures[0].reason == "the tool ended with 1"
    assert len(run.rows) == len(sample_result().rows) - 1
    assert stand_ins.started == ["torch_native", "sparsekv"]


def test_a_server_that_died_is_started_again_for_the_points_that_are_left(stand_ins, monkeypatch):
    def dies(point, starts):
        return point.workload == "cold" and point.context == 2048 and starts == 1

    def ended(self):
        raise ServerFailed("out of memory")

    monkeypatch.setattr(StandIn, "ready", ended)
    run = stand_ins(dies)
    run.run()
    assert stand_ins.started == ["torch_native", "torch_native", "sparsekv"]
    assert [one.reason for one in run.failures] == ["out of memory"]
    assert len(run.rows) == len(sample_result().rows) - 1


def test_a_stopped_run_says_how_to_go_on(tmp_path, monkeypatch, capsys):
    def interrupted(self):
        self._keep(next(iter(plan(GRID, "torch_native"))), sample_result().rows[0])
        raise KeyboardInterrupt

    monkeypatch.setattr(sweep.Sweep, "run", interrupted)
    path = tmp_path / "found.json"
    words = ["--layers", "1", "--json", str(path)]
    assert command.main(words) == 130
    kept = path.with_suffix(".part.jsonl")
    assert f"stopped; --resume goes on with 1 of 0 in {kept}" in capsys.readouterr().err
    assert not path.exists() and len(kept.read_text().splitlines()) == 2
    assert command.main(words) == 2
    assert "--resume goes on with it" in capsys.readouterr().err
    monkeypatch.setattr(sweep.Sweep, "run", lambda self: self.rows.append(sample_result().rows[0]))
    assert command.main([*words, "--resume"]) == 0
    assert load(path).rows == sample_result().rows[:1] and not kept.exists()


def test_points_that_are_there_are_not_measured_again(stand_ins, tmp_path):
    """One server is done, the other's third point is interrupted."""
    ours = [point.words for point in plan(GRID, "sparsekv")]

    def interrupted(point, starts):
        if point.words == ours[2]:
            raise KeyboardInterrupt
        return False

    run = stand_ins(interrupted)
    run.journal = Journal(tmp_path / "run.part.jsonl", {"seed": 1})
    with pytest.raises(KeyboardInterrupt):
        run.run()
    measured = []
    again = stand_ins(lambda point, _: measured.append(point.words))
    again.journal = Journal(tmp_path / "run.part.jsonl", {"seed": 1}, resume=True)
    again.run()
    assert measured == ours[2:]
    assert stand_ins.started == ["torch_native", "sparsekv", "sparsekv"]
    assert again.rows == sample_result().rows and not again.failures
    assert again.commands == run.commands and list(again.commands) == list(GRID.servers)


def test_a_server_that_does_not_start_fails_its_points_alone(stand_ins, monkeypatch):
    run = stand_ins(lambda *_: False)
    real = sweep.serve

    def serve(specs, *rest):
        if specs[0].name == "torch_native":
            raise ServerFailed("no such backend")
        return real(specs, *rest)

    monkeypatch.setattr(sweep, "serve", serve)
    run.run()
    assert len(run.failures) == len(plan(GRID, "torch_native"))
    assert {row.server for row in run.rows if row.workload != "offline"} == {"sparsekv"}


def test_the_picture_has_every_panel_and_every_name():
    result = sample_result()
    tree = ElementTree.fromstring(picture(result))
    space = "{http://www.w3.org/2000/svg}"
    panels = [g for g in tree.iter(f"{space}g") if g.get("class") == "panel"]
    words = " ".join(t.text or "" for t in tree.iter(f"{space}text"))
    assert len(panels) == 6
    for said in (
        *("ITL, ms (median)", "context, tokens", "TTFT, ms (median)", "tokens/s", "times"),
        *("requests at a time", "requests/s within the limits", "TTFT ≤ 5,000 ms", "a <machine>"),
        *("torch_native", "full", "quest 256", "clusterkv 512", "offline engine", "2k"),
    ):
        assert said in words
    assert "not measured" not in words
    assert "prefers-color-scheme:dark" in picture(result)


def test_panels_without_points_say_so():
    result = replace(sample_result(), rows=[])
    assert picture(result).count("not measured in this run") == 6


def test_the_speed_up_is_over_the_peer_of_the_same_context():
    result = sample_result()
    gains = {line.name: line.points for line in panels_of(result)[1].lines}
    assert gains["quest 256"] == ((1024, 5.0), (2048, 5.0))
    assert gains["torch_native"] == ((1024, 1.0), (2048, 1.0))
    hits = [row for row in result.rows if row.workload == "hit"]
    assert gain_over_peer(hits[-1], hits) == 5.0
    assert gain_over_peer(hits[-1], hits[-1:]) is None


def test_the_table_says_what_differs_and_what_was_read():
    printed = text(sample_result())
    assert "torch_native: --attention-backend torch_native" in printed
    assert "50.0%" in printed and "5.00x" in printed and "load 0.1 before" in printed


def test_the_results_page_has_every_figure_and_the_picture(tmp_path):
    assert serving_part(tmp_path) == []
    result = replace(sample_result(), failures=[Failure("a point", "it broke")])
    path = tmp_path / "serving-cpu-20261121-000000.json"
    save(result, path)
    path.with_suffix(".svg").write_text(picture(result))
    page = serving_part(tmp_path)[0]
    for row in result.rows:
        assert f"| {row.variant} | " in page
        assert number(row.tokens_per_s) in page
    assert f"(../bench/results/{path.stem}.svg)" in page
    assert "Failed: a point: it broke" in page and "--attention-backend torch_native" in page


@pytest.mark.parametrize(
    ("low", "high", "log", "found"),
    [
        (9, 120, True, [10, 20, 50, 100]),
        (1, 1e6, True, [1, 10, 100, 1e3, 1e4, 1e5, 1e6]),
        (0, 5.3, False, [0, 1, 2, 3, 4, 5]),
        (0, 0.09, False, [0, 0.02, 0.04, 0.06, 0.08]),
    ],
)
def test_axes_have_round_marks(low, high, log, found):
    assert ticks(low, high, log) == pytest.approx(found)
