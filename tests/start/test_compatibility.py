"""Between command line and ready: each flag and family is served right, or one sentence is told."""

import json
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import pytest
import torch

from sgl_sparsekv.backend.starting import NET
from tests.helpers.launcher import Launcher

from .families import families, no_families, write_family
from .figures import Figures, family_verdict, judge
from .flags import TOGETHER, Case, cases
from .page import PAGE, name_of, named, rows
from .running import Ended
from .sweep import (
    ALONE,
    FAULT,
    REFUSED,
    SERVED,
    TRACE,
    Sweep,
    Verdict,
    grouped,
    refusal,
)
from .tiny import change_config, write_llama

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="the tables are those of a CPU")

HANDFUL = (
    (TOGETHER["prefill elsewhere"], SERVED, ""),
    (TOGETHER["decode elsewhere"], REFUSED, "name sparsekv there, or leave the flag out"),
    ("--page-size 128", REFUSED, "--page-size must be one of 16, 32, 64"),
    ("--grammar-backend x", "refused by SGLang", "invalid choice"),
    ("--enable-hierarchical-cache", REFUSED, "leave it out: on a CPU the cache is in host memory"),
)
"""Command lines that every run of the tests starts."""

FEW_FAMILIES = {
    "Qwen3ForCausalLM": SERVED,
    "Gemma3ForCausalLM": SERVED,
    "Qwen3NextForCausalLM": REFUSED,
    "GptOssForCausalLM": REFUSED,
    "LlamaForCausalLMEagle": REFUSED,
}
"""Families that every run of the tests starts: plain, with sliding layers, refusals, a draft."""


@pytest.fixture(scope="module")
def llama(launcher: Launcher) -> Path:
    """A tiny random Llama."""
    return write_llama(launcher.folder / "model", num_hidden_layers=4)


def test_a_handful_of_command_lines(launcher: Launcher, llama: Path) -> None:
    """As typed: served with a dense server's tokens, or one line and exit 2."""
    sweep = Sweep(launcher, llama)
    for line, how, says in HANDFUL:
        found = sweep.judge(line, tuple(line.split()))
        assert found.how == how and says in found.words, found


@pytest.mark.parametrize(("architecture", "how"), FEW_FAMILIES.items())
def test_a_few_families(launcher: Launcher, architecture: str, how: str) -> None:
    """Served with a dense server's tokens, or one sentence."""
    family = next(found for found in families() if found.architecture == architecture)
    found = family_verdict(launcher, family)
    assert found.how == how, found


def test_dual_chunk_attention_is_refused_with_the_cure_that_then_serves(
    launcher: Launcher, tmp_path: Path
) -> None:
    """Long-context Qwen2.5: a copy of config.json without the key."""
    from .families import Family

    model = write_family(Family("Qwen2ForCausalLM"), tmp_path / "model")
    chunks = {"chunk_size": 512, "local_size": 64, "original_max_position_embeddings": 512}
    change_config(model, dual_chunk_attention_config=chunks)
    found = Sweep(launcher, model).judge("dual chunk", ())
    assert found.how == REFUSED and "copy of the model whose config.json lacks" in found.words
    kept = json.loads((model / "config.json").read_text())
    del kept["dual_chunk_attention_config"]
    (model / "config.json").write_text(json.dumps(kept))
    assert Sweep(launcher, model).judge("cured", ()).how == SERVED


def test_an_unforeseen_end_is_one_sentence(launcher: Launcher, llama: Path) -> None:
    """Whatever stops a scheduler; the trace is in the log at debug alone."""
    broken = launcher.folder / "broken"
    broken.mkdir()
    for file in llama.iterdir():
        (broken / file.name).write_bytes(file.read_bytes())
    (broken / "model.safetensors").write_bytes(b"no weights")
    for level, trace in (("warning", False), ("debug", True)):
        ended = Sweep(launcher, broken)._start(
            ("--attention-backend", "sparsekv"), ("--log-level", level)
        )
        assert ended.status == 2 and NET in ended.log and (TRACE in ended.log) == trace
        assert ended.log.count("sparsekv: error: ") == 1


def test_every_flag_resolves_or_is_refused_in_one_line(
    resolve_line: Callable[[Case], str | None], model: Path, size: Callable[[int, int], int]
) -> None:
    """The stage that costs nothing, for all of them."""
    found = cases(model, model)
    # Any value of every third flag, or all values of all flags.
    few = list({case.field: case for case in found}.values())[::3]
    for case in found if size(0, 1) else few:
        words = resolve_line(case)
        assert words is None or (words and "\n" not in words), case


def test_the_page_has_a_row_for_every_flag_and_family(sglang_plugins: None) -> None:
    """Of the SGLang that is installed: one that comes or goes is seen here."""
    page = PAGE.read_text()
    lines = cases(Path("model"), Path("folder"))
    assert {case.arguments[0] for case in lines} == named(page, "Flags")
    assert {family.architecture for family in families()} == named(page, "Families")
    assert all(f"`{name}`" in page for name in no_families())
    assert f"with SGLang {version('sglang')} " in " ".join(page.split())
    assert FAULT not in page


@pytest.mark.soak
def test_all_flags_and_families(launcher: Launcher, sglang_plugins: None) -> None:
    """The whole sweep; writes the page."""
    figures = Figures(anew=True)
    for _ in judge(launcher, figures, lambda section, name: True):
        pass
    assert not [verdict for verdict in figures.write_page() if verdict.how == FAULT]


def test_each_case_is_in_one_group_and_no_field_twice_in_it(sglang_plugins: None) -> None:
    """And what changes a server stands alone."""
    found = cases(Path("model"), Path("folder"))
    groups = list(grouped(found))
    assert sorted(case.shown for group in groups for case in group) == sorted(
        case.shown for case in found
    )
    for group in groups:
        assert len({case.field for case in group}) == len(group) <= 8
        assert len(group) == 1 or not {case.field for case in group} & {*ALONE}


def test_a_refusal_is_read_from_a_log() -> None:
    """The judge itself can say no."""

    def end(status: int | None, log: str) -> tuple[str, str]:
        return refusal(Ended(status, False, [], 1.0, log))

    assert end(2, "sparsekv: error: no such method")[0] == REFUSED
    assert end(2, f"sparsekv: error: {NET}no luck")[0] == "refused by SGLang"
    assert end(1, f"{TRACE}\nValueError: x")[0] == FAULT
    assert end(1, "")[0] == FAULT and end(None, "")[0] == FAULT


def test_a_page_has_a_row_for_what_ended_alike() -> None:
    """Values of a flag stand together, and no folder of this machine is named."""
    found = [
        Verdict("--dtype half", SERVED, "", 1.0),
        Verdict("--dtype float32", SERVED, "", 1.0),
        Verdict("--dtype half --tp-size 2", SERVED, "", 1.0),
        Verdict("--dtype x", REFUSED, "sparsekv: error: a | b in /tmp/made/file.py", 1.0),
    ]
    text = list(rows([(name_of(verdict.name), verdict) for verdict in found]))
    assert text == [
        "| `--dtype` `half, float32` | served |\n",
        "| `--dtype half --tp-size 2` | served |\n",
        "| `--dtype` `x` | refused by sparsekv: a \\| b in FILE |\n",
    ]
    assert named("## Flags\n" + "".join(text), "Flags") == {"--dtype"}
    assert name_of("--download-dir /tmp/pytest-1/folder") == "--download-dir folder"
