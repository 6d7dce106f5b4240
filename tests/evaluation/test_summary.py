"""Cells added up: totals over tokens, whole tables, and what is missing in them."""

import math
from dataclasses import replace

import pytest

from sgl_sparsekv.evaluation.metrics import METRICS, SHARE, metric_of
from sgl_sparsekv.evaluation.results import Cell
from sgl_sparsekv.evaluation.summary import (
    KEPT,
    kept_squares,
    ranking,
    short,
    squares,
    table,
    tables_along,
)

CELL = Cell(
    task="needle", length=1024, sample=0, nth=0, method="quest", budget=256, metric="words right",
    value=1.0, place=0.2, expected=("a b",), said="a b", prompt_tokens=1000, cached_tokens=0,
    tokens_attended=256, tokens_in_context=1000, decode_steps=1, seconds=0.1,
)  # fmt: skip


@pytest.mark.parametrize(
    ("metric", "total", "written"),
    [("kl", 0.25, "0.25000"), ("nll", math.exp(0.25), "1.284"), ("em", 0.5, "50.0%")],
)
def test_kl_and_likelihood_are_means_over_tokens_and_shares_over_cells(metric, total, written):
    """A text of 30 tokens weighs three times one of 10."""
    cells = [
        replace(CELL, metric=metric, value=0.0, detail={"tokens": 30}),
        replace(CELL, metric=metric, value=1.0, detail={"tokens": 10}, sample=1),
    ]
    found = metric_of(cells)
    assert found.total(cells) == pytest.approx(total)
    assert found.text(found.total(cells)) == written
    (score,) = ranking(cells)
    assert score.value == pytest.approx(total)
    assert score.detail == {}, "how many tokens it had is no finding"


def test_a_run_of_no_cells_has_no_metric() -> None:
    with pytest.raises(StopIteration):
        metric_of([])


def test_a_share_is_the_mean_of_cells_and_more_of_it_is_better() -> None:
    cells = [replace(CELL, metric="f1", value=value) for value in (1.0, 0.5, 0.75, 0.0)]
    assert metric_of(cells) is SHARE and SHARE.higher_is_better
    assert SHARE.total(cells) == 0.5625 and SHARE.text(0.5625) == "56.2%"
    assert not any(metric.higher_is_better for metric in METRICS.values())


def test_a_square_of_the_map_is_the_mean_of_its_questions():
    cells = [replace(CELL, sample=i, value=v) for i, v in enumerate((1.0, 0.5, 0.75))]
    cells += [replace(CELL, nth=1, value=0.0), replace(CELL, length=2048, value=0.25)]
    assert squares(cells) == {(1024, 0): (0.75, 3), (1024, 1): (0.0, 1), (2048, 0): (0.25, 1)}


def test_a_square_of_what_was_kept_is_the_mean_of_what_was_told():
    told = [replace(CELL, detail={KEPT: share}) for share in (1.0, 0.5)]
    cells = [*told, CELL, replace(CELL, nth=1), replace(told[0], length=2048)]
    assert kept_squares(cells) == {(1024, 0): 0.75, (2048, 0): 1.0}


def test_what_was_noted_by_part_is_a_table_of_means() -> None:
    """Of one cell as well; a cell without a note, or no note at all, makes no row."""
    noted = [replace(CELL, detail={"along": {"kl": part}}) for part in ([0.25, 2.0], [0.75, 1.0])]
    for cells, means in (([CELL, noted[0]], ("0.25", "2")), (noted, ("0.5", "1.5"))):
        ((title, (heads, row)),) = tables_along(cells)
        assert title == "kl, from start to end" and heads == ("", "1 of 2", "2 of 2")
        assert row[1:] == means
    assert tables_along([CELL]) == tables_along([]) == []


def test_lengths_are_written_short():
    assert [short(n) for n in (0, 1, 1000, 1024, 8192, 8191)] == [
        *("all", "1", "1000", "1k", "8k", "8191")
    ]


def test_a_table_of_lengths_aligns_names_left_and_numbers_right():
    cells = [
        replace(CELL, method="full", tokens_attended=1000),
        CELL,
        replace(CELL, length=16_384, value=0.5, said="a c"),
    ]
    assert table(cells).splitlines() == [
        "               1k    16k   right  as full  KV read",
        "--------------------------------------------------",
        "full       100.0%      -  100.0%   100.0%   100.0%",
        "quest 256  100.0%  50.0%   75.0%   100.0%    25.6%",
    ]


