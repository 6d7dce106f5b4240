"""The server that an evaluation starts when it is given a model and no address."""

from pathlib import Path

from ..tooling.room import room
from ..tooling.servers import ServerSpec
from .settings import Settings
from .tasks.base import Task

PAGE_SIZE = 64
POOL_SPARE = 4096
"""Tokens beside the document, of each question that is asked at the same time."""


def server_spec(folder: Path, settings: Settings, task: Task) -> ServerSpec:
    """SGLang with our backend, room for a document of the longest length and its questions.

    Args:
        folder: of the model.
        settings: say which methods are asked for.
        task: says how long its prompts are, and whether tokens are fed in decode.
    """
    import torch

    documents = settings.concurrency if task.apart else 1
    held = task.longest * documents + POOL_SPARE * settings.concurrency
    flags = [
        *("--model-path", str(folder), "--attention-backend", "sparsekv"),
        *("--sparsekv-methods", ",".join(settings.methods)),
        *("--sparsekv-method", settings.methods[0]),
        *("--page-size", str(PAGE_SIZE), *room(task.longest, held, PAGE_SIZE)),
        *("--max-running-requests", str(max(8, settings.concurrency))),
        # A long prefill can take long on few cores; SGLang would end itself after 300 s.
        *("--watchdog-timeout", "1800"),
    ]
    if task.forces:
        flags.append("--enable-custom-logit-processor")
    if not torch.cuda.is_available():
        # Left to itself SGLang sets most of the memory aside for a prefill chunk.
        flags += ["--device", "cpu", "--mem-fraction-static", "0.6", "--sleep-on-idle"]
    return ServerSpec("sparsekv", tuple(flags))
