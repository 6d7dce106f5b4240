"""Whole servers: ours and SGLang's dense one answer the same questions."""

import json
import random
import tempfile
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import entry_points
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from bench.gpu.gate import check
from bench.gpu.kernels import Run
from bench.gpu.log import Skip
from sgl_sparsekv.tooling.progress import Progress
from sgl_sparsekv.tooling.servers import ServerSpec, serve

COMMON = (
    *("--dtype", "bfloat16", "--page-size", "64", "--random-seed", "0"),
    *("--max-total-tokens", "131072", "--mem-fraction-static", "0.3"),
    *(
        "--chunked-prefill-size",
        "2048",
        "--cuda-graph-max-bs-decode",
        "8",
        "--max-running-requests",
        "32",
    ),
)
DENSE = ("--attention-backend", "flashinfer")
SPARSE = (
    *("--attention-backend", "sparsekv", "--sparsekv-dense-below", "0"),
    *("--sparsekv-check", "raise", "--sparsekv-check-interval", "5"),
)
EVERYTHING = {"method": "quest", "budget": 1.0}
NARROW = {"method": "quest", "budget": 512}
LENGTHS = (300, 2048, 8192, 32_000)
TIE = 0.05
"""Nats that two servers' probabilities may differ by: a few roundings of 16-bit activations."""


def installed() -> None:
    """SGLang is there, and loads our plugin.

    Raises:
        Skip: it is not, or does not.
    """
    if find_spec("sglang") is None:
        raise Skip("sglang is not installed")
    names = {point.name for point in entry_points(group="sglang.srt.plugins")}
    if "sparsekv" not in names:
        raise Skip("sgl_sparsekv is not installed: its entry points are missing")


def answers(run: Run) -> None:
    """Start both servers once and ask."""
    run.log.attempt("servers", lambda: compare_servers(run))


def compare_servers(run: Run) -> str:
    """Answers of both servers; each comparison is an entry of its own.

    Raises:
        ServerFailed: one did not start.
    """
    from sgl_sparsekv.models.analytic import save_analytic

    installed()
    folder = Path(tempfile.mkdtemp(prefix="bench-gpu-"))
    save_analytic(folder / "model")
    flags = ("--model-path", str(folder / "model"), *COMMON)
    dense, sparse = ServerSpec("dense", (*flags, *DENSE)), ServerSpec("ours", (*flags, *SPARSE))
    with serve([dense, sparse], folder, Progress(), timeout=400) as running:
        urls = running["dense"].url, running["ours"].url
        run.log.attempt("documents, budget of the context", lambda: documents(*urls, EVERYTHING))
        run.log.attempt("documents, budget 512", lambda: documents(*urls, NARROW))
        run.log.attempt(
            "the same once more, from the radix cache", lambda: documents(*urls, NARROW)
        )
        run.log.attempt("random prompts, budget of the context", lambda: random_prompts(*urls))
    return f"logs in {folder}"


def documents(dense: str, ours: str, options: dict[str, Any]) -> str:
    """Chains of facts: the same tokens, and the right ones.

    Raises:
        AssertionError: tokens differ, or an answer is wrong.
    """
    from sgl_sparsekv.models.documents import chain_document

    asked, expected = [], []
    for length in LENGTHS:
        document = chain_document(length, num_questions=4, num_hops=8, seed=length)
        for question in document.questions:
            asked.append({"text": document.prompt(question)})
            expected.append(question)
    tokens = len(expected[0].answer_tokens)
    want, got = ask_all(dense, asked, tokens, None), ask_all(ours, asked, tokens, options)
    wrong = [q.answer for q, a in zip(expected, got, strict=True) if a["text"].strip() != q.answer]
    check(not wrong, f"{len(wrong)} of {len(asked)} answers are wrong")
    return same_tokens(want, got)


def random_prompts(dense: str, ours: str) -> str:
    """Prompts of random tokens, 32 new ones each: the same until the dense server wavers.

    Raises:
        AssertionError: tokens or their probabilities differ before that.
    """
    rng = random.Random(0)
    lengths = [rng.randrange(20, 6000) for _ in range(24)]
    asked = [
        {"input_ids": rng.choices(range(10, 1000), k=n), "return_logprob": True,
         "top_logprobs_num": 2}
        for n in lengths
    ]  # fmt: skip
    return same_until_a_tie(ask_all(dense, asked, 32, None), ask_all(ours, asked, 32, EVERYTHING))


def same_until_a_tie(want: list[dict[str, Any]], got: list[dict[str, Any]]) -> str:
    """Compare up to where an answer's two best tokens are nearer than roundings allow to tell.

    Raises:
        AssertionError: says at which token of which answer they differ, and by how much.
    """
    tokens, ties = 0, 0
    for i, (a, b) in enumerate(zip(want, got, strict=True)):
        dense, ours = (one["meta_info"]["output_token_logprobs"] for one in (a, b))
        best = a["meta_info"]["output_top_logprobs"]
        for at, ((log, token, *_), (other, chosen, *_)) in enumerate(zip(dense, ours, strict=True)):
            if token != chosen:
                margin = best[at][0][0] - best[at][1][0]
                check(margin <= TIE, f"answer {i}, token {at}: differs by {margin:.3g} nats")
                ties += 1
                break
            gap = abs(log - other)
            check(gap <= TIE, f"answer {i}, token {at}: its logprob differs by {gap:.3g} nats")
            tokens += 1
    return f"{tokens} tokens of {len(got)} answers equal, logprobs within {TIE}; {ties} ties"


def same_tokens(want: list[dict[str, Any]], got: list[dict[str, Any]]) -> str:
    """Compare token for token.

    Raises:
        AssertionError: says how many answers differ, and where the first does.
    """
    differ = []
    for i, (a, b) in enumerate(zip(want, got, strict=True)):
        pairs = list(zip(a["output_ids"], b["output_ids"], strict=True))
        at = next((place for place, (x, y) in enumerate(pairs) if x != y), None)
        if at is not None:
            differ.append((i, at))
    check(not differ, f"{len(differ)} of {len(got)} answers differ; (answer, token): {differ[:5]}")
    cached = sum(answer["meta_info"]["cached_tokens"] for answer in got)
    return f"{len(got)} answers equal to the dense server's; {cached} tokens from the radix cache"


def ask_all(
    url: str, asked: list[dict[str, Any]], tokens: int, options: dict[str, Any] | None
) -> list[dict[str, Any]]:
    """Answers in order, eight at a time."""
    with ThreadPoolExecutor(8) as pool:
        return list(pool.map(lambda body: ask(url, body, tokens, options), asked))


def ask(
    url: str, body: dict[str, Any], tokens: int, options: dict[str, Any] | None
) -> dict[str, Any]:
    """One greedy answer of so many tokens."""
    sampling: dict[str, Any] = {"temperature": 0, "max_new_tokens": tokens, "ignore_eos": True}
    if options is not None:
        sampling["custom_params"] = {"sparsekv": options}
    data = json.dumps({**body, "sampling_params": sampling}).encode()
    request = urllib.request.Request(f"{url}/generate", data, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=300) as answer:
        found: dict[str, Any] = json.load(answer)
    return found
