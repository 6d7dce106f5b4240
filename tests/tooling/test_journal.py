"""What was found before a stop is not looked for again."""

import io
import json
from pathlib import Path
from typing import Any

import pytest

from sgl_sparsekv.tooling.journal import Journal
from sgl_sparsekv.tooling.progress import Progress


class Work:
    """Findings that count how often they were made; the one named `ends` is interrupted."""

    def __init__(self, ends: str = "") -> None:
        self.ends, self.made = ends, list[str]()

    def __call__(self, name: str) -> Any:
        if name == self.ends:
            raise KeyboardInterrupt
        self.made.append(name)
        return {"name": name, "pair": (1, 2.5)}


def run(journal: Journal, work: Work) -> list[Any]:
    journal.expect(4)
    return [journal.once(name, lambda name=name: work(name)) for name in "abcd"]


def test_a_run_goes_on_where_it_was_stopped(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "run.part.jsonl"
    with pytest.raises(KeyboardInterrupt):
        run(journal := Journal(path, {"size": 3}), Work(ends="c"))
    assert journal.stopped() == f"stopped; --resume goes on with 2 of 4 in {path}"
    again = Journal(path, {"size": 3}, resume=True)
    assert again.get("b") and again.get("c") is None
    work = Work()
    found = run(again, work)
    assert work.made == ["c", "d"]
    assert found == run(Journal(), Work()), "a run in one go finds the same, in JSON's types"
    again.finish()
    again.finish()
    assert not path.exists()


def test_half_a_line_is_found_again(tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    run(Journal(path), Work())
    path.write_bytes(path.read_bytes()[:-9])
    work = Work()
    run(Journal(path, resume=True), work)
    assert work.made == ["d"]
    assert len([json.loads(line) for line in path.read_text().splitlines()]) == 5
    path.write_bytes(b'{"kind": "sett')
    run(Journal(path, resume=True), Work())
    assert len(path.read_text().splitlines()) == 5


def test_another_run_is_not_gone_on_with(tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    run(Journal(path, {"size": 3, "seed": (1, 2)}), Work())
    with pytest.raises(ValueError, match="is there already; --resume goes on with it"):
        Journal(path, {"size": 3, "seed": (1, 2)})
    with pytest.raises(ValueError, match="has size 3, asked for is 4"):
        Journal(path, {"size": 4, "seed": (1, 2)}, resume=True)
    Journal(path, {"size": 3, "seed": (1, 2)}, resume=True)
    path.write_text("something else\n")
    with pytest.raises(ValueError, match="must be JSON lines, line 1 is not"):
        Journal(path, {}, resume=True)


def test_it_says_how_much_is_there_and_how_long_the_rest_takes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = iter(float(n) for n in range(0, 10_000, 30))
    monkeypatch.setattr("sgl_sparsekv.tooling.progress.time.monotonic", lambda: next(now))
    said = io.StringIO()
    run(Journal(tmp_path / "run.jsonl", progress=Progress(said)), Work())
    told = said.getvalue().splitlines()
    assert "0 of 4; of the run are there" in told[0]
    assert "1 of 4, " in told[1] and " left; a" in told[1]
    assert "4 of 4, 0:00 left; d" in told[-1]
