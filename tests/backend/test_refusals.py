"""What cannot be served is refused at start, in one sentence with a remedy (R18)."""

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from start.resolving import SMALL

from sgl_sparsekv.backend.flag_refusals import REFUSALS, Refusal
from sgl_sparsekv.backend.support import attention_layers
from sgl_sparsekv.config import check_page_size
from sgl_sparsekv.errors import ConfigError, UnsupportedOnDevice, UnsupportedSetup
from sgl_sparsekv.geometry import PAGE_SIZES
from sgl_sparsekv.selection.registry import BUILT_IN

ACCEPTED = {
    "speculative_algorithm": None,
    "kv_cache_dtype": "auto",
    "enable_hisparse": False,
    "dcp_size": 1,
    "enable_pdmux": False,
    "enable_two_batch_overlap": False,
    "enable_unified_memory": False,
    "enable_kv_cache_sharding": False,
    "enable_page_major_kv_layout": False,
    "disaggregation_mode": "null",
    "dllm_algorithm": None,
    "prefill_only_disable_kv_cache": False,
    "enable_hierarchical_cache": False,
    "enable_torch_compile": False,
    "enable_deterministic_inference": False,
    "rl_on_policy_target": None,
    "is_embedding": False,
    "grpc_mode": False,
    "smg_grpc_mode": False,
    "use_ray": False,
    "enable_trace": False,
    "weight_cache_mode": "client",
    "device": "cpu",
    "attention_backend": "sparsekv",
    "decode_attention_backend": None,
    "prefill_attention_backend": None,
}
REFUSED = {
    "--speculative-algorithm": {"speculative_algorithm": "EAGLE"},
    "--kv-cache-dtype": {"kv_cache_dtype": "fp8_e4m3"},
    "--enable-hisparse": {"enable_hisparse": True},
    "--dcp-size": {"dcp_size": 2},
    "--enable-pdmux": {"enable_pdmux": True},
    "--enable-lmcache": {"enable_lmcache": True},
    "--enable-flexkv": {"enable_flexkv": True},
    "--radix-cache-backend": {"radix_cache_backend": "other"},
    "--enable-two-batch-overlap": {"enable_two_batch_overlap": True},
    "--enable-unified-memory": {"enable_unified_memory": True},
    "--enable-kv-cache-sharding": {"enable_kv_cache_sharding": True},
    "--enable-page-major-kv-layout": {"enable_page_major_kv_layout": True},
    "--disaggregation-mode": {"disaggregation_mode": "decode"},
    "--dllm-algorithm": {"dllm_algorithm": "LowConfidence"},
    "--prefill-only-disable-kv-cache": {"prefill_only_disable_kv_cache": True},
    "--decode-attention-backend": {"decode_attention_backend": "torch_native"},
    "--enable-hierarchical-cache": {"enable_hierarchical_cache": True},
    "--enable-torch-compile": {"enable_torch_compile": True},
    "--enable-deterministic-inference": {"enable_deterministic_inference": True},
    "--rl-on-policy-target": {"rl_on_policy_target": "fsdp"},
    "--is-embedding": {"is_embedding": True},
    "--grpc-mode": {"grpc_mode": True},
    "--smg-grpc-mode": {"smg_grpc_mode": True},
    "--use-ray": {"use_ray": True},
    "--enable-trace": {"enable_trace": True},
    "--weight-cache-mode": {"weight_cache_mode": "daemon"},
}


