"""What is recognised, what is named with a reason, and that nothing broken ends the page."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import report_samples as samples

from sgl_sparsekv import cli
from sgl_sparsekv.report.files import read, under
from sgl_sparsekv.report.page import KINDS, render, report, write_page

ODD_VALUES: tuple[Any, ...] = (None, "x", -1, 0, True, [], {}, [None], {"a": 1})
ODD_VALUES += (float("nan"), 1e400, 10**400)


def found_in(folder: Path) -> Any:
    return read(under(folder)[0], folder, KINDS)


def test_every_kind_is_recognised(tmp_path: Path) -> None:
    found = found_in(samples.everything(tmp_path))
    shown = [(kind.title, source.name) for kind, source, _ in found.sections]
    assert [title for title, _ in shown] == [
        *("Evaluations", "Evaluations", "Quality", "Coverage", "Serving", "Decode", "Kernels"),
        *("GPU", "Views", "Selections"),
    ]
    reasons = {name[:5]: why for name, why in found.unread}
    assert "is not JSON" in reasons["broke"]
    assert reasons["torn."] == "is empty"
    assert reasons["other"] == "is JSON, but of no kind of result that this page shows"
    assert len(found.unread) == 3


def test_files_of_other_endings_are_counted_and_hidden_ones_passed_over(tmp_path: Path) -> None:
    (tmp_path / ".venv").mkdir()
    (tmp_path / ".venv" / "a.json").write_text("{}")
    for name in ("a.log", "b.log", "c", "d.json"):
        (tmp_path / name).write_text("{}")
    paths, others = under(tmp_path)
    assert [path.name for path in paths] == ["d.json"]
    assert others == {".log": 2, "no ending": 1}


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ('{"kind": "header", "task": "needle", "schema": 1}\n', "header of schema"),
        ('{"kind": "header", "task": "needle", "schema": 2}\n', "no finished cell"),
        ('{"kind": "trace", "schema": 9, "environment": {}}\n', "schema must be 1"),
        ('{"kind": "trace", "schema": 1, "environment": {}}\n', "no record"),
        ("no json\n", "line 1"),
        ('{"meta_info": {}}\n', "no answer that tells which tokens were kept"),
        ('{"choices": []}\n[2]\n', "answer 2 must be one of a server"),
        ('{"choices": []}\n{"choi', "line 2 is not"),
        ("[1]\n", "no kind"),
        ("[" * 100_000 + "\n", "is not JSON"),
    ],
)
def test_broken_lines_are_named_with_the_reason(tmp_path: Path, text: str, reason: str) -> None:
    (tmp_path / "a.jsonl").write_text(text)
    ((name, why),) = found_in(tmp_path).unread
    assert name == "a.jsonl" and reason in why


def changed(content: Any) -> list[Any]:
    """A file with each of its fields gone, and with odd values in its place, one at a time."""
    found = []
    places: list[tuple[Any, ...]] = [(), ("header",), ("rows", 0), ("header", "environment")]
    places += [("environment",), ("detail",)]
    told = ("meta_info", "sparsekv")
    places += [told, (*told, "view"), (*told, "view", "map"), (*told, "view", "mass")]
    for place in places:
        try:
            names = list(_at(content, place))
        except (KeyError, IndexError, TypeError):
            continue
        for name in names:
            for value in ODD_VALUES:
                other = copy.deepcopy(content)
                _at(other, place)[name] = value
                found.append(other)
            other = copy.deepcopy(content)
            del _at(other, place)[name]
            found.append(other)
    return found


def _at(content: Any, place: tuple[Any, ...]) -> Any:
    for name in place:
        content = content[name]
    return content if isinstance(content, dict) else {}


@pytest.mark.parametrize("name", ["kernels", "serve-", "quality", "serving", "gpu/h200"])
def test_no_odd_field_of_a_file_ends_the_page(tmp_path: Path, name: str) -> None:
    samples.everything(tmp_path)
    (path,) = (p for p in under(tmp_path)[0] if name in str(p.relative_to(tmp_path)))
    content = json.loads(path.read_text())
    content["rows"] = content["rows"][:3]
    for other in changed(content):
        path.write_text(json.dumps(other))
        found = read([path], tmp_path, KINDS)
        assert len(found.sections) + len(found.unread) == 1
        render(found, "odd")


LINES = ("answers.jsonl", "needle.jsonl", "perplexity.jsonl", "trace.jsonl")


@pytest.mark.parametrize("name", LINES)
def test_no_odd_line_ends_the_page(tmp_path: Path, name: str) -> None:
    samples.everything(tmp_path)
    path = tmp_path / name
    lines = path.read_text().splitlines()
    for number in (0, 1, 3):
        for other in changed(json.loads(lines[number])):
            text = [*lines[:number], json.dumps(other), *lines[number + 1 :]]
            path.write_text("\n".join(text) + "\n")
            found = read([path], tmp_path, KINDS)
            assert len(found.sections) + len(found.unread) == 1
            render(found, "odd")


def test_a_trace_that_is_still_written_is_shown(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    samples.trace(path, header=False)
    with path.open("a") as file:
        file.write('{"step": 5, "lay')
    found = found_in(tmp_path)
    assert not found.unread and "not recorded" in found.sections[0][2].body


def test_the_command_writes_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, out = samples.everything(tmp_path / "in"), tmp_path / "deep" / "r.html"
    assert cli.main(["report", str(folder), "--out", str(out)]) == 0
    assert "10 files of results, 3 not shown" in capsys.readouterr().out
    before = out.read_bytes()
    assert cli.main(["report", str(folder), "--out", str(out)]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1 and out.read_bytes() == before
    assert [path.name for path in out.parent.iterdir()] == ["r.html"]


@pytest.mark.parametrize("file", [None, "a.txt", "a.json"])
def test_a_folder_without_a_result_is_one_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], file: str | None
) -> None:
    folder = tmp_path / "in"
    if file is not None:
        folder.mkdir()
        (folder / file).write_text("{}")
    assert cli.main(["report", str(folder), "--out", str(tmp_path / "r.html")]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1
    assert not (tmp_path / "r.html").exists()


def test_a_page_beside_its_results_does_not_read_itself(tmp_path: Path) -> None:
    samples.needle(tmp_path / "needle.jsonl")
    assert len(report(tmp_path, tmp_path / "r.html").sections) == 1


def test_a_page_of_some_files_is_replaced(tmp_path: Path) -> None:
    samples.needle(tmp_path / "needle.jsonl")
    out = tmp_path / "needle.html"
    for _ in range(2):
        assert write_page([tmp_path / "needle.jsonl"], out) == out
    assert "needle.jsonl" in out.read_text()
    with pytest.raises(ValueError, match="readable result"):
        write_page([], out)
