"""Asked against got: the estimate on keys that lie as it expects, and the page that quotes it."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from test_quality import layer

from bench.quality.coverage import METHODS, Row, equal_error, measure, table
from bench.quality.dump import Dump
from bench.quality.measure import Truth, mass_of
from bench.quality.methods import Runner, Variant
from bench.quality.results import FOLDER
from sgl_sparsekv.ops import load_ops

PAGE = (Path(__file__).parents[2] / "docs" / "coverage.md").read_text()


def test_more_is_read_the_more_is_asked_and_every_way_has_its_row():
    one, positions = layer(length=1300, group=2, rows=4, sharp=0.5)
    empty = torch.empty(0)
    rows = list(measure(Dump(positions, (one,), 1.0, empty, empty), 1300, 1, load_ops("cpu")))
    oracle = [row for row in rows if row.method == METHODS[-1].name]
    asked = [row for row in oracle if row.asked is not None]
    assert [row.tokens for row in asked] == sorted(row.tokens for row in asked)
    assert [row.got for row in asked] == sorted(row.got for row in asked)
    assert asked[0].tokens < asked[-1].tokens < 1250, "no more than it takes"
    for split in ("even", "heads"):
        fixed = [row for row in oracle if row.split == split and row.budget is not None]
        assert [row.tokens for row in fixed] == [row.budget for row in fixed]
    assert len(rows) == len(METHODS) * (4 + 2 * 4)
    for row in rows:
        (heads,) = row.heads or ((row.got,),)
        assert sum(heads) / len(heads) == pytest.approx(row.got, abs=1e-3)
    assert table(rows).count("\n") == 1 + 4 * len(METHODS)


@pytest.mark.parametrize("variant", METHODS, ids=lambda variant: variant.name)
def test_every_method_gets_what_is_asked_on_the_mean(variant: Variant) -> None:
    one, positions = layer(length=1300, group=2, rows=24, sharp=0.5)
    runner = Runner(variant, one, positions.numpy() + 1, load_ops("cpu"))
    plan, truth = variant.plan(runner.lengths, 1299), Truth.of(one, runner.lengths)
    for asked in (0.6, 0.9):
        selection = runner.adaptive(plan, asked, False)
        read = mass_of(truth, selection, variant.unit_size).mean(-1)
        assert abs(read.mean().item() - asked) < 0.03, asked
        assert selection.counts.min() < selection.counts.max()


def test_bytes_at_equal_error_lie_on_the_line_between_two_budgets():
    def row(asked: float | None, budget: int | None, size: float, error: float) -> Row:
        return Row(1, "m", asked, budget, "even", 0, 0, 0, 0, size, error, error)

    rows = [row(None, 1, 100, 0.4), row(None, 2, 400, 0.1)]
    assert equal_error(rows, row(0.9, None, 100, 0.2)) == pytest.approx(0.5)
    assert equal_error(rows, row(0.9, None, 100, 0.05)) is None
    assert np.isclose(equal_error(rows, row(0.9, None, 400, 0.1)), 1)


def test_the_page_quotes_the_newest_run_of_each_model():
    newest = {json.loads(path.read_text())["model"]: path for path in sorted(_runs())}
    assert len(newest) >= 2, "the estimate is judged on two models at least"
    for path in newest.values():
        rows = [
            Row(**{name: row[name] for name in Row.__annotations__ if name in row})
            for row in json.loads(path.read_text())["rows"]
        ]
        for line in table(rows).splitlines():
            assert line in PAGE, path.name


def _runs() -> list[Path]:
    return list(FOLDER.glob("coverage-*.json"))