@pytest.mark.parametrize("refusal", REFUSALS, ids=lambda r: r.name)
def test_each_flag_is_refused_when_set_and_only_then(
    refusal: Refusal, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The table of refusals, row by row."""
    monkeypatch.setattr("sglang.srt.observability.trace.opentelemetry_imported", False)
    assert not refusal.applies(SimpleNamespace(**ACCEPTED))
    if refusal.name.startswith("SGLANG_"):
        monkeypatch.setenv(refusal.name, "1")
        assert refusal.applies(SimpleNamespace(**ACCEPTED))
    else:
        assert refusal.applies(SimpleNamespace(**{**ACCEPTED, **REFUSED[refusal.name]}))
    sentence = str(refusal)
    assert sentence.startswith(refusal.name) and ";" in sentence and "\n" not in sentence


def test_flags_of_the_table_exist_in_this_sglang(sglang_plugins: None) -> None:
    """A flag that was renamed would silently be accepted."""
    from sglang.srt.server_args import ServerArgs

    known = set(ServerArgs.__struct_fields__)
    assert set(ACCEPTED) <= known


@pytest.mark.parametrize("page_size", [1, 4, 8, 128])
def test_other_page_sizes_are_refused_with_the_remedy(page_size: int) -> None:
    """16, 32 and 64 are served."""
    with pytest.raises(ConfigError, match="leave the flag out to get 64"):
        check_page_size(page_size)
    for served in PAGE_SIZES:
        check_page_size(served)


def write_model(folder: Path, **config: Any) -> str:
    """A folder with a `config.json` and nothing else."""
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps({**SMALL, **config}))
    return str(folder)


LLAMA = {"architectures": ["LlamaForCausalLM"], "model_type": "llama"}


@pytest.fixture
def resolve(sglang_plugins: None, tmp_path: Path) -> Any:
    """Resolve SGLang's arguments for a small model with our backend."""
    from sglang.srt.arg_groups.overrides import resolved_view
    from sglang.srt.server_args import ServerArgs

    def resolved(**flags: Any) -> Any:
        model = write_model(tmp_path / "model", **flags.pop("config", LLAMA))
        arguments = ServerArgs(
            model_path=model,
            skip_tokenizer_init=True,
            device="cpu",
            attention_backend="sparsekv",
            **flags,
        )
        arguments.resolve_once()
        return resolved_view(arguments)

    return resolved


def test_our_page_size_is_the_default(resolve: Any) -> None:
    """64 when none is named, else the named one."""
    assert resolve().page_size == 64
    assert resolve(page_size=16).page_size == 16


def test_real_arguments_are_refused(resolve: Any) -> None:
    """Through SGLang's own resolution."""
    with pytest.raises(ConfigError, match="--page-size must be one of 16, 32, 64"):
        resolve(page_size=1)
    with pytest.raises(UnsupportedSetup, match="--kv-cache-dtype"):
        resolve(kv_cache_dtype="fp8_e5m2")
    with pytest.raises(ConfigError, match="a multiple of the page size 64, got 100"):
        resolve(chunked_prefill_size=100)
    with pytest.raises(ConfigError, match="--node-rank must be below --nnodes 1, got 2"):
        resolve(node_rank=2)
    with pytest.raises(ConfigError, match="--tool-server must be demo or host:port, got x"):
        resolve(tool_server="x")


def test_a_page_size_that_sglang_chose_has_another_remedy(resolve: Any) -> None:
    """The user named none, so there is none to leave out; and the remedy cures."""
    with pytest.raises(ConfigError, match=r"got 128 from SGLang .*; add --page-size 64"):
        resolve(prefill_attention_backend="intel_xpu")
    assert resolve(prefill_attention_backend="intel_xpu", page_size=64).page_size == 64


def test_a_bad_config_in_the_environment_stops_engine(
    resolve: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before any process or model."""
    monkeypatch.setenv("SGL_SPARSEKV_CONFIG", '{"budget": 0}')
    with pytest.raises(ConfigError, match="budget must be"):
        resolve()


def test_another_version_of_sglang_is_refused(
    resolve: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One sentence with the tested version."""
    monkeypatch.setattr("sgl_sparsekv.host.version", lambda name: "0.9.9")
    with pytest.raises(UnsupportedSetup, match=r"SGLang 0\.9\.9 was not tested .* 0\.5\.23"):
        resolve()


def runner(**changes: Any) -> SimpleNamespace:
    """As much of a model runner as the check looks at."""
    import torch

    base = SimpleNamespace(
        token_to_kv_pool=SimpleNamespace(page_metadata=None),
        model=torch.nn.Module(),
        device="cpu",
    )
    return SimpleNamespace(**{**vars(base), **changes})


@pytest.mark.usefixtures("sglang_plugins")
@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"token_to_kv_pool": SimpleNamespace()}, "several kinds of cache"),
    ],
)
def test_models_of_other_kinds_are_refused(changes: dict[str, Any], says: str) -> None:
    """What, why and what to do."""
    from sgl_sparsekv.backend.support import check_runner
    from sgl_sparsekv.ops import load_ops

    ops = load_ops("reference")
    check_runner(runner(), ("quest",), ops)
    with pytest.raises(UnsupportedSetup, match=says) as refused:
        check_runner(runner(**changes), ("quest",), ops)
    assert "use another backend" in str(refused.value)


SERVED = {
    *("adakv", "clusterkv", "full", "h2o", "kvcompress", "mean_std", "oracle", "pqcache"),
    *("pyramidkv", "quest", "quest_int8", "quest_two_level", "quest_two_level_exact"),
    *("residual_pq", "shadowkv", "snapkv", "streaming"),
}
"""Methods of a server with a GPU."""


