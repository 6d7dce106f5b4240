"""Figures on the page are those of the files, each beside what it rests on, and all is escaped."""

import json
import re
from html import escape, unescape
from pathlib import Path

import pytest
import report_samples as samples

from sgl_sparsekv.evaluation.results import Cell, Results
from sgl_sparsekv.report import evaluation, kernels, quality, write_page
from sgl_sparsekv.report.files import read
from sgl_sparsekv.report.page import KINDS
from sgl_sparsekv.report.section import Section
from sgl_sparsekv.tooling import charts
from sgl_sparsekv.tooling.charts import Line, Look, Panel


def section(path: Path) -> Section:
    found = read([path], None, KINDS)
    assert not found.unread, found.unread
    return found.sections[0][2]


def tables(html: str) -> list[list[list[str]]]:
    """Cells of every table, as text."""
    return [
        [re.findall(r"<t[hd]>(.*?)</t[hd]>", row) for row in re.findall(r"<tr>(.*?)</tr>", one)]
        for one in re.findall(r"<table.*?</table>", html)
    ]


def own(cells: list[Cell], method: str, budget: int) -> list[Cell]:
    return [cell for cell in cells if (cell.method, cell.budget) == (method, budget)]


def test_the_table_holds_what_the_cells_come_to(tmp_path: Path) -> None:
    cells = samples.needle(tmp_path / "a.jsonl")
    head, *rows = tables(section(tmp_path / "a.jsonl").body)[0]
    by_name = {row[0]: dict(zip(head, row, strict=True)) for row in rows}
    assert set(by_name) == {"full", "quest 256", "quest 512", "streaming 256", "streaming 512"}
    for name, row in by_name.items():
        method, budget = [*name.split(), "256"][:2]
        some = own(cells, method, int(budget))
        right = sum(cell.value for cell in some) / len(some)
        attended = sum(cell.tokens_attended for cell in some)
        there = sum(cell.tokens_in_context for cell in some)
        steps = sum(cell.decode_steps for cell in some)
        kv = samples.KV_BYTES * attended / steps
        metadata = samples.KV_BYTES * there / steps * (samples.SHARE if method == "quest" else 0)
        assert row["right"] == f"{right:.1%}" and row["asked"] == str(len(some))
        assert row["KV read"] == f"{attended / there:.1%}"
        assert row["KV, a step"] == charts.in_bytes(kv)
        assert row["metadata, at most"] == charts.in_bytes(metadata)


def test_what_the_oracle_reads_to_choose_is_not_called_nothing(tmp_path: Path) -> None:
    results = Results(tmp_path / "a.jsonl", "needle", {"depths": 1}, False)
    results.add(samples.cell("oracle", 256, 4096, 0), {"kv_bytes_per_token": 512})
    body = section(tmp_path / "a.jsonl").body
    assert tables(body)[0][1][-1] == "every key" and "which is not counted" in body


def test_bytes_of_a_step(tmp_path: Path) -> None:
    cells = samples.needle(tmp_path / "a.jsonl")
    header = {"kv_bytes_per_token": 512, "metadata_share": {"quest": 0.0625}}
    longest = [cell for cell in own(cells, "quest", 512) if cell.length == 8192]
    kv, metadata = evaluation.bytes_per_step(longest, header)
    assert kv == 512 * 512 * samples.LAYERS
    assert metadata == 512 * 8192 * samples.LAYERS / 16
    assert evaluation.bytes_per_step(own(cells, "full", 256), header)[1] == 0


def test_needle_maps_stand_side_by_side(tmp_path: Path) -> None:
    samples.needle(tmp_path / "a.jsonl")
    body = section(tmp_path / "a.jsonl").body
    assert body.count('class="good edge"') == 3 * 6
    assert body.count('class="bad edge"') == 2 * 6
    assert "<style>" not in body  # a style inside a picture would be the whole page's


def test_a_metric_that_falls_is_drawn_from_its_own_least(tmp_path: Path) -> None:
    samples.perplexity(tmp_path / "a.jsonl")
    found = section(tmp_path / "a.jsonl")
    assert "Perplexity against bytes" in found.body
    assert "quest 256: 3.004 perplexity" in found.gist


