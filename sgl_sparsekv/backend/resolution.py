"""While SGLang resolves its flags: our page size, no graphs yet, and what we refuse."""

import logging
import os
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from ..config import DEFAULT_PAGE_SIZE, FUSED_DEVICES, ServerOptions, check_chunks, check_page_size
from ..errors import ConfigError, UnsupportedSetup
from ..host import version_problem
from .cpu_defaults import cpu_defaults, set_cpu_environment
from .flag_refusals import check_flags
from .flags import carry, is_chosen, options_of
from .kv_pool import segments
from .model_refusals import check_model

logger = logging.getLogger(__name__)

BACKEND_SOURCE = "sgl_sparsekv"
WORKER_APPLICATION = ("SGLANG_HTTP_SERVER_APP_PATH", "sgl_sparsekv.serving.worker:app")
"""What extra tokenizer processes import, in place of an application without our hooks."""


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
    check_flags(config)
    check_model(model_config_of(server_args), config)
    if config.device == "cpu":
        set_cpu_environment(config)
        declare_resolution(server_args, BACKEND_SOURCE, **cpu_defaults(config))


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


def _check_head_size(options: ServerOptions, model: Any) -> None:
    """Refuse segment records that the model's keys cannot be cut into.

    Raises:
        UnsupportedSetup: names what they hold.
    """
    for summary in segments(options):
        try:
            summary.shapes(model.head_dim, model.v_head_dim)
        except ValueError as error:
            raise UnsupportedSetup(
                f"records of {summary.name} cannot be kept for this model: {error}; name another "
                "--sparsekv-method"
            ) from None


def _check_and_declare(server_args: Any) -> None:
    from sglang.srt.arg_groups.model_override_base import model_config_of
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
    check_flags(config)
    if config.tokenizer_worker_num > 1:
        os.environ.setdefault(*WORKER_APPLICATION)
    if config.page_size is None:
        declare_resolution(server_args, BACKEND_SOURCE, page_size=DEFAULT_PAGE_SIZE)
    else:
        named = server_args.page_size is not None
        check_page_size(config.page_size, options.request.unit_size, named)
    _check_head_size(options, model_config_of(server_args))
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
