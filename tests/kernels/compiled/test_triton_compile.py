"""Every kernel compiles without spills, as the committed page says: for one architecture, or all.

In a process of its own: this one has Triton's functions decorated for the interpreter.
"""

import itertools
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from bench.instructions.listing import parse
from bench.instructions.waits import ahead_of_the_turn

ROOT = Path(__file__).parents[3]
PAGE = ROOT / "docs" / "results" / "kernels.md"
COUNTED = ROOT / "docs" / "triton_kernels.md"
REMEDY = "run `python -m bench.compile_report`"
ALL = ("sm_80", "sm_89", "sm_90", "sm_100", "sm_120")
FEW = ("sm_90",)
"""The one that is measured."""


@pytest.fixture(scope="module")
def architectures(pytestconfig: pytest.Config) -> tuple[str, ...]:
    """Those that this run builds for."""
    return ALL if pytestconfig.getoption("soak") else FEW


@pytest.fixture(scope="module")
def report(
    architectures: tuple[str, ...], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Any]:
    """What the compiler says now of the common variant."""
    # SGLang's imports name another assembler for Triton; the page is made with Triton's own.
    environment = {k: v for k, v in os.environ.items() if not k.startswith("TRITON_")}
    environment["TRITON_CACHE_DIR"] = str(tmp_path_factory.mktemp("triton"))
    done = subprocess.run(
        [sys.executable, "-m", "bench.compile_report", "--common", *architectures],
        capture_output=True, text=True, timeout=600, cwd=ROOT, env=environment,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout)


def test_every_kernel_fits(report: dict[str, Any], architectures: tuple[str, ...]) -> None:
    names = {build["name"] for build in report["builds"]}
    assert len(names) == len(report["builds"]) >= 12 * len(architectures)
    names -= set(report["early"])
    for architecture in architectures:
        built = [name for name in names if name.endswith(architecture)]
        assert len(built) == len(names) / len(architectures)
    for build in report["builds"]:
        assert build["local_bytes"] == 0, f"{build['name']} spills"
        assert build["shared_bytes"] <= build["shared_limit"], build["name"]
        assert build["resident"] >= 1, build["name"]


def test_launches_that_start_early_wait_before_they_do_anything(
    report: dict[str, Any], architectures: tuple[str, ...]
) -> None:
    """Every way to the end passes the wait; nothing is read, written or let go in front of it."""
    able = [name for name in architectures if name not in ("sm_80", "sm_89")]
    seen = {(name.split(", ")[0], name.split()[-1]) for name in report["early"]}
    launches = ("score", "select", "narrow", "place", "choose held", "attend", "mass")
    launches += ("known", "spread", "draw", "weigh", "count")
    assert able and seen == set(itertools.product(launches, able))
    for name, too_early in report["early"].items():
        assert too_early == [], name


def test_a_launch_that_reads_before_its_turn_is_seen() -> None:
    """And one that never waits."""
    lines = ["S2R R0, SR_TID.X", "ACQBULK", "PREEXIT", "LDG.E R2, [R4.64]", "EXIT"]

    def listed(order: list[int]) -> Any:
        return parse("".join(f"        /*{n:04x}*/ {lines[n]} ;\n" for n in order))

    assert ahead_of_the_turn(listed([0, 1, 2, 3, 4])) == []
    assert ahead_of_the_turn(listed([0, 3, 1, 2, 4])) == ["LDG"]
    assert ahead_of_the_turn(listed([0, 2, 4, 1])) == ["PREEXIT", "EXIT"]
    assert ahead_of_the_turn(listed([0, 3, 4])) is None


def test_the_page_was_made_from_these_sources(
    report: dict[str, Any], architectures: tuple[str, ...]
) -> None:
    page = PAGE.read_text()
    assert f"`{report['hash']}`" in page, f"kernels/triton has changed: {REMEDY}"
    assert f"| Triton | {report['triton']} |" in page, f"Triton has changed: {REMEDY}"
    rows = [line.strip("| ").split(" | ") for line in page.splitlines() if line.startswith("| ")]
    (head,) = (row for row in rows if row[0] == "kernel")
    assert head == ["kernel", "variant", *ALL]
    said = {" | ".join(row[:2]): row for row in rows if len(row) == len(head)}
    for kind, cells in report["rows"].items():
        of_page = [said[kind][head.index(name)] for name in architectures]
        assert of_page == cells, f"{REMEDY}: {kind}"


def test_the_table_of_instructions_is_that_of_these_kernels(report: dict[str, Any]) -> None:
    assert report["instructions"] in COUNTED.read_text(), "run `python -m bench.instructions`"


def test_no_variant_of_the_page_spills() -> None:
    page = PAGE.read_text()
    assert ", of which 0 spill " in page
    cells = [
        cell for line in page.splitlines() if line.startswith("| ") and " / " in line
        for cell in line.strip("| ").split(" | ") if cell.count(" / ") == 3
    ]  # fmt: skip
    assert len(cells) > 200 and sum(", early |" in line for line in page.splitlines()) > 10
    for cell in cells[1:]:
        assert cell.split(" / ")[2] == "0" and int(cell.split(" / ")[3]) >= 1, cell
