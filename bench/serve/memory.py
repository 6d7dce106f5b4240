"""KV memory is short: long answers behind long prompts, with and without views that give back.

    python -m bench.serve.memory --json FILE

One server whose pool holds a few of the prompts. Each way of reading gets prompts of its own, all
requests at once: `full` reads and holds everything, the others keep views whose rows are packed.
The first of them are asked again when the server is idle, where nothing is packed: answers must be
the same. Exit status 1 if one is not, or a way that is judged is below the target.
"""

import argparse
import json
import random
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bench.serve.client import TIMEOUT_SECONDS
from bench.serve.model import write_model
from sgl_sparsekv.geometry import ceil_div
from sgl_sparsekv.tooling.environment import environment
from sgl_sparsekv.tooling.progress import Progress
from sgl_sparsekv.tooling.servers import ServerSpec, serve

PAGE_SIZE = 64
TARGET = 1.5
ASKED_AGAIN = 4


@dataclass(frozen=True)
class Way:
    """How requests read.

    Attributes:
        name: what it is called.
        options: of each request.
        judged: whether it must reach the target.
    """

    name: str
    options: dict[str, Any]
    judged: bool = True


@dataclass(frozen=True)
class Answer:
    """One answer.

    Attributes:
        first_s: seconds from the start of the wave to its first token.
        last_s: to its last.
        ids: tokens.
        freed: tokens of its row that were given back.
    """

    first_s: float
    last_s: float
    ids: tuple[int, ...]
    freed: int


@dataclass(frozen=True)
class Row:
    """One way of reading, all requests at once.

    Attributes:
        name: see `Way`.
        judged: likewise.
        seconds: from the first request to the last token, prefill included.
        tokens_per_s: generated tokens over these.
        at_once: most requests that were answering at a time.
        freed: tokens that were given back, over all requests.
        retracted: requests that SGLang retracted.
        same: of the requests that were asked again, those with the same answer.
        ratio: tokens_per_s over that of the first way.
    """

    name: str
    judged: bool
    seconds: float
    tokens_per_s: float
    at_once: int
    freed: int
    retracted: int
    same: int
    ratio: float


def ways(args: argparse.Namespace) -> tuple[Way, ...]:
    """What is compared; the first holds everything."""
    view = {"budget": args.budget, "dense_layers": 0, "renew_every": args.renew_every}
    return (
        Way("full", {"method": "full"}, judged=False),
        Way("snapkv", {"method": "snapkv", **view}),
        Way("snapkv, once", {"method": "snapkv", **view, "renew_every": 0}),
        Way("kvcompress", {"method": "kvcompress", **view}, judged=False),
    )


def ask(url: str, ids: Sequence[int], tokens: int, options: dict[str, Any]) -> Answer:
    """One streamed answer of exactly `tokens` tokens; seconds are those of `perf_counter`.

    Raises:
        RuntimeError: the server refused it or ended it before that.
    """
    sampling = {"max_new_tokens": tokens, "temperature": 0, "ignore_eos": True}
    sampling["custom_params"] = {"sparsekv": options}
    body = json.dumps({"input_ids": list(ids), "sampling_params": sampling, "stream": True})
    head = {"Content-Type": "application/json"}
    request = urllib.request.Request(f"{url}/generate", body.encode(), head)
    first, event = 0.0, dict[str, Any]()
    with urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS) as answer:
        for line in answer:
            if line.startswith(b"data: {"):
                event = json.loads(line[6:])
                first = first or time.perf_counter()
    if len(event.get("output_ids", ())) != tokens:
        raise RuntimeError(f"{url} ended an answer: {str(event)[:200]}")
    freed = event["meta_info"]["sparsekv"]["tokens_freed"]
    return Answer(first, time.perf_counter(), tuple(event["output_ids"]), freed)


def ask_together(
    url: str, prompts: Sequence[Sequence[int]], tokens: int, options: dict[str, Any]
) -> list[Answer]:
    """All of them at once; seconds from the start.

    Raises:
        RuntimeError: one was not answered.
    """
    start, found = time.perf_counter(), dict[int, Answer]()

    def one(number: int) -> None:
        found[number] = ask(url, prompts[number], tokens, options)

    threads = [threading.Thread(target=one, args=(i,)) for i in range(len(prompts))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if len(found) < len(prompts):
        raise RuntimeError(f"{url} answered {len(found)} of {len(prompts)} requests")
    answers = [found[i] for i in range(len(prompts))]
    return [Answer(a.first_s - start, a.last_s - start, a.ids, a.freed) for a in answers]


def at_once(answers: Sequence[Answer]) -> int:
    """Most requests between their first and their last token at a time."""
    edges = [(a.first_s, 1) for a in answers] + [(a.last_s, -1) for a in answers]
    there = most = 0
    for _, change in sorted(edges):
        there += change
        most = max(most, there)
    return most


def retracted(url: str) -> int:
    """Requests that a server retracted so far."""
    with urllib.request.urlopen(f"{url}/metrics", timeout=60) as answer:
        lines = answer.read().decode().splitlines()
    name = "sglang:num_retracted_requests_total"
    return int(sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(name)))


