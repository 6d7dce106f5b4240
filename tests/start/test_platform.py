"""On a machine without an accelerator a server needs no flag but the backend."""

import json
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from sgl_sparsekv.backend.cpu_defaults import (
    CORES_OF_RANKS,
    MAX_RUNNING_REQUESTS,
    MAX_TOTAL_TOKENS,
    METHOD,
    PATIENCE,
    cpu_defaults,
    memory_share,
    with_cpu_method,
)
from sgl_sparsekv.backend.resolution import WORKER_APPLICATION
from sgl_sparsekv.errors import ConfigError, UnsupportedSetup

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")


def test_the_backend_alone_is_enough_and_leaves_the_machine_usable(resolve: Any) -> None:
    """No `--device`; an idle server sleeps and half of the free memory stays free."""
    args = resolve(attention_backend="sparsekv")
    assert args.device == "cpu"
    assert args.sleep_on_idle and args.max_running_requests == MAX_RUNNING_REQUESTS
    assert args.mem_fraction_static == 0.5 and args.max_total_tokens == MAX_TOTAL_TOKENS


def test_what_the_user_names_is_kept(resolve: Any) -> None:
    """Defaults are for what was left out."""
    args = resolve(
        attention_backend="sparsekv", mem_fraction_static=0.7, max_running_requests=3, device="cpu"
    )
    assert args.mem_fraction_static == 0.7 and args.max_running_requests == 3
    assert args.max_total_tokens is None  # whoever names the share means it
    assert resolve(attention_backend="sparsekv", max_total_tokens=4096).max_total_tokens == 4096


def unnamed(**more: Any) -> SimpleNamespace:
    """Arguments of one rank that name nothing."""
    named = {
        **dict.fromkeys(("tp_size", "pp_size", "dp_size"), 1),
        **dict.fromkeys(("mem_fraction_static", "max_total_tokens", "max_running_requests")),
        "model_path": "not-a-folder/model",
        "context_length": None,
    }
    return SimpleNamespace(**(named | more))


def test_a_context_that_was_asked_for_fits_the_cache() -> None:
    """However long."""
    asked = unnamed(context_length=2 * MAX_TOTAL_TOKENS)
    assert cpu_defaults(asked)["max_total_tokens"] == 2 * MAX_TOTAL_TOKENS


@pytest.mark.parametrize("ranks", ({"tp_size": 2}, {"pp_size": 2}, {"dp_size": 2}))
def test_ranks_share_the_half_that_they_take(ranks: dict[str, int]) -> None:
    assert cpu_defaults(unnamed(**ranks))["mem_fraction_static"] == 0.25


@pytest.mark.parametrize(
    ("named", "method"),
    [
        ({}, METHOD),
        ({"budget": 512, "device": "reference"}, METHOD),
        ({"methods": "full, residual_pq"}, METHOD),
        ({"method": "streaming"}, "streaming"),
        ({"methods": ["full", "quest"]}, "quest"),
        ({"device": "triton"}, "quest"),
    ],
)
def test_a_method_that_nobody_named(named: dict[str, Any], method: str) -> None:
    """What a user chose or left out is kept; otherwise the CPU's own is served."""
    options = with_cpu_method(named)
    assert options.request.method == method and method in options.methods


def test_methods_that_were_named_are_all_that_is_kept() -> None:
    """The default that a CPU has in place of another brings nothing of that one along."""
    assert with_cpu_method({"methods": f"full, {METHOD}"}).methods == ("full", METHOD)


def test_wrong_methods_are_one_sentence(resolve: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ahead of any default."""
    monkeypatch.setenv("SGL_SPARSEKV_CONFIG", '{"methods": 5}')
    with pytest.raises(ConfigError, match="methods must be a list of method names, got 5"):
        resolve(attention_backend="sparsekv", device="cpu")


@pytest.mark.parametrize(
    ("head_size", "asked", "says"),
    [
        (38, {}, "records of residuals cannot be kept .* multiple of 4 sub-vectors, got 38"),
        (1024, {}, "records of residuals cannot be kept .* head size must be at most 512"),
        (
            38,
            {"method": "pqcache", "pq_subspaces": 4},
            "records of products .* multiple of 4 sub-vectors, got 38",
        ),
        (38, {"method": "quest"}, None),
    ],
)
def test_keys_that_cannot_be_cut(
    resolve: Any,
    model: Path,
    monkeypatch: pytest.MonkeyPatch,
    head_size: int,
    asked: dict[str, Any],
    says: str | None,
) -> None:
    """Told before the weights load, with the cure."""
    shape = json.loads((model / "config.json").read_text()) | {"head_dim": head_size}
    (model / "config.json").write_text(json.dumps(shape))
    monkeypatch.setenv("SGL_SPARSEKV_CONFIG", json.dumps(asked))
    if says is None:
        assert resolve(attention_backend="sparsekv", device="cpu").page_size
        return
    with pytest.raises(UnsupportedSetup, match=says) as refused:
        resolve(attention_backend="sparsekv", device="cpu")
    assert "name another --sparsekv-method" in str(refused.value)


def test_a_dense_server_keeps_sglangs_defaults(resolve: Any) -> None:
    """Installed but not chosen, the platform serves and sets nothing."""
    args = resolve(attention_backend="torch_native")
    assert args.device == "cpu" and not args.sleep_on_idle
    assert args.max_running_requests is None and args.mem_fraction_static != 0.5


def test_weights_are_counted_before_the_cache(tmp_path: Path) -> None:
    """Half of what they leave, so that a large model still gets a cache; shared by all ranks."""
    free = 10_000

    class Machine:
        available = free

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("psutil.virtual_memory", Machine)
        assert memory_share("not-a-folder/model") == 0.5
        (tmp_path / "model.safetensors").write_bytes(bytes(4_000))
        assert memory_share(str(tmp_path)) == 0.7
        assert memory_share(str(tmp_path), ranks=2) == 0.35
        (tmp_path / "more.safetensors").write_bytes(bytes(9_000))
        assert memory_share(str(tmp_path)) == 0.9


def test_ranks_share_the_cores(resolve: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """SGLang would ask for a NUMA node for each rank."""
    monkeypatch.setattr("os.sched_getaffinity", lambda process: {0, 1, 2, 3, 4})
    monkeypatch.delenv(CORES_OF_RANKS, raising=False)
    args = resolve(attention_backend="sparsekv", tp_size=2)
    assert os.environ[CORES_OF_RANKS] == "0,1|2,3" and args.mem_fraction_static == 0.25
    monkeypatch.setenv(CORES_OF_RANKS, "0|1|2")
    resolve(attention_backend="sparsekv", tp_size=3)
    assert os.environ[CORES_OF_RANKS] == "0|1|2"


def test_extra_tokenizer_processes_load_our_hooks(
    resolve: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where several were asked for, and the user named no application."""
    variable, path = WORKER_APPLICATION
    monkeypatch.setenv(variable, "theirs:app")
    monkeypatch.delenv(PATIENCE[0], raising=False)
    resolve(attention_backend="sparsekv", tokenizer_worker_num=2)
    assert os.environ[variable] == "theirs:app"
    monkeypatch.delenv(variable)
    resolve(attention_backend="torch_native", tokenizer_worker_num=2)
    resolve(attention_backend="sparsekv")
    assert variable not in os.environ
    monkeypatch.delenv(PATIENCE[0])
    resolve(attention_backend="sparsekv", tokenizer_worker_num=2)
    assert os.environ[variable] == path and int(os.environ[PATIENCE[0]]) > 60
