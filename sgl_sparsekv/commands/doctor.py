"""`sparsekv doctor`: whether this machine can serve, and what to do where it cannot.

Only the standard library is imported here. What needs torch or SGLang runs in processes of its own
with a time limit, so that a broken or hanging import is a finding like any other.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from .. import TESTED_SGLANG, __version__

OK, INFO, WARNING, FAILURE = "ok", "info", "warning", "failure"
MARKS = {OK: "ok  ", INFO: "    ", WARNING: "warn", FAILURE: "FAIL"}
INSTRUCTION_SETS = ("sse4_2", "avx2", "avx512f", "avx512_bf16", "amx_bf16", "asimd")
ELEMENT_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}


@dataclass(frozen=True)
class Finding:
    """One line of the diagnosis.

    Attributes:
        name: what was looked at.
        status: ok, info, warning, or failure (serving would stop or be wrong).
        detail: what was found.
        remedy: what to do; "" when there is nothing to do.
    """

    name: str
    status: str
    detail: str
    remedy: str = ""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("--json", action="store_true", help="findings as JSON")
    parser.add_argument("--model", metavar="DIR", help="say what page metadata costs for a model")
    parser.add_argument(
        "--gpu",
        action="store_true",
        help="compile the kernels, compare a layer with the reference and time it, in about 20 s; "
        "of the model's shape with --model",
    )
    parser.add_argument(
        "--timeout", type=float, default=180.0, help="seconds for each probe (default 180)"
    )


def run(args: argparse.Namespace) -> int:
    """Print the findings; 1 when one of them stops serving."""
    findings = diagnose(args.timeout, args.model, args.gpu)
    healthy = all(finding.status != FAILURE for finding in findings)
    if args.json:
        print(json.dumps({"healthy": healthy, "findings": [asdict(f) for f in findings]}, indent=2))
    else:
        for finding in findings:
            print(f"{MARKS[finding.status]}  {finding.name}: {finding.detail}")
            if finding.remedy:
                print(f"      -> {finding.remedy}")
        print("\nready to serve" if healthy else "\nnot ready: see FAIL above")
    return 0 if healthy else 1


def diagnose(timeout: float, model: str | None = None, gpu: bool = False) -> list[Finding]:
    """Every finding."""
    with ThreadPoolExecutor(2) as pool:
        hooks = pool.submit(_probe, "sgl_sparsekv.serving.hook_probe", timeout)
        ops = pool.submit(_probe, "sgl_sparsekv.serving.selftest", timeout)
        findings = [*version_findings(), *machine_findings()]
        findings += ops_findings(*ops.result())
        findings += hook_findings(*hooks.result())
    if model is not None:
        findings.append(model_finding(Path(model), ops.result()[0]))
    if gpu:
        findings.append(gpu_finding(None if model is None else Path(model), timeout))
    return findings


def version_findings() -> list[Finding]:
    """Installed versions."""
    findings = [Finding("sgl-sparsekv", OK, __version__)]
    findings.append(Finding("python", OK, platform.python_version()))
    sglang = _version("sglang")
    pin = f"pip install sglang=={TESTED_SGLANG[-1]}"
    if sglang is None:
        findings.append(Finding("sglang", FAILURE, "not installed", pin))
    elif sglang not in TESTED_SGLANG:
        tested = ", ".join(TESTED_SGLANG)
        findings.append(Finding("sglang", FAILURE, f"{sglang}, tested with {tested}", pin))
    else:
        findings.append(Finding("sglang", OK, f"{sglang} (tested)"))
    torch = _version("torch")
    if torch is None:
        findings.append(Finding("torch", FAILURE, "not installed", pin + ", which brings it"))
    else:
        findings.append(Finding("torch", OK, torch))
    for name in ("flashinfer-python", "triton"):
        findings.append(Finding(name, INFO, _version(name) or "not installed"))
    return findings


def machine_findings() -> list[Finding]:
    """Processor, threads and memory limits."""
    flags = _cpu_flags()
    sets = [name for name in INSTRUCTION_SETS if name in flags]
    cores = usable_cores()
    findings = [
        Finding("processor", INFO, f"{platform.machine()}, {', '.join(sets) or 'baseline'}"),
        Finding("cores", INFO, f"{cores} usable of {os.cpu_count()}"),
    ]
    limit = _cgroup_value("memory.max", "memory/memory.limit_in_bytes")
    if limit is not None and limit.isdigit() and int(limit) < 2**60:
        findings.append(Finding("memory limit", INFO, f"{int(limit) / 2**30:.1f} GiB (cgroup)"))
    threads = os.environ.get("OMP_NUM_THREADS", "")
    remedy = f"export OMP_NUM_THREADS={cores}"
    if threads.isdigit() and int(threads) > cores:
        text = f"{threads} threads on {cores} cores wait for each other"
        findings.append(Finding("OMP_NUM_THREADS", WARNING, text, remedy))
    elif not threads and cores < (os.cpu_count() or cores):
        text = f"not set, and torch may count {os.cpu_count()} cores where {cores} can be used"
        findings.append(Finding("OMP_NUM_THREADS", WARNING, text, remedy))
    else:
        findings.append(Finding("OMP_NUM_THREADS", OK, threads or "not set, all cores are used"))
    return findings


def ops_findings(report: dict[str, Any] | None, problem: str) -> list[Finding]:
    """What the self-test of the device ops found."""
    if report is None:
        remedy = "reinstall torch and sgl-sparsekv into a fresh environment"
        return [Finding("self-test", FAILURE, problem, remedy)]
    findings = [
        Finding("gpus", INFO, ", ".join(report["gpus"]) or "none"),
        Finding("torch threads", INFO, str(report["torch_threads"])),
    ]
    for device in report["devices"]:
        name = f"device {device['device']}"
        if not device["available"]:
            needed = device["device"] == ("triton" if report["gpus"] else "cpu")
            status, remedy = (FAILURE, "build or reinstall it") if needed else (INFO, "")
            findings.append(Finding(name, status, device["problem"], remedy))
        elif device["problem"]:
            remedy = "do not serve with these kernels: rebuild them, and report it if it stays"
            findings.append(Finding(name, FAILURE, device["problem"], remedy))
        else:
            worst = max(device["worst"].values(), default=0.0)
            methods = ", ".join(device["methods"])
            detail = f"agrees with the reference within {worst:.1g}; methods {methods}"
            findings.append(Finding(name, OK, detail))
    return findings


def hook_findings(report: dict[str, Any] | None, problem: str) -> list[Finding]:
    """Whether SGLang took our hooks."""
    if report is None:
        remedy = f"pip install sglang=={TESTED_SGLANG[-1]} into a fresh environment"
        return [Finding("hooks", FAILURE, problem, remedy)]
    findings = []
    if not report["backend"]:
        remedy = "reinstall sgl-sparsekv, and leave it in SGLANG_PLUGINS if that is set"
        findings.append(Finding("backend", FAILURE, "SGLang did not load the plugin", remedy))
    for target in report["missing"]:
        remedy = f"install a tested SGLang ({', '.join(TESTED_SGLANG)})"
        findings.append(Finding("hook", FAILURE, f"not in place: {target}", remedy))
    if report["prometheus_too_early"]:
        text = "prometheus_client is imported before SGLang sets it up; /metrics may lack series"
        findings.append(Finding("metrics", WARNING, text, "look for another plugin that does it"))
    if not findings:
        findings.append(Finding("hooks", OK, f"all {len(report['hooks'])} in place"))
    return findings


def model_finding(folder: Path, selftest: dict[str, Any] | None) -> Finding:
    """What page metadata costs per token for the model in `folder`."""
    try:
        one = attention_of(folder)
    except (OSError, ValueError) as error:
        return Finding("model", FAILURE, f"{folder}/config.json: {error}", "name a model folder")
    except KeyError as error:
        return Finding("model", WARNING, f"{folder}/config.json does not name {error}")
    element = ELEMENT_BYTES.get(one.dtype, 2)
    width = one.layers * one.kv_heads * one.head_dim * element
    kv = 2 * width
    planes = selftest["default_planes"] if selftest else 2
    unit = selftest["unit_size"] if selftest else 16
    metadata = planes * width / unit
    detail = (
        f"{one.layers} layers, {one.kv_heads} KV heads of {one.head_dim}, {one.dtype}: "
        f"{kv} bytes of KV and "
        f"{metadata:g} bytes of page metadata per token ({100 * metadata / kv:.2f}%), "
        f"{metadata * 131072 / 2**20:.0f} MiB for 128k tokens"
    )
    return Finding("model", OK, detail)


@dataclass(frozen=True)
class Attention:
    """What a model's `config.json` says of its attention."""

    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    dtype: str


