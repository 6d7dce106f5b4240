"""Clients in `examples/` run as they are written, against the server that all tests share."""

import os
import re
import subprocess
import sys
from pathlib import Path

from sgl_sparsekv.tooling.servers import ServerProcess

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"
CHAIN = 8
"""Places that the examples' questions ask for."""


def run_example(name: str, *arguments: str, timeout: float = 300) -> list[str]:
    """Run an example as its header says; its lines."""
    ended = subprocess.run(
        [sys.executable, f"examples/{name}", *arguments],
        cwd=ROOT,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=timeout,
    )
    assert ended.returncode == 0, ended.stdout[-2000:] + ended.stderr[-4000:]
    return ended.stdout.splitlines()


def percent(line: str) -> list[float]:
    """Every percentage of a line."""
    return [float(found) for found in re.findall(r"([\d.]+)%", line)]


def test_branches_of_one_document_read_in_their_own_way(ours: ServerProcess) -> None:
    """All that look for pages are right; streaming is not, and its coverage says so."""
    printed = run_example("frontend_shared_prefix.py", ours.url)
    print("\n".join(printed))
    full, quest, share, streaming = printed[2:6]
    for line in (full, quest, share):
        assert line.endswith(f"{CHAIN} of {CHAIN}")
    assert not streaming.endswith(f"{CHAIN} of {CHAIN}")
    assert percent(full) == [100.0, 100.0, 100.0]
    assert 5 < percent(quest)[0] < 7 and 2 < percent(share)[0] < 4
    assert percent(streaming)[2] < percent(quest)[2]
    assert all(int(line.split()[2]) >= 8192 - 64 for line in printed[2:6]), "the prefix is shared"


def test_the_openai_package_sends_options_and_shows_reports(ours: ServerProcess) -> None:
    """Whole, streamed, refused."""
    printed = run_example("openai_client.py", ours.url)
    print("\n".join(printed))
    expected = printed[0].removeprefix("expected: ")
    answers = [line for line in printed if line.startswith("whole: ")]
    assert len(answers) == 2 and all(expected[:50] in answer for answer in answers)
    shares = [percent(line)[0] for line in printed if "of the KV cache" in line]
    assert len(shares) == 3 and shares[0] == 100 and max(shares[1:]) < 13
    assert printed[-1].startswith("refused: 400") and "sparsekv.budget must be" in printed[-1]


def test_every_example_is_run_and_says_how_to() -> None:
    """By a test of these two files; its header names its own command; the page lists it."""
    here = Path(__file__).parent
    tests = Path(__file__).read_text() + (here / "alone/test_examples_alone.py").read_text()
    page = (ROOT / "docs" / "index.md").read_text()
    names = sorted(path.name for path in EXAMPLES.iterdir() if path.suffix in (".py", ".sh"))
    assert len(names) == 5
    for name in names:
        header = (EXAMPLES / name).read_text().split("\n\n")[0:2]
        assert f"examples/{name}" in "".join(header), name
        assert name in page, name
        if name != "benchmark_table.py":
            assert f'"{name}"' in tests or f"examples/{name}" in tests, name
