"""The sweep's section: figures of files, and a reason for each mutant that lives."""

from collections import Counter
from pathlib import Path

import pytest

from mutation import __main__ as command
from mutation.page import BEGIN, END, UNEXPLAINED, section, share, write
from mutation.survivors import Survivor, Swept


def survivor(old: str, new: str, reached: bool = True) -> Survivor:
    return Survivor("x__mutmut_1", "geometry.py", "Geometry.pages", old, new, reached)


LIVES = (
    survivor("zip(a, b, strict=True)", "zip(a, b, strict=False)"),
    survivor("zip(a, b, strict=True)", "zip(a, b, )"),
    survivor("return a | b", "return a & b"),
    survivor("return 1", "return 2", reached=False),
)
FOUND = [
    Swept("config.py", Counter({"killed": 9, "timeout": 1, "not checked": 2}), ()),
    Swept("geometry.py", Counter({"killed": 6, "survived": 3, "no tests": 1}), LIVES),
]


def test_all_mutants_with_a_verdict_count() -> None:
    assert share(FOUND) == 16 / 20 and share(FOUND[:1]) == share([]) == 1


def test_a_line_for_each_file_and_each_changed_line() -> None:
    lines = section(FOUND).splitlines()
    assert "| `config.py` | 12 | 10 | 10 | 100% |" in lines
    assert "| `geometry.py` | 10 | 10 | 6 | 60% |" in lines
    assert "| all | 22 | 20 | 16 | 80.0% |" in lines
    where = "`geometry.py`, `Geometry.pages`"
    same = "lists of equal length"
    assert f"| `zip(a, b, strict=True)`, 2 of its mutants | {where} | {same} |" in lines
    assert f"| `return a \\| b`, 1 of its mutants | {where} | {UNEXPLAINED} |" in lines
    assert f"| `return 1`, 1 of its mutants | {where} | no unit test runs it |" in lines


def test_only_what_stands_between_the_marks_is_written_anew(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"before\n{BEGIN}\nold\n{END}\nbehind\n")
    for _ in range(2):
        write(page, FOUND)
    assert page.read_text() == f"before\n{BEGIN}\n{section(FOUND)}\n{END}\nbehind\n"
    page.write_text(BEGIN)
    with pytest.raises(ValueError, match="must have the line"):
        write(page, FOUND)


def test_a_sweep_without_a_verdict_says_so_and_leaves_the_page(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nothing killed of nothing is no share of a hundred."""
    monkeypatch.setattr(command, "swept_files", list)
    monkeypatch.setattr(command, "write", None)
    assert command.main(["--report"]) == 1
    assert "no mutant has a verdict" in capsys.readouterr().err