def attention_of(folder: Path) -> Attention:
    """Read a model's folder.

    Raises:
        OSError: there is no such file.
        ValueError: it is not JSON.
        KeyError: it does not name what is needed.
    """
    config = json.loads((folder / "config.json").read_text())
    config = config.get("text_config", config)
    layers, heads = config["num_hidden_layers"], config["num_attention_heads"]
    kv_heads = config.get("num_key_value_heads") or heads
    head_dim = config.get("head_dim") or config["hidden_size"] // heads
    dtype = str(config.get("dtype") or config.get("torch_dtype") or "bfloat16")
    return Attention(layers, heads, kv_heads, head_dim, dtype)


def gpu_finding(folder: Path | None, timeout: float) -> Finding:
    """Whether the kernels compile, agree with the reference, and how long a layer takes."""
    shape = []
    if folder is not None:
        try:
            one = attention_of(folder)
        except (OSError, ValueError, KeyError) as error:
            text = f"{folder}/config.json: {error}"
            return Finding("gpu kernels", FAILURE, text, "name a model folder")
        shape = [
            *("--heads", str(one.kv_heads), "--group", str(one.heads // one.kv_heads)),
            *("--head-dim", str(one.head_dim), "--dtype", one.dtype),
        ]
    found, problem = _probe("sgl_sparsekv.serving.gpu_check", timeout, *shape)
    if found is None:
        remedy = "run `python -m sgl_sparsekv.serving.gpu_check` to see all that it says"
        return Finding("gpu kernels", FAILURE, problem, remedy)
    if not found["gpu"]:
        text = "no NVIDIA GPU was found here, so no kernel was compiled"
        return Finding("gpu kernels", FAILURE, text, "run it where the GPU is")
    if found["problem"]:
        remedy = "do not serve with these kernels, and report what this says"
        return Finding("gpu kernels", FAILURE, f"{found['gpu']}: {found['problem']}", remedy)
    detail = (
        f"{found['gpu']}: a layer compiled in {found['compile_seconds']:g} s, agrees with the "
        f"reference and takes {found['layer_us']:g} us"
    )
    return Finding("gpu kernels", OK, detail)


def usable_cores() -> int:
    """Cores this process may use: affinity and cgroup quota."""
    affine = getattr(os, "sched_getaffinity", None)
    cores = len(affine(0)) if affine is not None else os.cpu_count() or 1
    quota = (_cgroup_value("cpu.max", "") or "max").split()
    if len(quota) == 2 and quota[0].isdigit():
        cores = min(cores, max(1, round(int(quota[0]) / int(quota[1]))))
    return cores


def _probe(module: str, timeout: float, *arguments: str) -> tuple[dict[str, Any] | None, str]:
    """The JSON that a module prints last, or None and why there is none."""
    command = [sys.executable, "-m", module, *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=timeout, check=False)
    except subprocess.TimeoutExpired:
        return None, f"no answer within {timeout:g} seconds (python -m {module})"
    for line in reversed(done.stdout.splitlines()):
        if line.startswith("{"):
            report: dict[str, Any] = json.loads(line)
            return report, ""
    last = (done.stderr.strip().splitlines() or ["no output"])[-1]
    return None, f"{last[:300]} (exit {done.returncode}, python -m {module})"


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _cpu_flags() -> set[str]:
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return set()
    for line in text.splitlines():
        name, _, value = line.partition(":")
        if name.strip().lower() in ("flags", "features"):
            return set(value.split())
    return set()


def _cgroup_value(*names: str) -> str | None:
    for name in filter(None, names):
        try:
            return Path("/sys/fs/cgroup", name).read_text().strip()
        except OSError:
            continue
    return None
