"""Long chains of a real model: errors of sparse reading must not pile up from step to step.

Needles are answered in a few steps. Here each step reads keys that hundreds of sparse ones wrote.
"""

import random
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import fmean

import pytest
from helpers.launcher import ForkedServer, Launcher
from helpers.soak import SEED, record

from sgl_sparsekv.backend.cpu_defaults import METHOD
from sgl_sparsekv.config import RequestOptions
from sgl_sparsekv.evaluation.client import Client
from sgl_sparsekv.evaluation.settings import Reading
from sgl_sparsekv.evaluation.tasks.comparing import Comparison, Prompt, split
from sgl_sparsekv.evaluation.tokens import Tokens
from sgl_sparsekv.tooling.servers import ServerSpec

from ..fleet import COMMON
from .test_release_gate import KL_NATS, TOP_1

pytestmark = [pytest.mark.server, pytest.mark.soak]
CHAIN = 640
"""Tokens of an answer."""
DAYS = 300
"""Lines of the ledger, some 4,000 tokens: twice the default budget."""
NAMES = ("Alice", "Bob", "Carol", "Dan", "Erin", "Frank")
READING = Reading(METHOD, RequestOptions().budget)
FLAGS = (
    *("--attention-backend", "sparsekv", "--context-length", "8192"),
    *("--max-total-tokens", "16384", "--enable-custom-logit-processor"),
)


@pytest.fixture(scope="module")
def client(
    smollm2: Path, launcher: Launcher, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Client]:
    """A server of SmolLM2."""
    spec = ServerSpec("smollm2", ("--model-path", str(smollm2), *COMMON, *FLAGS))
    running = ForkedServer(spec, tmp_path_factory.mktemp("long"), launcher)
    while not running.ready():
        time.sleep(0.5)
    yield Client(running.url)
    running.stop()


def ledger(tokens: Tokens) -> tuple[str, str]:
    """A chat that asks for reasoning over many small facts, and the reasoning that is right."""
    rng, lines, steps, total = random.Random(SEED), [], [], 0
    for day in range(1, DAYS + 1):
        giver, taker = rng.sample(NAMES, 2)
        coins = rng.randrange(2, 60)
        total += coins
        lines.append(f"Day {day}: {giver} gives {taker} {coins} coins.")
        steps.append(f"On day {day} {giver} pays {taker} {coins} coins. The sum is {total}.")
    before, after = tokens.chat()
    wish = (
        "Go through this ledger day by day. For each day, write who pays whom and how many coins, "
        "then the sum of all coins paid so far. Think step by step."
    )
    facts = "\n".join(lines)
    return f"{before}{wish}\n\n{facts}\n\n{wish}{after}", "\n".join(steps)


def test_a_long_chain_stays_with_the_dense_one(smollm2: Path, client: Client) -> None:
    """As near as the release gate asks, and in its last quarter as near as in its first."""
    tokens = Tokens(smollm2)
    ids, chain = split(tokens, *ledger(tokens))
    prompt = Prompt(0, ids, chain[:CHAIN], CHAIN, "ledger")
    found = Comparison().stray(prompt, READING, client)
    quarter, report = CHAIN // 4, found.reply.report
    early, late = fmean(found.kl[:quarter]), fmean(found.kl[-quarter:])
    figures = {
        "prompt_tokens": len(ids),
        "chain": len(found.kl) + 1,
        "same_next_token": found.detail()["top-1"],
        "kl_nats": {"all": found.value, "first_quarter": early, "last_quarter": late},
        "kv_read": report["tokens_attended"] / report["tokens_in_context"],
    }
    print(figures)
    assert len(found.kl) == CHAIN - 1 and len(ids) > 1.5 * READING.budget
    assert figures["same_next_token"] >= TOP_1 and found.value <= KL_NATS
    assert late <= 2 * early + KL_NATS / 10
    record("long_answers", figures)
