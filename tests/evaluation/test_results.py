"""Result files: one line per cell, never overwritten, and whole again after a kill."""

import json
from dataclasses import replace

import pytest

from sgl_sparsekv.evaluation.results import Cell, Results, read
from sgl_sparsekv.evaluation.settings import (
    Settings,
    parse_budget,
    parse_lengths,
    parse_methods,
)
from sgl_sparsekv.evaluation.summary import ranking, table

SETTINGS = Settings(
    "m", "chain", (1024,), 3, ("full", "quest"), 256, 0, "prefilled", samples=1, seed=0
)
CELL = Cell("quest", 1024, 0, 0, 0.2, True, "a b", "a b", 256, 1000, 0, 256, 1000, 1, 0.1)


def test_a_file_begins_with_what_its_cells_mean(tmp_path):
    path = tmp_path / "deeper" / "r.jsonl"
    results = Results(path, SETTINGS, resume=False)
    assert not path.exists()
    results.add(CELL, {"environment": {"commit": "abc"}})
    header, cells = read(path)
    assert cells == [CELL]
    assert header["protocol"] == "prefilled" and header["seed"] == 0 and header["budget"] == 256
    assert "sinks, window" in header["budget_counts"]
    assert header["environment"]["commit"] == "abc"


def test_a_file_that_is_there_is_left_alone(tmp_path):
    path = tmp_path / "r.jsonl"
    Results(path, SETTINGS, resume=False).add(CELL, {})
    before = path.read_bytes()
    with pytest.raises(ValueError, match="--resume"):
        Results(path, SETTINGS, resume=False)
    assert path.read_bytes() == before


def test_resuming_drops_half_a_line_and_keeps_the_rest(tmp_path):
    path = tmp_path / "r.jsonl"
    Results(path, SETTINGS, resume=False).add(CELL, {})
    with path.open("a") as file:
        file.write('{"kind": "cell", "meth')
    results = Results(path, replace(SETTINGS, lengths=(1024, 2048)), resume=True)
    assert results.cells == [CELL]
    results.add(replace(CELL, depth=1), {})
    assert [json.loads(line)["kind"] for line in path.read_text().splitlines()] == [
        *("header", "cell", "resumed", "cell")
    ]
    assert len(read(path)[1]) == 2


@pytest.mark.parametrize(
    "change", [{"seed": 1}, {"budget": 512}, {"depths": 4}, {"protocol": "decoded"}]
)
def test_a_file_of_another_run_is_not_resumed(tmp_path, change):
    path = tmp_path / "r.jsonl"
    Results(path, SETTINGS, resume=False).add(CELL, {})
    with pytest.raises(ValueError, match=next(iter(change))):
        Results(path, replace(SETTINGS, **change), resume=True)


@pytest.mark.parametrize("text", ["no json\n", '{"kind": "cell"}\n', "[1]\n"])
def test_a_file_of_something_else_is_not_resumed(tmp_path, text):
    path = tmp_path / "r.jsonl"
    path.write_text(text)
    with pytest.raises(ValueError, match="must"):
        Results(path, SETTINGS, resume=True)
    assert path.read_text() == text


def test_the_better_method_ranks_first_and_of_equals_the_one_that_reads_less():
    cells = [
        *(replace(CELL, method="full", depth=d, tokens_attended=1000) for d in range(3)),
        *(replace(CELL, method="quest", depth=d) for d in range(3)),
        *(replace(CELL, method="streaming", depth=d, right=d == 1) for d in range(3)),
    ]
    scores = ranking(cells)
    assert [score.method for score in scores] == ["quest", "full", "streaming"]
    assert scores[2].lost == (0, 2)
    lines = table(cells).splitlines()
    assert lines[0].split() == ["method", "1k", "right", "KV", "read"]
    assert lines[2].split() == ["quest", "100%", "3", "of", "3", "25.6%"]
    assert lines[4].split() == ["streaming", "33%", "1", "of", "3", "25.6%"]


def test_options_as_a_user_writes_them():
    assert parse_lengths("8k,4K,1000") == (1000, 4096, 8192)
    assert parse_methods("all", ["quest", "full"]) == ("full", "quest")
    assert parse_methods("streaming,full", ["quest", "full", "streaming"]) == ("full", "streaming")
    assert parse_budget("512") == 512 and parse_budget("0.05") == 0.05


@pytest.mark.parametrize(
    "call",
    [
        lambda: parse_lengths("4k,,8k"),
        lambda: parse_lengths("0"),
        lambda: parse_methods("nope", ["full"]),
        lambda: parse_methods("clusterkv", ["full"]),
        lambda: parse_budget("many"),
        lambda: replace(SETTINGS, budget=1),
        lambda: replace(SETTINGS, protocol="other"),
        lambda: replace(SETTINGS, depths=0),
    ],
)
def test_a_wrong_option_is_named(call):
    with pytest.raises(ValueError, match="must"):
        call()
