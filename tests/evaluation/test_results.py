"""Result files: one line per cell, never overwritten, and whole again after a kill."""

import json
import math
from dataclasses import replace

import pytest

from sgl_sparsekv.evaluation.results import Cell, Results, read
from sgl_sparsekv.evaluation.settings import (
    Settings,
    parse_budgets,
    parse_lengths,
    parse_methods,
)
from sgl_sparsekv.evaluation.summary import ranking, table
from sgl_sparsekv.evaluation.tasks.asking import Asking
from sgl_sparsekv.evaluation.tasks.needle.task import Grid

SETTINGS = {"lengths": (1024,), "depths": 3, "budgets": (256,), "protocol": "prefilled", "seed": 0}
CELL = Cell(
    task="needle", length=1024, sample=0, nth=0, method="quest", budget=256, metric="words right",
    value=1.0, place=0.2, expected=("a b",), said="a b", prompt_tokens=1000, cached_tokens=0,
    tokens_attended=256, tokens_in_context=1000, decode_steps=1, seconds=0.1,
)  # fmt: skip


def results_at(path, resume=False, **change):
    return Results(path, "needle", {**SETTINGS, **change}, resume)


def test_a_file_begins_with_what_its_cells_mean(tmp_path):
    path = tmp_path / "deeper" / "r.jsonl"
    results = results_at(path)
    assert not path.exists()
    results.add(CELL, {"environment": {"commit": "abc"}, "kv_bytes_per_token": 512})
    results.add(replace(CELL, nth=1), {"environment": {"commit": "later"}})
    assert path.read_text().count('"header"') == 1, "before the first cell only"
    header, cells = read(path)
    assert cells == [CELL, replace(CELL, nth=1)] == results.cells
    assert header["protocol"] == "prefilled" and header["seed"] == 0 and header["budgets"] == [256]
    assert header["environment"]["commit"] == "abc"
    line = json.loads(path.read_text().splitlines()[1])
    assert line["kv_bytes_read"] == CELL.tokens_attended * 512


def test_a_file_that_is_there_is_left_alone(tmp_path):
    path = tmp_path / "r.jsonl"
    results_at(path).add(CELL, {})
    before = path.read_bytes()
    with pytest.raises(ValueError, match="--resume"):
        results_at(path)
    assert path.read_bytes() == before


def test_resuming_drops_half_a_line_and_keeps_the_rest(tmp_path):
    path = tmp_path / "r.jsonl"
    results_at(path).add(CELL, {})
    with path.open("a") as file:
        file.write('{"kind": "cell", "meth')
    results = results_at(path, True, lengths=(1024, 2048))
    assert results.cells == [CELL]
    results.add(replace(CELL, nth=1), {})
    assert [json.loads(line)["kind"] for line in path.read_text().splitlines()] == [
        *("header", "cell", "resumed", "cell")
    ]
    assert len(read(path)[1]) == 2


@pytest.mark.parametrize("change", [{"seed": 1}, {"depths": 4}, {"protocol": "decoded"}])
def test_a_file_of_another_run_is_not_resumed(tmp_path, change):
    path = tmp_path / "r.jsonl"
    results_at(path).add(CELL, {})
    ((name, value),) = change.items()
    said = f"r.jsonl has {name} {SETTINGS[name]!r}, asked for is {value!r}"
    with pytest.raises(ValueError, match=said):
        results_at(path, True, **change)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("no json\n", "must be JSON lines, line 1 is not"),
        ("[1]\n", "must be JSON lines, line 1 is not"),
        ('{"kind": "cell"}\n', "must start with a header of schema 2"),
        ('{"kind": "cell", "schema": 2}\n', "must start with a header of schema 2"),
        ('{"kind": "header", "schema": 1}\n', "must start with a header of schema 2"),
        ('{"kind": "header", "schema": 2}\n{"kind": "cell"}\n', "must hold cells of schema 2"),
        ('{"kind": "header", "schema": 2}\nno json\n', "must be JSON lines, line 2 is not"),
    ],
)
def test_a_file_of_something_else_is_not_resumed(tmp_path, text, said):
    path = tmp_path / "r.jsonl"
    path.write_text(text)
    with pytest.raises(ValueError, match=f"r.jsonl {said}"):
        results_at(path, True)
    assert path.read_text() == text


