"""Server options on SGLang's command line, in a file, and in the environment.

Precedence: flag, then `--sparsekv-config FILE`, then `SGL_SPARSEKV_CONFIG`, then the default; that
of the method follows the device. What was named travels to the other processes as a plain
attribute of SGLang's `ServerArgs`.
"""

import argparse
import sys
from collections.abc import Callable
from typing import Any, NoReturn

from ..config import (
    INDEX_FIELDS,
    REQUEST_FIELDS,
    SERVER_FIELDS,
    ServerOptions,
    parse_server_options,
)
from ..config_file import read_config_file, read_env_config
from ..errors import ConfigError, SparseKVError
from ..host import BACKEND_NAME
from .cpu_defaults import with_cpu_method
from .gpu_defaults import with_gpu_unit

ATTRIBUTE = "_sparsekv"
YES_OR_NO = (
    "estimate",
    "kept_map",
    "telemetry",
    "share_generated",
    "pack_views",
    "admit_packed",
    "measure",
    "serve_coverage",
    "validate_requests",
)
_HELP = {
    "method": "selection method of requests that name none",
    "budget": "tokens kept per KV head in decode, or a share of the context such as 0.05",
    "sink": "first tokens that are always kept",
    "window": "newest tokens that are always kept",
    "coverage": "share of attention that is read, such as 0.95; the budget is a ceiling then",
    "budget_split": "whose the budget is: even (each KV head's) or heads (a mean over a layer's)",
    "dense_layers": "first layers that read the whole cache",
    "reselect_every": "decode steps for which a selection is used",
    "estimate": "answer for what is not read by clusters and codes: true or false",
    "observation_window": "last queries by which a view is made (snapkv and its kin)",
    "pooling": "tokens over which they spread a score: odd, 1 for not at all",
    "renew_every": "tokens of an answer after which a view is made anew, 0 for never",
    "pyramid_beta": "how steeply pyramidkv's budget falls over the layers",
    "head_floor": "part of its even share that each KV head keeps in adakv",
    "kept_map": "tell in every response which tokens a view keeps: true or false",
    "telemetry": "measure what decode covers and costs, in every response: true or false",
    "share_generated": "offer what sparse decode generated to the radix cache: true or false",
    "methods": "comma-separated methods that requests may choose",
    "reduction": "how query heads of a KV head share a selection: max_softmax, mean_softmax or max",
    "unit_size": "tokens per unit that is scored and read as one: 16, 32 or 64",
    "cluster_segment": "tokens that clusterkv clusters together, a multiple of 64",
    "tokens_per_centroid": "mean size of clusterkv's clusters",
    "pq_segment": "tokens that share a codebook in pqcache, a multiple of 64",
    "pq_subspaces": "sub-vectors of a key in pqcache: 1, 2, 4, 8 or 16",
    "pq_bits": "bits of a sub-vector's code in pqcache: 1 to 8",
    "residual_segment": "tokens that share clusters and codes in residual_pq, a multiple of 64",
    "residual_subspaces": "sub-vectors of what is left of a key there: 1, 2, 4, 8 or 16",
    "device": "kernels: auto, cpu, reference or triton",
    "attend": "on a GPU, what reads the selection: triton, fa2, fa3 or xqa",
    "dense_below": "on a GPU, run SGLang's dense decode where fewer tokens than this are saved",
    "pack_views": "where KV memory is short, give back what views do not read: true or false",
    "admit_packed": "admit requests counting on that: true or false",
    "check": "compare sampled page metadata with the keys: off, log or raise",
    "check_interval": "decode steps between two checks",
    "serve_coverage": "on a GPU, serve requests that ask for a coverage: true or false",
    "measure": "on a GPU, capture graphs that measure what telemetry tells: true or false",
    "validate_requests": "answer 400 to what would end SGLang: true or false",
    "trace": "ZMQ endpoint to publish selections on, e.g. tcp://127.0.0.1:5560",
}