def test_a_table_of_tasks_says_what_has_no_value():
    """`full` was not asked, so nobody agrees with it; only some have a further number."""
    cells = [
        replace(CELL, task="vt", detail={"depth": 3.0, "note": "x"}),
        replace(CELL, task="vt", method="streaming", value=0.25, detail={"note": "x"}),
        replace(CELL, task="cwe", method="streaming", value=0.0, detail={"note": "x"}),
    ]
    assert table(cells).splitlines() == [
        "                cwe      vt   right  depth  KV read",
        "---------------------------------------------------",
        "quest 256         -  100.0%  100.0%      3    25.6%",
        "streaming 256  0.0%   25.0%   12.5%      -    25.6%",
    ]


def test_who_answered_what_full_was_not_asked_agrees_with_nobody():
    assert table([replace(CELL, method="full"), replace(CELL, task="vt")]).splitlines() == [
        "           needle      vt   right  as full  KV read",
        "---------------------------------------------------",
        "full       100.0%       -  100.0%   100.0%    25.6%",
        "quest 256       -  100.0%  100.0%        -    25.6%",
    ]


def test_several_tasks_at_several_lengths_are_a_table_per_length():
    cells = [
        replace(CELL, task=task, length=length, value=value)
        for task, length, value in (
            *(("vt", 1024, 1.0), ("cwe", 1024, 0.5)),
            *(("vt", 2048, 0.0), ("cwe", 2048, 0.25)),
        )
    ]
    assert table(cells).splitlines() == [
        "1k",
        "             cwe      vt  right  KV read",
        "----------------------------------------",
        "quest 256  50.0%  100.0%  75.0%    25.6%",
        "",
        "2k",
        "             cwe    vt  right  KV read",
        "--------------------------------------",
        "quest 256  25.0%  0.0%  12.5%    25.6%",
    ]


def test_where_the_data_decides_lengths_there_is_no_column_of_them():
    assert table([replace(CELL, length=0)]).splitlines() == [
        "            right  KV read",
        "--------------------------",
        "quest 256  100.0%    25.6%",
    ]


def test_agreement_is_up_to_the_first_difference():
    """Of what `full` said; nothing is the same as nothing."""
    full = {"a": "x y z w", "b": "", "c": ""}
    said = {"a": "x y q w", "b": "", "c": "x"}
    cells = [replace(CELL, task=t, method="full", said=text) for t, text in full.items()]
    cells += [replace(CELL, task=t, said=text) for t, text in said.items()]
    agreement = {score.method: score.agreement for score in ranking(cells)}
    assert agreement == {"full": 1.0, "quest": pytest.approx((0.5 + 1 + 0) / 3)}
    cells = [replace(CELL, method="full", said="x y"), replace(CELL, said="x y z")]
    assert ranking(cells)[0].agreement == 1.0, "what comes after it does not count"


def test_further_numbers_are_means_of_what_every_cell_has():
    cells = [
        replace(CELL, detail={"top-1": 1, "p": 0.5, "only": 1.0, "word": "a", "tokens": 5}),
        replace(CELL, detail={"top-1": 0, "p": 0.25, "word": "b", "tokens": 7}, sample=1),
    ]
    (score,) = ranking(cells)
    assert score.detail == {"top-1": 0.5, "p": 0.375}


def test_a_run_of_no_steps_read_everything():
    (score,) = ranking([replace(CELL, tokens_attended=0, tokens_in_context=0)])
    assert score.read == 1.0
    (score,) = ranking([CELL, replace(CELL, sample=1, tokens_attended=1000)])
    assert score.read == 1256 / 2000 and score.asked == 2


def test_tasks_with_numbers_of_their_own_have_a_table_each():
    cells = [
        replace(CELL, task="copy", detail={"top-1": 1.0, "alike": 0.5}),
        replace(CELL, task="write", value=0.5, detail={"top-1": 0.5}),
    ]
    both, copy, write = table(cells).split("\n\n")
    assert both.splitlines()[0].split() == ["copy", "write", "right", "top-1", "KV", "read"]
    assert copy.splitlines()[:2] == ["copy", "               1k   right  alike  top-1  KV read"]
    assert copy.endswith("quest 256  100.0%  100.0%    0.5      1    25.6%")
    assert write.splitlines()[0] == "write" and "alike" not in write


def test_what_was_noted_along_an_output_is_a_table_of_its_parts():
    cells = [
        replace(CELL, detail={"along": {"KL": [0.0, 1.0]}}),
        replace(CELL, sample=1, detail={"along": {"KL": [0.5, 2.0]}}),
        replace(CELL, sample=2, detail={"tokens": 3}),
    ]
    assert table(cells).split("\n\n")[1].splitlines() == [
        "KL, from start to end",
        "           1 of 2  2 of 2",
        "-------------------------",
        "quest 256    0.25     1.5",
    ]
