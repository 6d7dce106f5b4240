"""One streamed generation over HTTP, with the time at which each token arrived."""

import json
import threading
import time
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

TIMEOUT_SECONDS = 3600


@dataclass(frozen=True)
class Generation:
    """What one request took.

    Attributes:
        cached_tokens: tokens of the prompt that were in the radix cache.
        first_s: seconds until the first token: prefill.
        arrivals: seconds since the request, and tokens there by then; the first token first.
        report: the server's `sparsekv` echo, if it has one.
    """

    cached_tokens: int
    first_s: float
    arrivals: tuple[tuple[float, int], ...]
    report: dict[str, Any] | None

    @classmethod
    def of(cls, found: dict[str, Any]) -> "Generation":
        """From what JSON made of one."""
        return cls(**{**found, "arrivals": tuple(map(tuple, found["arrivals"]))})

    @property
    def decode_steps(self) -> int:
        """Decode steps after the first token."""
        return self.arrivals[-1][1] - self.arrivals[0][1]

    @property
    def decode_s(self) -> float:
        """Seconds these steps took."""
        return self.arrivals[-1][0] - self.arrivals[0][0]

    @property
    def tokens_per_s(self) -> float:
        """Of decode."""
        return self.decode_steps / self.decode_s

    @property
    def step_ms(self) -> list[float]:
        """Milliseconds between arrivals."""
        times = [at for at, _ in self.arrivals]
        return [1000 * (b - a) for a, b in pairwise(times)]


def generate(
    url: str, ids: Sequence[int], tokens: int, options: dict[str, Any] | None = None
) -> Generation:
    """Ask for exactly `tokens` tokens.

    Args:
        url: the server.
        ids: the prompt.
        tokens: how many to generate.
        options: request options of the sparsekv backend.

    Raises:
        RuntimeError: the server ended the answer before that.
    """
    sampling: dict[str, Any] = {"max_new_tokens": tokens, "temperature": 0, "ignore_eos": True}
    if options is not None:
        sampling["custom_params"] = {"sparsekv": options}
    body = json.dumps({"input_ids": list(ids), "sampling_params": sampling, "stream": True})
    request = urllib.request.Request(
        f"{url}/generate", body.encode(), {"Content-Type": "application/json"}
    )
    start, arrivals, meta = time.perf_counter(), [], dict[str, Any]()
    with urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS) as answer:
        for line in answer:
            if line.startswith(b"data: {"):
                event = json.loads(line[6:])
                if "error" in event:
                    raise RuntimeError(f"{url} answered {event['error']}")
                meta = event["meta_info"]
                arrivals.append((time.perf_counter() - start, int(meta["completion_tokens"])))
    if len(arrivals) < min(tokens, 2) or arrivals[-1][1] < tokens:
        raise RuntimeError(f"{url} ended after {len(arrivals)} tokens: {meta}")
    return Generation(
        int(meta["cached_tokens"]), arrivals[0][0], tuple(arrivals), meta.get("sparsekv")
    )


def generate_together(
    url: str, prompts: Sequence[Sequence[int]], tokens: int, options: dict[str, Any] | None
) -> float:
    """Decode tokens/s of several requests at once, first tokens excluded."""
    start = time.perf_counter()
    found: list[tuple[float, Generation]] = []

    def one(ids: Sequence[int]) -> None:
        offset = time.perf_counter() - start
        found.append((offset, generate(url, ids, tokens, options)))

    threads = [threading.Thread(target=one, args=(ids,)) for ids in prompts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if len(found) < len(prompts):
        raise RuntimeError(f"{url} answered {len(found)} of {len(prompts)} requests")
    first = min(offset + g.arrivals[0][0] for offset, g in found)
    last = max(offset + g.arrivals[-1][0] for offset, g in found)
    return sum(g.decode_steps for _, g in found) / (last - first)