def add_flags(result: object, parser: argparse.ArgumentParser) -> None:
    """After `ServerArgs.add_cli_args`: add `--sparsekv-*`."""
    group = parser.add_argument_group("sparsekv (with --attention-backend sparsekv)")
    for name in (*REQUEST_FIELDS, *SERVER_FIELDS):
        group.add_argument(_flag(name), dest=_dest(name), default=None, help=_HELP[name])
    group.add_argument(
        "--sparsekv-config", default=None, metavar="FILE", help="JSON or YAML file of the same"
    )


def read_flags(original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Around `ServerArgs.from_cli_args`: a wrong option ends the process with one line, exit 2."""
    namespace: argparse.Namespace = args[-1] if args else kwargs["args"]
    try:
        values = _flag_values(namespace)
        named = _merge(values, getattr(namespace, "sparsekv_config", None))
        parse_server_options(named)
        server_args = original(*args, **kwargs)
        if not is_chosen(server_args):
            if values:
                first = _flag(next(iter(values)))
                raise ConfigError(f"{first} needs --attention-backend {BACKEND_NAME}")
            return server_args
    except SparseKVError as error:
        exit_with(str(error))
    setattr(server_args, ATTRIBUTE, named)
    return server_args


def from_command_line(server_args: Any) -> bool:
    """Whether a command line made the arguments, and no program that catches errors."""
    return hasattr(server_args, ATTRIBUTE)


def options_of(server_args: Any) -> ServerOptions | None:
    """Options of a server, or None when the sparsekv backend was not chosen.

    Raises:
        ConfigError: `SGL_SPARSEKV_CONFIG` is wrong.
    """
    if not is_chosen(server_args):
        return None
    from sglang.srt.arg_groups.overrides import resolved_view

    carried = getattr(server_args, ATTRIBUTE, None)
    named = carried if carried is not None else read_env_config()
    config = resolved_view(server_args)
    device = getattr(config, "device", None)
    if device == "cpu":
        return with_cpu_method(named)
    if device == "cuda":
        return with_gpu_unit(named, getattr(config, "page_size", None))
    return parse_server_options(named)


def carry(server_args: Any, options: ServerOptions) -> None:
    """Replace the options that a command line gave, which travel to the other processes."""
    if hasattr(server_args, ATTRIBUTE):
        setattr(server_args, ATTRIBUTE, options.as_dict())


def is_chosen(server_args: Any) -> bool:
    """Whether any attention phase of the server runs on our backend, as resolved so far."""
    from sglang.srt.arg_groups.overrides import attention_backends_of, resolved_view

    return BACKEND_NAME in attention_backends_of(resolved_view(server_args))


def _merge(flags: dict[str, Any], path: str | None) -> dict[str, Any]:
    values = read_env_config()
    if path:
        values |= read_config_file(path)
    return values | flags


def _flag_values(namespace: argparse.Namespace) -> dict[str, Any]:
    named = {name: getattr(namespace, _dest(name), None) for name in _HELP}
    return {name: _typed(name, text) for name, text in named.items() if text is not None}


def _typed(name: str, text: str) -> Any:
    """A flag's text as JSON would hold it; what does not parse is left for the rules to refuse."""
    if name in (
        "budget",
        "coverage",
        "sink",
        "window",
        "dense_layers",
        "reselect_every",
        "check_interval",
        "unit_size",
        "dense_below",
        *INDEX_FIELDS,
    ):
        for parse in (int, float):
            try:
                return parse(text)
            except ValueError:
                continue
    if name in YES_OR_NO and text.lower() in ("true", "false"):
        return text.lower() == "true"
    return text


def _flag(name: str) -> str:
    return "--sparsekv-" + name.replace("_", "-")


def _dest(name: str) -> str:
    return "sparsekv_" + name


def exit_with(words: str | None, status: int = 2) -> NoReturn:
    """End the process with one line, or without one where it has been said."""
    if words is not None:
        print(f"sparsekv: error: {words}", file=sys.stderr, flush=True)
    raise SystemExit(status)