def test_a_resumed_run_names_both(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    samples.needle(path)
    again = {"kind": "resumed", "environment": {**samples.ENVIRONMENT, "commit": "fff000"}}
    with path.open("a") as file:
        file.write(json.dumps(again) + "\n")
    rests_on = section(path).rests_on
    assert "commit abc123" in rests_on and "resumed" in rests_on and "commit fff000" in rests_on


def test_what_was_noted_along_an_output_is_a_table_of_the_page(tmp_path: Path) -> None:
    results = Results(tmp_path / "a.jsonl", "generate", {"tasks": [samples.ODD]}, False)
    for method, kl in (("full", 0.0), ("quest", 0.5)):
        along = {samples.ODD: [kl, 2 * kl]}
        detail = {"tokens": 9, "top-1": 1 - kl, "along": along}
        change = {"task": samples.ODD, "metric": "kl", "value": kl, "detail": detail}
        results.add(samples.cell(method, 256, 4096, 0, **change), {})
    body = section(tmp_path / "a.jsonl").body
    ranked, noted = tables(body)
    assert [row[0] for row in ranked[1:]] == ["full", "quest 256"] and "top-1" in ranked[0]
    assert noted[0] == ["", "1 of 2", "2 of 2"] and noted[2] == ["quest 256", "0.5", "1"]
    assert samples.ODD not in body


def test_kernels_are_drawn_with_floor_and_peer() -> None:
    path = samples.BENCH / "kernels-cpu-20261121-152408.json"
    rows = json.loads(path.read_text())["rows"]
    found = section(path)
    head, *lines = tables(found.body)[0]
    assert len(lines) == len(rows)
    for line, row in zip(lines, rows, strict=True):
        told = dict(zip(head, line, strict=True))
        assert told["op"] == row["op"] and float(told["ms"].replace(",", "")) == pytest.approx(
            row["ms"], rel=0.01
        )
    line = kernels.over_context([r for r in rows if r["op"] == "decode_dense"], "dense", "floor_ms")
    assert [x for x, _ in line.points] == [32768, 131072]
    assert found.body.count('class="line bare"') == 5
    assert "torch_native" in found.body and "AMD EPYC" in found.rests_on


def test_bytes_of_quality_are_of_both_kinds() -> None:
    row = {"metadata_bytes": 10.0, "kv_bytes": 20.0, "dense_bytes": 100.0}
    assert quality.share(row) == pytest.approx(0.3)
    assert quality.share({**row, "metadata_bytes": None}) is None


def test_quality_shows_every_layer_and_leaves_variants_to_the_table() -> None:
    path = samples.BENCH / "quality-text-20261121-150418.json"
    rows = json.loads(path.read_text())["rows"]
    found = section(path)
    assert all(
        f"Layer {layer}: {name}" in found.body for layer in range(3) for name in ("mass", "error")
    )
    points = [r for r in rows if (r["context"], r["equal"]) == (32768, "budget")]
    points = [r for r in points if r["kv_bytes"] is not None]
    assert f"All {len(points)} points at 32k tokens" in found.body
    assert {"quest", "clusterkv 16/1024", "pqcache 2x6/1024"} <= set(quality.drawn(rows))
    assert "clusterkv 16/4096" not in quality.drawn(rows)
    assert quality.drawn([{"method": "pqcache 2x6/1024"}, {"method": "pqcache 4x4/512"}]) == [
        "pqcache 4x4/512"
    ]


def test_coverage_shows_what_was_got_and_by_which_heads(tmp_path: Path) -> None:
    samples.coverage(tmp_path / "c.json")
    found = section(tmp_path / "c.json")
    assert "2 of 4 points within 2 points" in found.gist
    assert "clusterkv 16/1024, 87.0% for 90%" in found.gist
    assert "Got against asked, 8k tokens" in found.body and "as asked" in found.body
    squares = re.findall(r'fill-opacity="([\d.]+)".*?<title>(.*?)</title>', found.body)
    assert len(squares) == 6
    assert ("1.00", "layer 2 of 3, KV head 1: 50.0%") in squares
    assert ("0.00", "layer 1 of 3, KV head 0: 100.0%") in squares
    (rows,) = tables(found.body)
    assert [row[0] for row in rows[1:]] == ["quest", "quest", *["clusterkv 16/1024"] * 2]


def test_answers_show_what_each_view_keeps_and_retains(tmp_path: Path) -> None:
    """Of every answer and choice that tells a view; a `quest` one tells none."""
    samples.answers(tmp_path / "a.jsonl")
    found = section(tmp_path / "a.jsonl")
    assert "3 views in 4 answers" in found.body
    assert "snapkv kept 40.0 of 200 tokens and 78.8% of the attention" in found.gist
    head, *rows = tables(found.body)[0]
    named = [dict(zip(head, row, strict=True)) for row in rows]
    assert [row[""].partition(": ")[2] for row in named] == [escape(samples.ODD), "snapkv", "adakv"]
    assert {row["least"] for row in named} == {"30"} and {row["most"] for row in named} == {"50"}
    assert named[1]["retained"] == "78.8%" and named[1]["least layer"] == "62.5% (3)"
    assert named[1]["made of"] == "200" and named[1]["since"] == "7"
    assert named[1]["in decode"] == "62.5%"
    assert tables(found.body)[1][2] == ["10", "30", "40.0", "50", "95.0%", "90.0%"]
    squares = re.findall(r'fill-opacity="([\d.]+)".*?<title>(.*?)</title>', found.body)
    assert ("0.60", "layer 10, KV head 1: 30 tokens") in squares
    assert ("0.50", "layer 3, KV head 0: 50.0%") in squares


def test_answers_are_read_however_they_were_saved(tmp_path: Path) -> None:
    """One, or a list of them; a stream's last chunk; what stands under `sparsekv`."""
    told = samples.told("snapkv")
    chunk = {"id": "a", "choices": [{}], "metadata": {"sparsekv": told}}
    for content in (told, chunk, [chunk], {"meta_info": {"sparsekv": told}}, [told, chunk]):
        (tmp_path / "a.json").write_text(json.dumps(content))
        found = section(tmp_path / "a.json")
        both = isinstance(content, list) and len(content) == 2
        assert ("2 views in 2 answers." if both else "1 view in 1 answer.") in found.body


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"map": {"3": [[1, 2]]}, "mass": {"3": [1]}}, "lengths that sum to the 200 tokens"),
        ({"map": {"3": [[-1, 201]]}, "mass": {"3": [1]}}, "lengths that sum to the 200 tokens"),
        ({"map": {"3": []}, "mass": {"3": []}}, "must be a list per KV head"),
        ({"map": {"x": [[200]]}, "mass": {"x": [1]}}, "a layer must be a number, got 'x'"),
        ({"mass": {"3": [0.5, 0.5]}}, "a map and a mass of the same layers"),
        ({"map": {"3": [[200]]}, "mass": {"3": [0.5, 0.5]}}, "must be a number per KV head"),
        ({"made": 1 << 40}, "made of answer 1 must be from 1 to"),
    ],
)
def test_a_broken_view_is_named(tmp_path: Path, change: dict, reason: str) -> None:
    (tmp_path / "a.json").write_text(json.dumps(samples.told("snapkv", **change)))
    ((_, why),) = read([tmp_path / "a.json"], None, KINDS).unread
    assert reason in why


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"schema": 2}, "schema must be 1"),
        ({"heads": [[0.5], [0.5, 0.5]]}, "of one length"),
        ({"heads": [["x"]]}, "must be numbers"),
        ({"got": "x"}, "got of row 2 must be a number"),
    ],
)
def test_a_broken_coverage_file_is_named(tmp_path: Path, change: dict, reason: str) -> None:
    path = tmp_path / "c.json"
    samples.coverage(path)
    content = json.loads(path.read_text())
    content["schema"] = change.pop("schema", 1)
    content["rows"][1] |= change
    path.write_text(json.dumps(content))
    ((_, why),) = read([path], None, KINDS).unread
    assert reason in why


