"""A recorded trace: what a map shows, what is left out; recording loses nothing silently."""

import io
import json
import os
import signal
import subprocess
import sys
import time
from base64 import b64decode
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import report_samples as samples
from PIL import Image

from sgl_sparsekv.report import recording, requests, selections
from sgl_sparsekv.report.bitmap import LEVELS, data_address, opacity
from sgl_sparsekv.report.files import read
from sgl_sparsekv.report.page import KINDS
from sgl_sparsekv.report.requests import Layer, choose, collect, tally
from sgl_sparsekv.report.section import Section
from sgl_sparsekv.report.selection_map import COLUMNS, columns, layer_map
from sgl_sparsekv.serving.trace import TracePublisher, encode

PATIENCE = 60.0
"""Seconds; only a failure waits so long."""


def section(path: Path) -> Section:
    found = read([path], None, KINDS)
    assert not found.unread, found.unread
    return found.sections[0][2]


def units(*lists: list[int]) -> list[np.ndarray]:
    return [np.array(one, np.int64) for one in lists]


def test_a_picture_is_what_was_put_in() -> None:
    rows = [bytes([0, 1, LEVELS]), bytes([LEVELS, 0, 7])]
    image = Image.open(io.BytesIO(b64decode(data_address(rows).partition(",")[2])))
    alpha = np.array(image.convert("RGBA"))[:, :, 3]
    assert alpha.tolist() == [[round(255 * opacity(level)) for level in row] for row in rows]


def test_strong_is_read_by_every_head_and_pale_by_some() -> None:
    (row,) = columns([units([0, 3], [0, 9])], 10)
    assert row[0] == LEVELS and 0 < row[3] == row[9] < LEVELS
    assert [i for i, level in enumerate(row) if level] == [0, 3, 9]


