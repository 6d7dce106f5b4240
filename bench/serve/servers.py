"""Flags of the servers: the same for all but for what is listed, and why."""

import json
from collections.abc import Sequence

from bench.serve.grid import FULL, OURS, PAGE_SIZE, QUESTION, Grid
from bench.serve.model import Model
from sgl_sparsekv.tooling.room import room
from sgl_sparsekv.tooling.servers import ServerSpec


def specs(grid: Grid, model: Model, extra: Sequence[str] = ()) -> dict[str, ServerSpec]:
    """One server per peer and ours, by name.

    Args:
        grid: says how long prompts are and how many come at once.
        model: what is served.
        extra: flags that all servers get.
    """
    shared = (*_shared(grid, model), *extra)
    methods = ("--sparsekv-methods", ",".join((FULL, *grid.methods)))
    return {
        name: ServerSpec(
            name,
            (*shared, "--attention-backend", name, *(methods if name == OURS else ())),
        )
        for name in grid.servers
    }


def differences(found: dict[str, ServerSpec]) -> list[str]:
    """One sentence per server: its flags that not every server has."""
    flags = {name: _with_values(spec.flags) for name, spec in found.items()}
    return [
        f"{name}: {' '.join(flag for flag in mine if any(flag not in f for f in flags.values()))}"
        for name, mine in flags.items()
    ]


def _with_values(flags: Sequence[str]) -> list[str]:
    """Each flag with what belongs to it."""
    found: list[str] = []
    for word in flags:
        if word.startswith("--") or not found:
            found.append(word)
        else:
            found[-1] += f" {word}"
    return found


def sampling(options: dict[str, object] | None, tokens: int) -> str:
    """`--extra-request-body` of `sglang.benchmark.serving`.

    The tool puts this dictionary over its own request, key by key: whole sampling parameters take
    the place of whole sampling parameters, so those that it would send are repeated.
    """
    found: dict[str, object] = {"temperature": 0.0, "max_new_tokens": tokens, "ignore_eos": True}
    if options is not None:
        found["custom_params"] = {"sparsekv": options}
    return json.dumps({"sampling_params": found})


def _shared(grid: Grid, model: Model) -> tuple[str, ...]:
    flags = [
        *("--model-path", str(model.folder), "--tokenizer-path", str(model.tokenizer)),
        *(*model.flags, "--device", grid.device),
        *("--dtype", "bfloat16", "--page-size", str(PAGE_SIZE), "--random-seed", "0"),
        *("--max-running-requests", str(max(4, *grid.concurrency))),
        # A long prefill can take longer than the five minutes after which SGLang ends itself.
        *("--watchdog-timeout", "7200"),
    ]
    if grid.device != "cpu":
        return tuple(flags)
    prompt = grid.longest + PAGE_SIZE
    answers = max(grid.concurrency) * (QUESTION + grid.tokens + 3 * PAGE_SIZE)
    # Prompts of one context, and the prefix of the load points, with what is asked about it.
    held = grid.requests * prompt + sum(grid.load_contexts) + 2 * answers
    return (
        *flags,
        *room(prompt + grid.tokens, held, PAGE_SIZE),
        # One chunk: `torch_native` computes the attention of a chunk's whole prefix anew.
        *("--chunked-prefill-size", str(prompt), "--max-prefill-tokens", str(prompt)),
        # Left to itself SGLang sets most of the memory aside for a chunk of this size.
        *("--mem-fraction-static", "0.6", "--sleep-on-idle"),
    )
