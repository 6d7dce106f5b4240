"""Flags that cannot be served, known from the command line: refused before anything starts."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ..errors import ConfigError, UnsupportedSetup
from ..host import BACKEND_NAME


@dataclass(frozen=True)
class Refusal:
    """A server flag that would make answers wrong or the server fail later.

    Attributes:
        name: the flag, as the user writes it.
        applies: takes SGLang's resolved arguments.
        why: what stands in the way.
        remedy: what to do.
    """

    name: str
    applies: Callable[[Any], bool]
    why: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.name} cannot be used with the sparsekv backend: {self.why}; {self.remedy}"


def check_flags(config: Any) -> None:
    """Refuse what SGLang's arguments tell, as resolved so far.

    Raises:
        ConfigError: a value breaks its rule.
        UnsupportedSetup: a flag cannot be served.
    """
    # SGLang finds out in a scheduler process, before anything of ours could tell it in one line.
    if config.node_rank >= config.nnodes:
        raise ConfigError(
            f"--node-rank must be below --nnodes {config.nnodes}, got {config.node_rank}"
        )
    servers = config.tool_server or "demo"
    if servers != "demo" and not all(":" in server for server in servers.split(",")):
        raise ConfigError(f"--tool-server must be demo or host:port, got {servers}")
    for refusal in REFUSALS:
        if refusal.applies(config):
            raise UnsupportedSetup(str(refusal))


def _set(name: str) -> Callable[[Any], bool]:
    """Whether a flag is set; a flag that this SGLang does not know is not."""
    return lambda cfg: bool(_get(cfg, name))


def _set_on_cpu(name: str) -> Callable[[Any], bool]:
    return lambda cfg: _get(cfg, "device") == "cpu" and bool(_get(cfg, name))


def _above_one(name: str) -> Callable[[Any], bool]:
    return lambda cfg: (_get(cfg, name) or 1) > 1


def _env(name: str) -> Callable[[Any], bool]:
    return lambda cfg: os.environ.get(name, "").lower() in ("1", "true", "yes")


def _get(cfg: Any, name: str) -> Any:
    try:
        return getattr(cfg, name)
    except AttributeError:
        return None


def _decodes_elsewhere(cfg: Any) -> bool:
    from sglang.srt.arg_groups.overrides import attention_backends_of

    _, decode = attention_backends_of(cfg)
    return bool(decode != BACKEND_NAME)


def _traces_without_package(cfg: Any) -> bool:
    from sglang.srt.observability import trace

    return bool(_get(cfg, "enable_trace")) and not trace.opentelemetry_imported


KV_DTYPES = ("auto", "bfloat16", "bf16", "float16", "fp16", "float32", "fp32", None)

REFUSALS = (
    Refusal(
        "--decode-attention-backend",
        _decodes_elsewhere,
        "it is decode that sparsekv makes sparse, and another backend would do it",
        "name sparsekv there, or leave the flag out",
    ),
    Refusal(
        "--speculative-algorithm",
        _set("speculative_algorithm"),
        "draft tokens would need a selection each",
        "leave it out",
    ),
    Refusal(
        "--kv-cache-dtype",
        lambda cfg: _get(cfg, "kv_cache_dtype") not in KV_DTYPES,
        "page bounds are kept in the keys' own 16- or 32-bit type",
        "use auto or bfloat16",
    ),
    Refusal(
        "--enable-hisparse",
        _set("enable_hisparse"),
        "it manages the KV cache itself",
        "leave it out",
    ),
    Refusal(
        "--dcp-size", _above_one("dcp_size"), "a page would lie on several ranks", "leave it out"
    ),
    Refusal(
        "--enable-pdmux", _set("enable_pdmux"), "forwards would not run in order", "leave it out"
    ),
    Refusal(
        "--enable-two-batch-overlap",
        _set("enable_two_batch_overlap"),
        "forwards would not run in order",
        "leave it out",
    ),
    Refusal(
        "--enable-unified-memory",
        _set("enable_unified_memory"),
        "slots are virtual there and metadata lives with physical pages",
        "leave it out",
    ),
    Refusal(
        "--enable-kv-cache-sharding",
        _set("enable_kv_cache_sharding"),
        "it replaces the KV pool that carries the page metadata",
        "leave it out",
    ),
    *(
        Refusal(
            flag,
            _set(name),
            "what a request keeps to itself is known to SGLang's own radix cache alone",
            "leave it out",
        )
        for flag, name in (
            ("--enable-lmcache", "enable_lmcache"),
            ("--enable-flexkv", "enable_flexkv"),
            ("--radix-cache-backend", "radix_cache_backend"),
        )
    ),
    Refusal(
        "--enable-page-major-kv-layout",
        _set("enable_page_major_kv_layout"),
        "keys are read slot by slot",
        "leave it out",
    ),
    Refusal(
        "--disaggregation-mode",
        lambda cfg: _get(cfg, "disaggregation_mode") not in (None, "null"),
        "transferred pages were not tested",
        "serve prefill and decode in one process",
    ),
    Refusal(
        "--enable-hierarchical-cache",
        _set_on_cpu("enable_hierarchical_cache"),
        "SGLang's host cache pins memory for a GPU",
        "leave it out: on a CPU the cache is in host memory already",
    ),
    Refusal(
        "--weight-cache-mode",
        lambda cfg: _get(cfg, "device") == "cpu" and _get(cfg, "weight_cache_mode") == "daemon",
        "its daemon shares weights in a GPU's memory",
        "leave it out",
    ),
    Refusal(
        "--enable-torch-compile",
        _set_on_cpu("enable_torch_compile"),
        "SGLang compiles no step on a CPU without kernels of its own, and would not say so",
        "leave it out",
    ),
    *(
        Refusal(
            flag,
            _set(name),
            "SGLang promises it for a closed list of backends, sparsekv not among them",
            "leave it out: selections depend on nothing else in the batch in any case",
        )
        for flag, name in (
            ("--enable-deterministic-inference", "enable_deterministic_inference"),
            ("--rl-on-policy-target", "rl_on_policy_target"),
        )
    ),
    *(
        Refusal(
            flag,
            _set(name),
            "requests would come by a front end of another package, which knows no options",
            "leave it out: requests come by HTTP",
        )
        for flag, name in (("--grpc-mode", "grpc_mode"), ("--smg-grpc-mode", "smg_grpc_mode"))
    ),
    Refusal(
        "--use-ray",
        _set("use_ray"),
        "the processes that Ray starts load no plugins",
        "leave it out",
    ),
    Refusal(
        "--enable-trace",
        _traces_without_package,
        "opentelemetry is not installed",
        "install sglang[tracing], or leave it out",
    ),
    Refusal(
        "--is-embedding",
        _set("is_embedding"),
        "it is decode that sparsekv makes sparse, and embeddings need none",
        "use another backend, or leave it out",
    ),
    Refusal("--dllm-algorithm", _set("dllm_algorithm"), "blocks are rewritten", "leave it out"),
    Refusal(
        "--prefill-only-disable-kv-cache",
        _set("prefill_only_disable_kv_cache"),
        "there is no KV cache to read",
        "leave one of the two out",
    ),
    Refusal(
        "SGLANG_USE_HND_KVCACHE",
        _env("SGLANG_USE_HND_KVCACHE"),
        "keys are read slot by slot",
        "unset it",
    ),
    Refusal(
        "SGLANG_ENABLE_METADATA_GLUE_GRAPH",
        _env("SGLANG_ENABLE_METADATA_GLUE_GRAPH"),
        "the step plan is host work",
        "unset it",
    ),
    Refusal(
        "SGLANG_ENABLE_POST_CAPTURE_KV_SIZING",
        _env("SGLANG_ENABLE_POST_CAPTURE_KV_SIZING"),
        "metadata is allocated with the pool",
        "set it to 0",  # some models set it where nobody did
    ),
)
