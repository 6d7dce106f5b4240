"""While SGLang resolves its flags: our page size, no graphs yet, and what we refuse."""

import logging
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from ..config import DEFAULT_PAGE_SIZE, FUSED_DEVICES, ServerOptions, check_chunks, check_page_size
from ..errors import ConfigError, UnsupportedSetup
from ..host import BACKEND_NAME, version_problem
from .cpu_defaults import cpu_defaults, set_cpu_environment
from .flags import carry, is_chosen, options_of
from .model_refusals import check_model

logger = logging.getLogger(__name__)


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


BACKEND_SOURCE = "sgl_sparsekv"
WORKER_APPLICATION = ("SGLANG_HTTP_SERVER_APP_PATH", "sgl_sparsekv.serving.worker:app")
"""What extra tokenizer processes import, in place of an application without our hooks."""
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
        "--enable-torch-compile",
        _set_on_cpu("enable_torch_compile"),
        "what a step reads is planned on the host, which a compiled step leaves out",
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
        "unset it",
    ),
)


def register_resolution() -> None:
    """Wrap the resolution steps that settle a platform's defaults and attention backends."""
    from sglang.srt.arg_groups.resolution_hooks import register_resolution_hook

    register_resolution_hook("handle_platform_defaults")(_set_defaults)
    register_resolution_hook("handle_attention_backend_compatibility")(_resolve)


def _set_defaults(server_args: Any, previous: Callable[[Any], None]) -> None:
    """Before SGLang looks at model and memory: our refusals, and what was not named on a CPU."""
    from sglang.srt.arg_groups.model_override_base import model_config_of
    from sglang.srt.arg_groups.overrides import declare_resolution, resolving_view

    previous(server_args)
    if not is_chosen(server_args):
        return
    config = resolving_view(server_args)
    # Ahead of SGLang's own checks, which name lists that a user of ours cannot choose from.
    _check_flags(config)
    check_model(model_config_of(server_args), config)
    if config.device == "cpu":
        set_cpu_environment(config)
        declare_resolution(server_args, BACKEND_SOURCE, **cpu_defaults(config))


def _check_flags(config: Any) -> None:
    for refusal in REFUSALS:
        if refusal.applies(config):
            raise UnsupportedSetup(str(refusal))


def _resolve(server_args: Any, previous: Callable[[Any], None]) -> None:
    previous(server_args)
    if not is_chosen(server_args):
        return
    _check_and_declare(server_args)


def device_of(options: ServerOptions, model_device: str) -> ServerOptions:
    """Options with the kernels of the model's device where they say "auto".

    Raises:
        ConfigError: another option cannot be had on that device.
    """
    if options.device != "auto":
        return options
    try:
        return replace(options, device="cpu" if model_device == "cpu" else "triton")
    except ValueError as error:
        raise ConfigError(str(error)) from None


def _check_and_declare(server_args: Any) -> None:
    from sglang.srt.arg_groups.overrides import declare_resolution, resolving_view

    problem = version_problem()
    if problem:
        raise UnsupportedSetup(problem)
    # A wrong SGL_SPARSEKV_CONFIG stops Engine here, before any process.
    options = options_of(server_args)
    assert options is not None
    config = resolving_view(server_args)
    options = device_of(options, str(config.device or "cpu"))
    carry(server_args, options)
    _check_flags(config)
    if config.tokenizer_worker_num > 1:
        os.environ.setdefault(*WORKER_APPLICATION)
    if config.page_size is None:
        declare_resolution(server_args, BACKEND_SOURCE, page_size=DEFAULT_PAGE_SIZE)
    else:
        named = server_args.page_size is not None
        check_page_size(config.page_size, options.request.unit_size, named)
    check_chunks(config.chunked_prefill_size, config.page_size or DEFAULT_PAGE_SIZE)
    if options.device not in FUSED_DEVICES:
        _disable_graphs(server_args, config, f"device {options.device} plans on the host")
    elif options.trace:
        _disable_graphs(server_args, config, "the trace looks at every layer")


def _disable_graphs(server_args: Any, config: Any, why: str) -> None:
    """Run every step without CUDA graphs."""
    from sglang.srt.arg_groups.overrides import declare_resolution
    from sglang.srt.model_executor.cuda_graph_config import Backend, Phase, with_phase

    graphs = config.cuda_graph_config
    if graphs is None:
        return
    if config.device != "cpu":
        logger.info("sparsekv: CUDA graphs are off: %s", why)
    for phase in (Phase.DECODE, Phase.PREFILL):
        graphs = with_phase(graphs, phase, backend=Backend.DISABLED)
    declare_resolution(server_args, BACKEND_SOURCE, cuda_graph_config=graphs)
