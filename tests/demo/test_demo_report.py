import json
import re
from xml.etree import ElementTree

import demo_samples as samples
import pytest

from sgl_sparsekv.demo.checks import check_all
from sgl_sparsekv.demo.picture import depth_picture, selection_picture, telling_layer
from sgl_sparsekv.demo.real.act import RealAct
from sgl_sparsekv.demo.report import page, picture
from sgl_sparsekv.demo.result import as_json, table
from sgl_sparsekv.tooling.environment import environment

NO_ACT = RealAct("none", skipped="it was not asked for")
SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture(scope="module")
def recorded():
    asked = samples.scenario()
    return asked, samples.all_runs(asked), samples.log(asked)


def marks(svg, kind):
    return [e for e in ElementTree.fromstring(svg).iter() if e.get("class") == kind]


def test_selection_picture_marks_every_fact_that_decode_needed(recorded):
    asked, runs, log = recorded
    svg = selection_picture(asked, runs[2], log, samples.LAYER)
    assert len(marks(svg, "hit")) == 16 * 7
    assert not marks(svg, "lost")
    assert len(marks(svg, "good")) == 16


def test_selection_picture_shows_what_was_not_read(recorded):
    asked, runs, log = recorded
    svg = selection_picture(asked, runs[3], log, 1)
    assert len(marks(svg, "lost")) > 16 * 6
    assert len(marks(svg, "bad")) == 16


def test_selection_picture_stands_without_a_trace(recorded):
    asked, runs, _ = recorded
    svg = selection_picture(asked, runs[2], samples.RecordedLog(), 0)
    assert len(marks(svg, "lost")) == 16 * 7


def test_the_layer_that_looks_facts_up_is_shown(recorded):
    asked, runs, log = recorded
    assert telling_layer(asked, runs[2], log) == samples.LAYER


def test_depth_picture_has_a_cell_per_method_and_part(recorded):
    asked, runs, _ = recorded
    root = ElementTree.fromstring(depth_picture(asked, runs, 16))
    cells = [e for e in root.iter(f"{SVG}rect") if e.get("rx")]
    assert len(cells) == 4 * 16


def test_one_picture_stands_alone(recorded):
    root = ElementTree.fromstring(picture(*recorded))
    inner = root.findall(f"{SVG}svg")
    assert [figure.get("y") for figure in inner] == ["0", inner[0].get("height")]
    assert root.get("viewBox").split()[3] == str(sum(int(f.get("height")) for f in inner))


def test_pictures_take_any_title(recorded):
    asked, _, log = recorded
    odd = samples.run(asked, "<quest & co>")
    ElementTree.fromstring(selection_picture(asked, odd, log, samples.LAYER))
    ElementTree.fromstring(depth_picture(asked, [odd]))


def test_report_needs_no_network_and_no_scripts(recorded):
    asked, runs, log = recorded
    html = page(asked, runs, check_all(asked, runs, 64), log, environment(), NO_ACT)
    links = re.findall(r"""(?:src|href)\s*=|url\(|@import|https?://[^"']+""", html)
    assert set(links) <= {"http://www.w3.org/2000/svg"}
    assert "<script" not in html
    assert "$" not in html
    assert "prefers-color-scheme:dark" in html
    assert "&lt;x&gt;" in html and "<x>" not in html


def test_report_names_what_failed(recorded):
    asked, _, log = recorded
    runs = samples.all_runs(asked, quest=3)
    html = page(asked, runs, check_all(asked, runs, 64), log, environment(), NO_ACT)
    assert "Not so: quest answers every question (0 of 16)." in html


def test_json_has_what_is_promised(recorded):
    asked, runs, _ = recorded
    checks = check_all(asked, runs, 64)
    found = json.loads(json.dumps(as_json(asked, runs, checks, 61.5, 0, NO_ACT)))
    assert found["context_tokens"] == samples.TOKENS
    assert found["questions"] == 16
    assert found["passed"] is True
    assert [run["name"] for run in found["runs"]] == ["torch_native", "full", "quest", "streaming"]
    promised = {
        "correct": int,
        "kv_read_fraction": float,
        "cached_tokens": int,
        "decode_ms_per_step": float,
        "tokens_per_s": float,
    }
    for run in found["runs"]:
        for name, kind in promised.items():
            assert isinstance(run[name], kind), name
    assert {"machine", "sglang", "torch", "commit"} <= found["environment"].keys()


def test_table_lines_up(recorded):
    lines = table(recorded[1]).splitlines()
    assert len({len(line) for line in lines}) == 1
    assert len(lines) == 2 + 4
