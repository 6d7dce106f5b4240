"""Engine and SGLang's own tools, on the other architectures we serve."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from helpers.launcher import Launcher

from sgl_sparsekv.models.documents import chain_document

SHAPE: dict[str, Any] = {
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "max_position_embeddings": 4096,
    "tie_word_embeddings": False,
    "initializer_range": 0.3,
    "bos_token_id": 0,
    "eos_token_id": 1,
}
ENGINE = """
import json, sys
import sglang

if __name__ == "__main__":
    engine = sglang.Engine(
        model_path=sys.argv[1], device="cpu", dtype="float32", attention_backend="sparsekv",
        max_total_tokens=8192, chunked_prefill_size=256, log_level="error", sleep_on_idle=True,
    )
    prompts = json.load(open(sys.argv[2]))
    options = [{"method": "full"}, {"method": "quest", "budget": 1.0}, {"budget": 128}]
    sampling = [
        {"temperature": 0, "max_new_tokens": 12, "ignore_eos": True,
         "custom_params": {"sparsekv": o}}
        for _ in prompts for o in options
    ]
    asked = [p for p in prompts for _ in options]
    answers = engine.generate(input_ids=asked, sampling_params=sampling)
    told = [[a["output_ids"], a["meta_info"]["sparsekv"]["method"]] for a in answers]
    print("ANSWERS " + json.dumps(told))
    engine.shutdown()
"""


def write_model(folder: Path, architecture: str) -> Path:
    """A random model of the architecture, with the analytic model's tokenizer."""
    import torch
    import transformers

    from sgl_sparsekv.models.analytic import build_analytic_tokenizer

    tokenizer = build_analytic_tokenizer()
    config = getattr(transformers, f"{architecture}Config")(**SHAPE, vocab_size=len(tokenizer))
    torch.manual_seed(0)
    getattr(transformers, f"{architecture}ForCausalLM")(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def run(*arguments: str, timeout: float = 400) -> str:
    """Run this Python with arguments; its output."""
    ended = subprocess.run(
        [sys.executable, *arguments],
        capture_output=True,
        text=True,
        timeout=timeout,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
    )
    assert ended.returncode == 0, ended.stdout[-2000:] + ended.stderr[-4000:]
    return ended.stdout


@pytest.mark.parametrize("architecture", ["Qwen2", pytest.param("Mistral", marks=pytest.mark.soak)])
def test_engine_answers_as_transformers_does(
    tmp_path: Path, architecture: str, launcher: Launcher, pytestconfig: pytest.Config
) -> None:
    """Reading everything gives the reference's greedy tokens; options differ within one batch."""
    import torch
    from transformers import AutoModelForCausalLM

    folder = write_model(tmp_path / "model", architecture)
    prompts = [[(7 * i * i + k) % 900 + 5 for i in range(n)] for k, n in enumerate((33, 400, 700))]
    (tmp_path / "prompts.json").write_text(json.dumps(prompts))
    (tmp_path / "engine.py").write_text(ENGINE)
    words = (str(folder), str(tmp_path / "prompts.json"))
    if pytestconfig.getoption("soak"):
        printed = run(str(tmp_path / "engine.py"), *words)
    else:
        printed = launcher.run(tmp_path / "engine.py", *words)
    told = next(line for line in printed.splitlines() if line.startswith("ANSWERS "))
    answers = json.loads(told.removeprefix("ANSWERS "))
    assert [method for _, method in answers] == ["full", "quest", "residual_pq"] * len(prompts)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    for i, prompt in enumerate(prompts):
        ids = torch.tensor([prompt])
        with torch.no_grad():
            expected = model.generate(ids, max_new_tokens=12, do_sample=False, eos_token_id=None)
        wanted = expected[0, len(prompt) :].tolist()
        assert answers[3 * i][0] == wanted and answers[3 * i + 1][0] == wanted
        if len(prompt) < 128:
            assert answers[3 * i + 2][0] == wanted


@pytest.mark.soak
def test_one_batch_runs_llama_with_plugins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`one_batch` loads no plugins by itself; its correctness mode agrees with torch_native."""
    folder = write_model(tmp_path / "llama", "Llama")
    monkeypatch.setenv("SGL_SPARSEKV_CONFIG", '{"method": "full"}')
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("\n".join(chain_document(n, 1, 4, seed=n).text for n in (200, 333)))
    common = ("--model-path", str(folder), "--device", "cpu", "--dtype", "float32")
    flags = ("--correctness-test", "--max-total-tokens", "4096", "--cut-len", "100")
    flags = (*flags, "--prompt-filename", str(prompts))
    printed = {
        backend: run(
            *("-m", "sgl_sparsekv.with_plugins", "sglang.benchmark.one_batch"),
            *(*common, *flags, "--attention-backend", backend),
        )
        for backend in ("torch_native", "sparsekv")
    }
    texts = {name: out[out.index("========== Prompt 0") :] for name, out in printed.items()}
    assert texts["sparsekv"] == texts["torch_native"]


@pytest.mark.soak
def test_offline_throughput_runs_qwen3_with_plugins(tmp_path: Path) -> None:
    """`offline_throughput` parses its flags before it would load plugins."""
    folder = write_model(tmp_path / "qwen3", "Qwen3")
    # Whatever the data set, its warm-up reads conversations from a file or from the network.
    talk = [{"conversations": [{"value": "where is the old mill"}, {"value": "by the river"}]}] * 64
    (tmp_path / "talk.json").write_text(json.dumps(talk))
    printed = run(
        *("-m", "sgl_sparsekv.with_plugins", "sglang.benchmark.offline_throughput"),
        *("--model-path", str(folder), "--device", "cpu", "--attention-backend", "sparsekv"),
        *("--dataset-name", "generated-shared-prefix", "--gsp-num-groups", "2"),
        *("--gsp-prompts-per-group", "2", "--gsp-system-prompt-len", "128"),
        *("--gsp-question-len", "16", "--gsp-output-len", "8"),
        *("--dataset-path", str(tmp_path / "talk.json"), "--max-total-tokens", "8192"),
    )
    assert "Successful requests:" in printed