def test_serving_shows_every_question(tmp_path: Path) -> None:
    samples.serving(tmp_path / "s.json")
    body = section(tmp_path / "s.json").body
    for title in (
        "Time between tokens",
        "speed-up over torch_native",
        "first token",
        "Throughput against",
        "Goodput: TTFT",
    ):
        assert title in body
    assert "it died" in body and "not measured in this run" not in body
    assert len(tables(body)[0]) == 1 + 16


def test_what_was_not_measured_says_so(tmp_path: Path) -> None:
    path = tmp_path / "s.json"
    samples.serving(path)
    content = json.loads(path.read_text())
    content["rows"] = [row for row in content["rows"] if row["workload"] == "hit"]
    path.write_text(json.dumps(content))
    assert section(path).body.count("not measured in this run") == 4


def test_gpu_rows_have_a_chart_per_batch(tmp_path: Path) -> None:
    samples.gpu(tmp_path)
    (path,) = tmp_path.rglob("*.json")
    found = section(path)
    assert "attention, batch 1" in found.body and "attention, batch 8" in found.body
    assert "7.00 times as fast as fa3" in found.gist


def test_text_is_escaped(tmp_path: Path) -> None:
    paths = [tmp_path / name for name in ("a.jsonl", "s.json", "t.jsonl")]
    samples.needle(paths[0])
    samples.serving(paths[1])
    samples.trace(paths[2])
    html = write_page(paths, tmp_path / "r.html").read_text()
    assert samples.ODD not in html and "<b>" not in html
    assert unescape(html).count(samples.ODD) >= 5


def test_log_axes_leave_out_what_is_not_above_zero() -> None:
    panel = Panel("t", "", "x", "y", (Line("a", ((1, 0.0), (2, 4.0), (4, 5.0))),), log_y=True)
    assert charts.figure(panel, {"a": Look("#000")}).count("<circle") == 2
    nothing = Panel("t", "", "x", "y", (Line("a", ((1, 0.0),)),), log_y=True)
    assert "not measured" in charts.figure(nothing, {"a": Look("#000")})


@pytest.mark.parametrize(
    ("low", "high", "log"), [(0, 1, False), (0.3, 0.31, False), (1e-6, 5, True), (3, 4e9, True)]
)
def test_axes_have_some_round_numbers(low: float, high: float, log: bool) -> None:
    found = charts.ticks(low, high, log)
    assert 2 <= len(found) <= 16
    assert all(low * 0.999 <= tick <= high * 1.001 for tick in found)
