"""On a CPU, what the user did not name: values that leave the machine usable.

SGLang's own defaults are those of a machine that only serves: an idle scheduler polls on a core of
its own, the cache takes what memory there is, and each rank needs a NUMA node.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psutil

from ..config import FUSED_DEVICES, ServerOptions, parse_server_options
from ..selection import view_names

MAX_RUNNING_REQUESTS = 256
"""SGLang's own thousands each reserve a row as long as the context."""
MAX_TOTAL_TOKENS = 262_144
"""Of a cache that nobody sized: more than a CPU prefills in an hour. Half of the free memory would
hold millions of a small model's."""
METHOD = "residual_pq"
"""Nearest to dense attention of all methods at equal bytes; it has no GPU kernels yet."""
CORES_OF_RANKS = "SGLANG_CPU_OMP_THREADS_BIND"
PATIENCE = ("SGLANG_UVICORN_WORKER_HEALTHCHECK_TIMEOUT", "120")
"""Seconds: a tokenizer process that imports for longer is ended and begun anew, without end.
Ten, as SGLang has it, are too few on a busy machine."""


def with_cpu_method(named: Mapping[str, Any]) -> ServerOptions:
    """Options with the methods that a CPU serves, where the user named none.

    Args:
        named: flat values of the options that the user gave.

    Raises:
        ConfigError: one of them is wrong.
    """
    options = parse_server_options(named)
    if options.device in FUSED_DEVICES:
        return options
    served = dict(named)
    if "methods" not in named:
        served["methods"] = [*options.methods, *view_names()]
    if "method" not in named and ("methods" not in named or METHOD in options.methods):
        served["method"] = METHOD
    return parse_server_options(served)


def cpu_defaults(config: Any) -> dict[str, Any]:
    """Server arguments to set on a CPU.

    Args:
        config: SGLang's arguments as resolved so far.
    """
    ranks = config.tp_size * config.pp_size * config.dp_size
    found: dict[str, Any] = {"sleep_on_idle": True}
    if config.mem_fraction_static is None:
        found["mem_fraction_static"] = memory_share(config.model_path, ranks)
        if config.max_total_tokens is None:
            found["max_total_tokens"] = max(MAX_TOTAL_TOKENS, config.context_length or 0)
    if config.max_running_requests is None:
        found["max_running_requests"] = MAX_RUNNING_REQUESTS
    return found


def set_cpu_environment(config: Any) -> None:
    """The same in the environment, where SGLang and torch look for it in each rank."""
    # Huge pages for torch's buffers, read at its first allocation: a core reads the cache a
    # quarter faster.
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    if config.tokenizer_worker_num > 1:
        os.environ.setdefault(*PATIENCE)
    ranks = config.tp_size * config.pp_size * config.dp_size
    if ranks > 1:
        os.environ.setdefault(CORES_OF_RANKS, cores_of_ranks(ranks))


def memory_share(model_path: str, ranks: int = 1) -> float:
    """Share of the free memory that each rank takes for weights and cache.

    Together they take the weights and half of what these leave. The weights of a model that is not
    in a folder yet count as nothing.
    """
    weights = sum(file.stat().st_size for file in Path(model_path).glob("*.safetensors"))
    free: int = psutil.virtual_memory().available
    return round(min(0.9, 0.5 + 0.5 * weights / free) / ranks, 3)


def cores_of_ranks(ranks: int) -> str:
    """The machine's cores dealt out to ranks, as SGLang writes them: `0,1|2,3`."""
    cores = sorted(os.sched_getaffinity(0))
    each = max(1, len(cores) // ranks)
    dealt = [[cores[(rank * each + i) % len(cores)] for i in range(each)] for rank in range(ranks)]
    return "|".join(",".join(map(str, some)) for some in dealt)