def flush(url: str) -> None:
    """Empty the cache.

    Raises:
        OSError: it cannot be, as something is held still.
    """
    request = urllib.request.Request(f"{url}/flush_cache?timeout=60", b"")
    with urllib.request.urlopen(request, timeout=90):
        pass


def measure(args: argparse.Namespace, progress: Progress) -> list[Row]:
    """Every way in turn on one server."""
    folder = Path(tempfile.mkdtemp(prefix="bench-memory-"))
    progress.say(f"logs are in {folder}")
    spec = ServerSpec("server", server_flags(folder, args))
    rows: list[Row] = []
    with serve([spec], folder, progress) as servers:
        url = servers["server"].url
        for number, way in enumerate(ways(args)):
            draw = random.Random(args.seed + number)
            prompts = [draw.choices(range(1000), k=args.prompt) for _ in range(args.requests)]
            before = retracted(url)
            answers = ask_together(url, prompts, args.tokens, way.options)
            lost = retracted(url) - before
            flush(url)
            again = [ask(url, prompt, args.tokens, way.options) for prompt in prompts[:ASKED_AGAIN]]
            flush(url)
            same = sum(a.ids == b.ids for a, b in zip(answers, again, strict=False))
            seconds = max(a.last_s for a in answers)
            rate = args.requests * args.tokens / seconds
            freed = sum(a.freed for a in answers)
            ratio = rate / (rows[0].tokens_per_s if rows else rate)
            rows.append(
                Row(way.name, way.judged, seconds, rate, at_once(answers), freed, lost, same, ratio)
            )
            progress.say(table(rows[-1:]))
    return rows


def server_flags(folder: Path, args: argparse.Namespace) -> tuple[str, ...]:
    """The pool holds `pool` prompts, and no page more."""
    model = write_model(folder / "m", args.layers)
    context = args.prompt + args.tokens + PAGE_SIZE
    held = args.pool * ceil_div(args.prompt, PAGE_SIZE) * PAGE_SIZE
    return (
        *("--model-path", str(model.folder), "--tokenizer-path", str(model.tokenizer)),
        *model.flags,
        *("--attention-backend", "sparsekv", "--dtype", args.dtype, "--page-size", str(PAGE_SIZE)),
        *("--context-length", str(context), "--max-total-tokens", str(held)),
        *("--max-running-requests", str(args.requests), "--enable-metrics", "--sleep-on-idle"),
        *("--chunked-prefill-size", "2048", "--watchdog-timeout", "7200"),
        *("--sparsekv-admit-packed", "true"),
    )


def table(rows: Sequence[Row]) -> str:
    """For a reader."""
    head = (
        f"{'':14s}{'seconds':>9s}{'tokens/s':>10s}{'ratio':>8s}{'at once':>9s}{'freed':>9s}"
        f"{'retracted':>11s}{'same':>6s}"
    )
    lines = [head, "-" * len(head)]
    for row in rows:
        lines.append(
            f"{row.name:14s}{row.seconds:>9.1f}{row.tokens_per_s:>10.1f}{row.ratio:>7.2f}x"
            f"{row.at_once:>9d}{row.freed:>9,}{row.retracted:>11d}{row.same:>4d}/{ASKED_AGAIN}"
        )
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> int:
    """Measure, print, write; 0 if answers are the same and the target is reached."""
    args = _arguments(argv)
    if args.json and args.json.exists():
        print(f"bench.serve.memory: {args.json} is there already", file=sys.stderr)
        return 2
    rows = measure(args, Progress())
    print(table(rows))
    passed = all(
        row.same == ASKED_AGAIN and row.ratio >= TARGET and row.at_once > rows[0].at_once
        for row in rows
        if row.judged
    )
    if args.json:
        asked = {key: value for key, value in vars(args).items() if key != "json"}
        result = {"bench": "memory", "passed": passed, "target": TARGET, "asked": asked}
        result |= {"rows": [asdict(row) for row in rows], "environment": environment()}
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps(result, indent=1))
    return 0 if passed else 1


def _arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="bench.serve.memory", description=__doc__)
    parser.add_argument("--json", type=Path, help="where to write the result; must not exist")
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--prompt", type=int, default=4096, help="tokens of a prompt")
    parser.add_argument("--pool", type=int, default=8, help="prompts that the pool holds")
    parser.add_argument("--requests", type=int, default=32)
    parser.add_argument("--tokens", type=int, default=1024, help="tokens of an answer")
    parser.add_argument("--budget", type=int, default=512)
    parser.add_argument("--renew-every", type=int, default=128)
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args(argv)


if __name__ == "__main__":
    raise SystemExit(main())
