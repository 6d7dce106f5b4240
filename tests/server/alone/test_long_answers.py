"""Long chains of a real model: errors of sparse reading must not pile up from step to step.

Needles are answered in a few steps. Here each step reads what hundreds of sparse ones have said.
"""

import random
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers.soak import SEED, record

from sgl_sparsekv.config import RequestOptions
from sgl_sparsekv.evaluation.client import Client
from sgl_sparsekv.evaluation.settings import Reading
from sgl_sparsekv.evaluation.tasks.base import Part
from sgl_sparsekv.evaluation.tasks.fidelity import FidelityTask
from sgl_sparsekv.evaluation.tasks.texts import Text
from sgl_sparsekv.evaluation.tokens import Tokens
from sgl_sparsekv.models.smollm2 import save_smollm2
from sgl_sparsekv.models.wheel import NotFetched
from sgl_sparsekv.tooling.servers import ServerProcess, ServerSpec

from ..fleet import ONE_THREAD

pytestmark = [pytest.mark.server, pytest.mark.soak]
CHAIN = 640
"""Tokens of an answer."""
DAYS = 150
"""Lines of the ledger, some 4,000 tokens: twice the default budget."""
NAMES = ("Alice", "Bob", "Carol", "Dan", "Erin", "Frank")
READING = Reading("pqcache", RequestOptions().budget)
FLAGS = (
    *("--attention-backend", "sparsekv", "--sparsekv-methods", "full,pqcache"),
    *("--random-seed", "0", "--context-length", "8192", "--max-total-tokens", "16384"),
    "--enable-custom-logit-processor",
)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """SmolLM2."""
    folder = tmp_path_factory.mktemp("long") / "smollm2"
    try:
        save_smollm2(folder)
    except NotFetched as error:
        pytest.skip(str(error))
    return folder


@pytest.fixture(scope="module")
def client(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    """A server of it."""
    spec = ServerSpec("smollm2", ("--model-path", str(model), *FLAGS), ONE_THREAD)
    running = ServerProcess(spec, tmp_path_factory.mktemp("servers"))
    while not running.ready():
        running.check()
        time.sleep(0.5)
    yield Client(running.url)
    running.stop()


def ledger(tokens: Tokens) -> str:
    """A chat that asks for reasoning over many small facts."""
    rng, lines = random.Random(SEED), []
    for day in range(1, DAYS + 1):
        giver, taker = rng.sample(NAMES, 2)
        lines.append(f"Day {day}: {giver} gives {taker} {rng.randrange(2, 60)} coins.")
    before, after = tokens.chat()
    wish = (
        "Go through this ledger day by day. For each day, write who pays whom and how many coins, "
        "then the sum of all coins paid so far. Think step by step."
    )
    return before + wish + "\n\n" + "\n".join(lines) + "\n\n" + wish + after


def distinct(ids: list[int], length: int = 8) -> float:
    """Share of a text's runs of `length` tokens that stand in it once."""
    runs = [tuple(ids[i : i + length]) for i in range(len(ids) - length + 1)]
    return len(set(runs)) / len(runs)


def own_words(client: Client, prompt: list[int], reading: Reading) -> tuple[list[int], float]:
    """What a reading says by itself, and the share of K and V that it read."""
    sampling = {"max_new_tokens": CHAIN, "temperature": 0, "ignore_eos": True}
    custom = {"sparsekv": reading.options()}
    reply = client.generate(
        {"input_ids": prompt, "sampling_params": {**sampling, "custom_params": custom}}
    )
    return reply.output_ids, reply.report["tokens_attended"] / reply.report["tokens_in_context"]


def test_a_long_chain_stays_with_the_dense_one(model: Path, client: Client) -> None:
    tokens = Tokens(model)
    text = ledger(tokens)
    prompt = tokens.ids(text)
    dense, _ = own_words(client, prompt, Reading("full", READING.budget))
    sparse, read = own_words(client, prompt, READING)
    task = FidelityTask(tokens, [Text("ledger", text)], CHAIN)
    (question,) = task.build(Part("fidelity", 0, 0))
    outcome = task.ask(question, READING, client)
    halves = outcome.detail
    figures = {
        "prompt_tokens": len(prompt),
        "chain": len(sparse),
        "followed": halves["tokens"],
        "same_next_token": halves["top-1"],
        "kl": outcome.value,
        "kv_read": read,
        "distinct": {"dense": distinct(dense), "pqcache": distinct(sparse)},
    }
    print(figures)
    assert len(sparse) == CHAIN and len(prompt) > 1.5 * READING.budget
    assert halves["tokens"] >= 511 and halves["top-1"] >= 0.9
    assert distinct(sparse) >= distinct(dense) - 0.1
    record("long_answers", figures)