@pytest.mark.usefixtures("sglang_plugins")
@pytest.mark.parametrize("name", sorted(BUILT_IN))
def test_methods_that_a_gpu_serves(name: str) -> None:
    """The others are refused at start, and told."""
    from sgl_sparsekv.kernels.triton import load

    from sgl_sparsekv.backend.support import check_runner

    if name in SERVED:
        check_runner(runner(device="cuda"), (name,), load())
        return
    with pytest.raises(UnsupportedOnDevice, match="fused decode"):
        check_runner(runner(device="cuda"), (name,), load())


@pytest.mark.usefixtures("sglang_plugins")
def test_views_are_refused_where_plain_torch_would_serve_a_gpu() -> None:
    from sgl_sparsekv.kernels.triton import load

    from sgl_sparsekv.backend.support import check_runner
    from sgl_sparsekv.ops import load_ops

    ops = load_ops("reference")
    check_runner(runner(), ("snapkv",), ops)
    with pytest.raises(UnsupportedOnDevice, match="method 'snapkv' needs the op 'views on a GPU'"):
        check_runner(runner(device="cuda"), ("snapkv",), ops)
    check_runner(runner(device="cuda"), ("snapkv",), load())


@pytest.mark.usefixtures("sglang_plugins")
def test_a_missing_hook_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """SGLang only logs a hook that fails; we must not serve without one."""
    from sglang.srt.layers.attention.attention_registry import ATTENTION_BACKENDS
    from sglang.srt.plugins.hook_registry import HookRegistry

    from sgl_sparsekv.host import BACKEND_NAME
    from sgl_sparsekv.plugin import HOOKS

    rest = HookRegistry._patched - {HOOKS[0].target}
    monkeypatch.setattr(HookRegistry, "_patched", rest)
    with pytest.raises(UnsupportedSetup, match=r"add_cli_args; run `sparsekv doctor`"):
        ATTENTION_BACKENDS[BACKEND_NAME](runner())


def test_bad_server_flags_are_one_line_and_exit_2(
    resolve: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As the launcher parses and resolves them."""
    from sglang.srt.server_args import prepare_server_args

    model = write_model(tmp_path / "model", **LLAMA)
    common = ["--model-path", model, "--device", "cpu", "--skip-tokenizer-init"]
    chosen = ["--attention-backend", "sparsekv"]
    for flags, says in [
        ([*chosen, "--sparsekv-method", "quset"], "method must be one of adakv"),
        ([*chosen, "--sparsekv-budget", "64"], "budget must be at least 96 tokens"),
        ([*chosen, "--sparsekv-sink", "many"], "sink must be an integer"),
        ([*chosen, "--sparsekv-config", "/nowhere.json"], "No such file"),
        ([*chosen, "--sparsekv-trace", "5560"], "trace must be a ZMQ endpoint"),
        ([*chosen, "--page-size", "1"], "--page-size must be one of 16, 32, 64"),
        ([*chosen, "--kv-cache-dtype", "fp8_e4m3"], "--kv-cache-dtype cannot be used"),
        (["--sparsekv-budget", "512"], "needs --attention-backend sparsekv"),
    ]:
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            prepare_server_args([*common, *flags]).resolve_once()
        lines = [line for line in capsys.readouterr().err.splitlines() if "sparsekv: error" in line]
        assert ended.value.code == 2 and len(lines) == 1 and says in lines[0]


@pytest.mark.soak
def test_the_real_command_ends_with_one_line_and_exit_2(tmp_path: Path) -> None:
    """Before any model is read."""
    command = [sys.executable, "-m", "sglang.launch_server", "--model-path", str(tmp_path / "none")]
    flags = ["--device", "cpu", "--attention-backend", "sparsekv", "--sparsekv-budget", "0"]
    ended = subprocess.run([*command, *flags], capture_output=True, text=True, timeout=300)
    assert ended.returncode == 2
    last = ended.stderr.splitlines()[-1]
    assert last.startswith("sparsekv: error: budget must be") and "Traceback" not in ended.stderr


def test_attention_of_transformers_own_models_is_found() -> None:
    """`--model-impl transformers`, and models that SGLang has no code for."""
    from sglang.srt.layers.radix_attention import RadixAttention

    model = torch.nn.Module()
    assert attention_layers(model) == []
    layer = RadixAttention(num_heads=2, head_dim=16, scaling=1.0, num_kv_heads=1, layer_id=0)
    model.attention_instances = {0: layer}
    assert attention_layers(model) == [layer]
    model.attention = layer
    assert attention_layers(model) == [layer]
