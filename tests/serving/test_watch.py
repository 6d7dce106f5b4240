"""The picture shows which part of the context the newest whole step read."""

import pytest

from sgl_sparsekv.commands.watch import SHADES, Picture, Screen
from sgl_sparsekv.serving.trace import SelectionRecord


def record(step: int, units: list[list[int]], rid: str = "a", layer: int = 0) -> SelectionRecord:
    return SelectionRecord(step, layer, rid, "quest", 160, units, 16, 0)


def test_a_step_is_shown_when_it_is_whole() -> None:
    picture = Picture()
    picture.add(record(1, [[0], [0]]), 0.0)
    picture.add(record(1, [[0], [9]], layer=1), 0.0)
    picture.add(record(2, [[5], [5]]), 0.1)
    strip = picture.strips["a"]
    assert strip.record.step == 1
    assert strip.share() == pytest.approx(4 / 40)
    assert strip.cells(10) == [0.75, *[0.0] * 8, 0.25]
    picture.add(record(3, [[1], [1]]), 0.2)
    assert picture.strips["a"].cells(10) == [0, 0, 0, 0, 0, 1, 0, 0, 0, 0]


def test_layers_that_read_everything_do_not_cover_the_picture() -> None:
    picture = Picture()
    everything = SelectionRecord(1, 0, "a", "full", 160, [list(range(10))] * 2, 16, 0)
    picture.add(everything, 0.0)
    assert picture.strips["a"].cells(10) == [1.0] * 10
    picture.add(record(1, [[0], [0]], layer=1), 0.0)
    picture.add(everything, 0.0)
    strip = picture.strips["a"]
    assert strip.record.method == "quest" and strip.cells(10) == [1.0, *[0.0] * 9]
    assert strip.share() == pytest.approx(42 / 60)


def test_one_head_alone() -> None:
    picture = Picture(head=1)
    picture.add(record(1, [[0], [9]]), 0.0)
    assert picture.strips["a"].cells(10) == [*[0.0] * 9, 1.0]


def test_wide_and_narrow_terminals() -> None:
    picture = Picture()
    picture.add(record(1, [[0, 1, 2, 3, 4]]), 0.0)
    head, strip = picture.lines(80)
    assert "quest" in head and "50.0% read" in head
    assert strip == SHADES[-1] * 5 + SHADES[0] * 5
    assert len(picture.lines(4)[1]) == 4


def test_requests_that_ended_leave() -> None:
    picture = Picture()
    picture.add(record(1, [[0]], "old"), 0.0)
    picture.add(record(2, [[0]], "new"), 100.0)
    assert list(picture.strips) == ["new"]


def test_a_terminal_is_drawn_over(capsys: pytest.CaptureFixture[str]) -> None:
    picture = Picture()
    picture.add(record(1, [[0]]), 0.0)
    screen = Screen(live=True)
    screen.show(picture, 1.0)
    screen.show(picture, 1.01)  # too soon
    screen.show(picture, 2.0)
    out = capsys.readouterr().out
    assert out.count("quest") == 2 and out.count("\x1b[2A") == 1
