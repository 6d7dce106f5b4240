"""The server that an evaluation starts when it is given a model and no address."""

import json
from pathlib import Path

from ..demo.servers import ServerSpec
from ..geometry import ceil_div
from .settings import Settings

PAGE_SIZE = 64
POOL_SPARE = 4096


def server_spec(folder: Path, settings: Settings) -> ServerSpec:
    """SGLang with our backend, room for one document of the longest length and its questions.

    Args:
        folder: of the model.
        settings: say which methods are asked for, and whether questions are fed in decode.
    """
    import torch

    longest = max(settings.lengths)
    pool = ceil_div(longest + POOL_SPARE, PAGE_SIZE) * PAGE_SIZE
    flags = [
        *("--model-path", str(folder), "--attention-backend", "sparsekv"),
        *("--sparsekv-methods", ",".join(settings.methods)),
        *("--sparsekv-method", settings.methods[0]),
        *("--page-size", str(PAGE_SIZE), "--context-length", str(longest)),
        *("--max-total-tokens", str(pool), "--max-running-requests", "8"),
        # A long prefill can take long on few cores; SGLang would end itself after 300 s.
        *("--watchdog-timeout", "1800"),
    ]
    if settings.protocol == "decoded":
        flags.append("--enable-custom-logit-processor")
    if not torch.cuda.is_available():
        # Left to itself SGLang sets most of the memory aside for a prefill chunk.
        flags += ["--device", "cpu", "--mem-fraction-static", "0.6", "--sleep-on-idle"]
    return ServerSpec("sparsekv", tuple(flags))


def longest_context(folder: Path) -> int | None:
    """Positions of a model, in tokens; None if its `config.json` does not say."""
    config = json.loads((folder / "config.json").read_text())
    found = config.get("text_config", config).get("max_position_embeddings")
    return found if isinstance(found, int) else None
