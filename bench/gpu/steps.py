"""Whole decode steps of a random-weight Llama-3.1-8B, by SGLang's own `one_batch`.

Every backend runs in a process of its own, one after the other: a process holds one backend.
`one_batch` waits for the device in each step, so a step has the host's work in it, on all sides.
"""

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

from bench.gpu.checkout import ROOT
from bench.gpu.kernels import Run
from bench.gpu.log import Fact, Measured
from bench.gpu.server import installed
from bench.gpu.timing import Times
from sgl_sparsekv.config import RequestOptions

LLAMA_CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 4096,
    "intermediate_size": 14_336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "vocab_size": 128_256,
    "max_position_embeddings": 131_072 + 1024,
    "rope_theta": 500_000.0,
    "rms_norm_eps": 1e-5,
    "hidden_act": "silu",
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "bos_token_id": 128_000,
    "eos_token_id": 128_009,
}
CONTEXTS, BATCHES, TOKENS = (8192, 32_768, 131_072), (1, 8), 25
DENSE = ("flashinfer", "fa3")
"""The second on Hopper alone."""
UNITS = (64, 16)
SECONDS = 280
Shapes = dict[tuple[int, int], Times]


def steps(run: Run) -> None:
    """Dense backends, then ours by unit size; rows against the faster dense one."""
    folder = Path(tempfile.mkdtemp(prefix="bench-gpu-steps-"))
    if run.log.attempt("model of random weights", lambda: write_model(folder / "model")) is None:
        return
    dense: dict[str, Shapes] = {}
    hopper = torch.cuda.get_device_capability(run.device)[0] == 9
    for backend in DENSE if hopper and not run.quick else DENSE[:1]:
        dense[backend] = measured(run, folder, backend, ())
    for unit in UNITS[:1] if run.quick else UNITS:
        flags = ("--sparsekv-unit-size", str(unit), "--sparsekv-budget", "2048")
        ours = measured(run, folder, "sparsekv", flags)
        for (batch, context), times in ours.items():
            run.log.add(compared(batch, context, unit, times, dense))


def compared(
    batch: int, context: int, unit: int, times: Times, dense: dict[str, Shapes]
) -> Measured:
    """A row against the faster dense backend."""
    at = (context, batch)
    peers = {
        name: found[batch, context] for name, found in dense.items() if (batch, context) in found
    }
    layers = f"first {RequestOptions().dense_layers} layers dense, as by default"
    if not peers:
        note = f"{layers}; no peer ran: not judged"
        return Measured("step", *at, unit, times.least, times.median, judged=False, note=note)
    best = min(peers, key=lambda name: peers[name].least)
    note = ", ".join([layers, *(f"{name} {t.least:.0f}" for name, t in peers.items())])
    least = peers[best].least
    return Measured("step", *at, unit, times.least, times.median, best, least, True, note)


def measured(run: Run, folder: Path, backend: str, flags: tuple[str, ...]) -> Shapes:
    """Times of a backend; none where it fails."""
    name = " ".join(("one_batch", backend, *flags[:2]))
    found: Shapes = {}

    def call() -> str:
        found.update(one_batch(folder, backend, flags))
        return f"{len(found)} shapes"

    run.log.attempt(name, call)
    for (batch, context), times in found.items():
        run.log.add(Fact(f"step of {backend} {context} x {batch}", times.median, "us, median"))
    return found


def arguments(model: Path, backend: str, flags: tuple[str, ...], result: Path) -> list[str]:
    """Of `sglang.benchmark.one_batch`; the first shape is its warm-up as well."""
    return [
        *("--model-path", str(model), "--load-format", "dummy", "--dtype", "bfloat16"),
        *("--page-size", "64", "--attention-backend", backend, *flags),
        *("--mem-fraction-static", "0.75", "--random-seed", "0"),
        *("--batch-size", *map(str, BATCHES), "--input-len", *map(str, CONTEXTS)),
        *("--output-len", str(TOKENS), "--log-decode-step", "1", "--result-filename", str(result)),
    ]


def one_batch(folder: Path, backend: str, flags: tuple[str, ...]) -> Shapes:
    """Run it once over all shapes; what it had measured when it failed or was ended counts.

    Raises:
        RuntimeError: it measured nothing; says its last line.
    """
    result = folder / f"{backend}{''.join(flags[1:2])}.jsonl"
    log = result.with_suffix(".log")
    module = ("-m", "sgl_sparsekv.with_plugins", "sglang.benchmark.one_batch")
    command = [sys.executable, *module, *arguments(folder / "model", backend, flags, result)]
    with log.open("w") as file:
        process = subprocess.Popen(command, cwd=ROOT, stdout=file, stderr=subprocess.STDOUT)
        try:
            process.wait(SECONDS)
        except subprocess.TimeoutExpired:
            process.terminate()
        finally:
            if process.poll() is None:
                process.wait(30)
    text = log.read_text(errors="replace")
    found = parse(text)
    if not found:
        raise RuntimeError((text.strip().splitlines() or ["it wrote nothing"])[-1][:300])
    return found


def parse(text: str) -> Shapes:
    """Times of each shape from what `one_batch` prints behind its warm-up."""
    found: Shapes = {}
    shapes = [(batch, context) for batch in BATCHES for context in CONTEXTS]
    _, _, text = text.partition("Benchmark ...")
    left_out = {
        (int(batch), int(context))
        for batch, context in re.findall(r"skipping \((\d+), (\d+), \d+\)", text)
    }
    ran = [shape for shape in shapes if shape not in left_out]
    for shape, part in zip(ran, text.split("Prefill. latency:")[1:], strict=False):
        each = re.findall(r"Decode \d+\. Batch size: (\d+), latency: +([\d.]+) s", part)
        times = sorted(float(seconds) * 1e6 for batch, seconds in each if int(batch) == shape[0])
        if len(times) >= 5:
            found[shape] = Times(times[0], times[len(times) // 2])
    return found


def write_model(folder: Path) -> str:
    """Configuration and a small tokenizer; the weights are made up by SGLang.

    Raises:
        Skip: SGLang is not there.
    """
    installed()
    from sgl_sparsekv.models.analytic import save_analytic

    save_analytic(folder)
    for weights in folder.glob("*.safetensors"):
        weights.unlink()
    (folder / "config.json").write_text(json.dumps(LLAMA_CONFIG, indent=1) + "\n")
    return str(folder)
