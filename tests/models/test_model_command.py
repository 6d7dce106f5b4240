"""`sparsekv model` writes folders, and refuses in one sentence."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest

from sgl_sparsekv.commands.model import add_arguments, run


def _run(*words: str) -> int:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    return run(parser.parse_args(words))


@pytest.mark.parametrize("kind", ["analytic", "trained", "text"])
def test_writes_a_loadable_folder(kind: str, tmp_path: Path) -> None:
    assert _run(kind, str(tmp_path / "out")) == 0
    written = {path.name for path in (tmp_path / "out").iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= written


def test_refuses_a_full_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("mine")
    assert _run("analytic", str(tmp_path)) == 2
    assert "must be empty or --force" in capsys.readouterr().err
    assert _run("analytic", str(tmp_path), "--force") == 0


def test_refuses_bad_values(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert _run("analytic", str(tmp_path / "a"), "--code", "other") == 2
    assert "code must be one of" in capsys.readouterr().err
    (tmp_path / "file").write_text("mine")
    assert _run("analytic", str(tmp_path / "file")) == 2
    assert "OUT_DIR must be a folder" in capsys.readouterr().err