def test_an_empty_file_holds_no_results(tmp_path):
    path = tmp_path / "r.jsonl"
    path.touch()
    with pytest.raises(ValueError, match="must start with a header"):
        read(path)
    results_at(path, True).add(CELL, {})
    assert read(path)[1] == [CELL]


def test_the_better_method_ranks_first_and_of_equals_the_one_that_reads_less():
    cells = [
        *(replace(CELL, method="full", nth=d, tokens_attended=1000) for d in range(3)),
        *(replace(CELL, method="quest", nth=d) for d in range(3)),
        *(replace(CELL, method="streaming", nth=d, value=float(d == 1)) for d in range(3)),
    ]
    scores = ranking(cells)
    assert [score.method for score in scores] == ["quest", "full", "streaming"]
    assert scores[2].lost == (0, 2)
    lines = table(cells).splitlines()
    assert lines[0].split() == ["1k", "right", "as", "full", "KV", "read"]
    assert lines[2].split() == ["quest", "256", "100.0%", "100.0%", "100.0%", "25.6%"]
    assert lines[4].split() == ["streaming", "256", "33.3%", "33.3%", "100.0%", "25.6%"]


def test_of_equally_wrong_methods_the_one_that_says_what_full_says_ranks_first():
    cells = [
        replace(CELL, method="full", value=0.0, said="x y z w"),
        replace(CELL, method="streaming", value=0.0, said="q y z w"),
        replace(CELL, method="quest", value=0.0, said="x y q w"),
    ]
    scores = ranking(cells)
    assert [score.method for score in scores] == ["full", "quest", "streaming"]
    assert [score.agreement for score in scores] == [1, 0.5, 0]


def test_perplexity_is_of_all_tokens_and_the_lower_the_better():
    cells = [
        replace(CELL, metric="nll", value=1.0, detail={"tokens": 30}),
        replace(CELL, metric="nll", value=3.0, detail={"tokens": 10}, sample=1),
        replace(CELL, metric="nll", value=1.0, detail={"tokens": 40}, method="full"),
    ]
    scores = ranking(cells)
    assert [score.method for score in scores] == ["full", "quest"]
    assert scores[1].value == pytest.approx(math.exp(1.5))


def test_several_tasks_are_columns():
    cells = [replace(CELL, task=task, value=value) for task, value in (("vt", 1), ("cwe", 0.5))]
    assert table(cells).splitlines()[0].split()[:3] == ["cwe", "vt", "right"]
    cells += [replace(cell, length=2048, value=0) for cell in cells]
    assert [line for line in table(cells).splitlines() if line in ("1k", "2k")] == ["1k", "2k"]


def test_options_as_a_user_writes_them():
    assert parse_lengths("8k,4K,1000") == (1000, 4096, 8192)
    assert parse_lengths("4k..16k") == (4096, 8192, 16384)
    assert parse_methods("all", ["quest", "full"]) == ("full", "quest")
    assert parse_methods("streaming,full", ["quest", "full", "streaming"]) == ("full", "streaming")
    assert parse_budgets("512,0.05,256") == (0.05, 256, 512)


@pytest.mark.parametrize(
    "call",
    [
        lambda: parse_lengths("4k,,8k"),
        lambda: parse_lengths("0"),
        lambda: parse_methods("nope", ["full"]),
        lambda: parse_methods("clusterkv", ["full"]),
        lambda: parse_lengths("8k..4k"),
        lambda: parse_budgets("many"),
        lambda: Settings("m", ("full",), (1,), 0),
        lambda: Settings("m", ("full",), (256,), 0, concurrency=0),
        lambda: Asking(None, protocol="other"),
        lambda: Grid("chain", (1024,), depths=0),
        lambda: Grid("chain", (1024,), 1, needles=0),
    ],
)
def test_a_wrong_option_is_named(call):
    with pytest.raises(ValueError, match="must"):
        call()