def test_nothing_that_was_read_vanishes_where_units_share_a_column() -> None:
    rows = columns([units([7], []), units(list(range(100_000)), list(range(100_000)))], 100_000)
    assert [len(row) for row in rows] == [400, 400]
    assert [i for i, level in enumerate(rows[0]) if level] == [7 * 400 // 100_000]
    assert set(rows[1]) == {LEVELS}


def test_overlap_is_counted_head_by_head() -> None:
    layer = Layer(16)
    for step, heads in enumerate([[[0, 1], [0, 5]], [[0, 1], [0, 6]], [[2, 3], [7, 8]]]):
        layer.add(samples.selection(step, 1, units=heads))
    assert layer.overlaps() == [0.75, 0.0]


def test_ranks_are_heads_side_by_side() -> None:
    layer = Layer(16)
    for rank in (1, 0):
        layer.add(samples.selection(1, 1, units=[[rank]], tp_rank=rank))
    assert [[head.tolist() for head in heads] for heads in layer.steps()] == [[[0], [1]]]


def test_requests_of_every_method_are_chosen() -> None:
    records = [
        samples.selection(step, 1, rid, method=method)
        for rid, method, steps in (
            *((f"q{i}", "quest", 9 - i) for i in range(8)),
            *(("s0", "streaming", 2), ("f0", "full", 20)),
        )
        for step in range(steps)
    ]
    chosen = choose(tally(records))
    assert len(chosen) == 6 and "s0" in chosen and "f0" not in chosen and "q0" in chosen
    assert "q7" not in chosen


def test_long_requests_show_their_first_steps() -> None:
    records = [samples.selection(step, 1) for step in range(300)]
    found = tally(records)
    (one,) = collect(records, found, choose(found))
    assert len(one.found.steps) == 300 and len(one.layers[1].steps()) == 96
    assert "first 96 of 300 steps" in selections._left_out(one)


def test_the_page_of_a_trace(tmp_path: Path) -> None:
    samples.trace(tmp_path / "t.jsonl")
    found = section(tmp_path / "t.jsonl")
    assert "24 records of 2 requests (2 with quest)" in found.body
    assert "Records lost on the way: 3" in found.body
    assert found.body.count("<h4>") == 2 and found.body.count("layer 1</strong>") == 2
    assert "layers that read everything: 0" in found.body
    assert found.body.count("<image") == 2 * (2 + 4)
    # Of heads with 3 and 2 units, 2 and 2 were read in the step before.
    assert "overlap 83%" in found.body and "read 25.0% of the context" in found.body
    assert "commit abc123" in found.rests_on


def test_a_trace_of_a_view_shows_which_tokens_all_layers_keep(tmp_path: Path) -> None:
    """Those that the last step read, of every layer and rank, beside the maps of some layers."""
    lines = []
    for step in range(3):
        for layer in range(20):
            for rank in range(2):
                units = [[0, 1, 100 + step], [5]]
                how = {"units": units, "method": "snapkv", "unit_size": 1, "tp_rank": rank}
                lines.append(encode(samples.selection(step, layer, length=150, **how)))
    (tmp_path / "t.jsonl").write_bytes(b"\n".join([*lines, b""]))
    body = section(tmp_path / "t.jsonl").body
    assert "layers 0 to 19, downwards" in body and "heads down; 1 to 3 tokens" in body
    found = tally(recording.records(tmp_path / "t.jsonl"))
    (one,) = collect(recording.records(tmp_path / "t.jsonl"), found, choose(found))
    assert len(one.layers) == 12 and len(one.last) == 20
    assert [head.tolist() for head in one.last[19][1]] == [[0, 1, 102], [5]]


def test_a_map_stays_small(tmp_path: Path) -> None:
    layer = Layer(1)
    rng = np.random.default_rng(0)
    for step in range(96):
        read = [sorted(rng.choice(131_072, 2048, replace=False).tolist()) for _ in range(8)]
        layer.add(samples.selection(step, 1, units=read, unit_size=1, length=131_072))
    assert len(layer_map(layer, "x")) < 60_000


@pytest.mark.parametrize("end", [signal.SIGINT, signal.SIGTERM])
def test_a_recording_is_a_trace(tmp_path: Path, end: signal.Signals) -> None:
    endpoint, out = f"ipc://{tmp_path}/trace", tmp_path / "t.jsonl"
    publisher = TracePublisher(endpoint)
    command = [sys.executable, "-m", "sgl_sparsekv.cli", "watch", endpoint, "--record", str(out)]
    # A shell's background jobs ignore Ctrl-C, and so would whatever they start.
    hears = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, preexec_fn=hears) as process:
        deadline = time.monotonic() + PATIENCE
        step = 0
        while time.monotonic() < deadline and (not out.exists() or out.stat().st_size < 2000):
            publisher.publish(samples.selection(step, 1))
            step += 1
            time.sleep(0.05)
        process.send_signal(end)
        try:
            said = process.communicate(timeout=PATIENCE)[1]
        finally:
            process.kill()
    publisher.close()
    assert process.returncode == 0 and "0 lost on the way" in said
    assert recording.ending(out) == 0
    assert len(list(recording.records(out))) == int(said.split()[0]) > 0
    assert "commit" in section(out).rests_on


def test_recordings_with_and_without_replicas_and_stages_are_read(tmp_path: Path) -> None:
    """Fields that came later are checked where they are."""
    path, old = tmp_path / "trace.jsonl", vars(samples.selection(1, 1)).copy()
    del old["dp_rank"], old["pp_rank"]
    for more in ({}, {"dp_rank": 1, "pp_rank": 2}):
        path.write_text(json.dumps({**old, **more}) + "\n")
        (found,) = recording.records(path)
        assert (found.dp_rank, found.pp_rank) == (more.get("dp_rank", 0), more.get("pp_rank", 0))
    path.write_text(json.dumps({**old, "dp_rank": "x"}) + "\n")
    with pytest.raises(ValueError, match="dp_rank"):
        list(recording.records(path))


def test_a_recording_overwrites_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from sgl_sparsekv import cli

    (tmp_path / "t.jsonl").write_text("mine")
    assert cli.main(["watch", f"ipc://{tmp_path}/x", "--record", str(tmp_path / "t.jsonl")]) == 2
    assert "is there already" in capsys.readouterr().err
    assert os.fspath(tmp_path / "t.jsonl") and (tmp_path / "t.jsonl").read_text() == "mine"


def test_the_docs_name_the_limits() -> None:
    text = " ".join((Path(__file__).parents[2] / "docs" / "report.md").read_text().split())
    assert f"up to {COLUMNS} columns" in text
    assert f"up to {requests.MOST_REQUESTS} requests of a file" in text
    limits = f"first {requests.MOST_STEPS} steps, {requests.MOST_LAYERS} of their layers"
    assert f"{limits} and {selections.MOST_HEADS} single heads" in text
