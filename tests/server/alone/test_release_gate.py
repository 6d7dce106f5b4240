"""The release gate: on a pretrained model the server's defaults say nearly what dense decode says.

Who gives a server no option gets its default method and budget; these must choose dense's next
token nine times of ten, and stay within a tenth of a nat of its distribution.
"""

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from helpers.launcher import ForkedServer, Launcher
from helpers.soak import Size, record

from sgl_sparsekv import cli
from sgl_sparsekv.evaluation.results import read
from sgl_sparsekv.evaluation.summary import Score, ranking
from sgl_sparsekv.evaluation.tasks.real.document import real_document
from sgl_sparsekv.evaluation.tokens import Tokens
from sgl_sparsekv.tooling.servers import ServerProcess, ServerSpec

from ..client import get
from ..fleet import COMMON

TOP_1, KL_NATS = 0.9, 0.1


@pytest.fixture(scope="module")
def server(
    smollm2: Path, launcher: Launcher, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ServerProcess]:
    """All options of ours at their defaults."""
    flags = (
        *("--model-path", str(smollm2), *COMMON, "--attention-backend", "sparsekv"),
        *("--enable-custom-logit-processor", "--max-total-tokens", "16384"),
    )
    folder = tmp_path_factory.mktemp("gate")
    running = ForkedServer(ServerSpec("smollm2", flags), folder, launcher)
    while not running.ready():
        time.sleep(0.5)
    yield running
    running.stop()


def strayed(server: ServerProcess, out: Path, prompts: Path, *arguments: str) -> dict[str, Score]:
    """Run the evaluation of fidelity on our own prompts; the scores by method."""
    asked = ("--url", server.url, "--data", str(prompts), "--out", str(out), "--quiet")
    assert cli.main(["eval", "fidelity", *asked, *arguments]) == 0
    return {score.method: score for score in ranking(read(out)[1])}


def passes(score: Score) -> bool:
    """Whether a method may be the default."""
    return score.detail["top-1"] >= TOP_1 and score.value <= KL_NATS


def test_the_default_method_at_the_default_budget_is_near_dense(
    server: ServerProcess, smollm2: Path, tmp_path: Path, size: Size
) -> None:
    """On real text that is read on, with more to read than the budget; a window fails the gate."""
    context, tokens = size(2560, 8000), size(64, 128)
    prompts = tmp_path / "prompts.jsonl"
    ids = Tokens(smollm2).ids
    texts = (real_document(ids, context, tokens, seed) for seed in range(size(1, 8)))
    lines = ({"prompt": text.text, "continuation": text.goes_on} for text in texts)
    prompts.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    state: dict[str, Any] = get(f"{server.url}/server_info")["internal_states"][0]["sparsekv"]
    method, budget = (state["options"][name] for name in ("method", "budget"))
    common = ("--tokens", str(tokens))
    found = strayed(
        server, tmp_path / "default.jsonl", prompts,
        *common, "--methods", f"full,{method}", "--budget", str(budget),
    )  # fmt: skip
    window = strayed(
        server, tmp_path / "window.jsonl", prompts,
        *common, "--methods", "streaming", "--budget", "128",
    )  # fmt: skip
    figures = {
        name: {"budget": score.budget, "kl_nats": score.value, "top_1": score.detail["top-1"]}
        for name, score in (*found.items(), *window.items())
    }
    print(json.dumps(figures))
    if size(0, 1):
        record("release-gate", {"context": context, "tokens": tokens, "methods": figures})
    assert found[method].read < 0.95, "the budget must leave something out"
    assert passes(found["full"]) and passes(found[method]), figures
    assert not passes(window["streaming"]), figures
