"""Evaluations of real servers: each of them ranks a method that never looks at keys last."""

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from helpers.launcher import ForkedServer, Launcher
from helpers.ruler_reader import save_ruler_reader

from sgl_sparsekv import cli
from sgl_sparsekv.evaluation.results import read
from sgl_sparsekv.evaluation.summary import Score, ranking
from sgl_sparsekv.evaluation.tasks.asking import Asking
from sgl_sparsekv.evaluation.tasks.ruler.task import RulerTask
from sgl_sparsekv.evaluation.tokens import Tokens
from sgl_sparsekv.models import save_trained
from sgl_sparsekv.tooling.room import answered
from sgl_sparsekv.tooling.servers import ServerProcess, ServerSpec

RULER, SAMPLES = ("niah_single_1", "niah_single_2", "niah_multikey_1"), 2
CONTEXT = 8192
FLAGS = (
    *("--attention-backend", "sparsekv", "--sparsekv-methods", "full,quest,random_pages"),
    *("--device", "cpu", "--mem-fraction-static", "0.6", "--sleep-on-idle", "--page-size", "64"),
    *("--context-length", str(CONTEXT), "--max-total-tokens", "24576", "--random-seed", "0"),
    "--enable-custom-logit-processor",
)


@pytest.fixture(scope="module")
def server(launcher: Launcher, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """The trained model, and a selector that is broken on purpose among its methods."""
    folder = tmp_path_factory.mktemp("evaluations")
    save_trained(folder / "trained")
    spec = ServerSpec("trained", ("--model-path", str(folder / "trained"), *FLAGS))
    running = ForkedServer(spec, folder, launcher)
    while not running.ready():
        time.sleep(0.5)
    yield running
    running.stop()


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same model, reading RULER's needles; what is decoded needs no tokenizer of the server."""
    folder = tmp_path_factory.mktemp("reader")
    save_trained(folder)
    ruler = RulerTask(Asking(Tokens(folder)), RULER, [4096], SAMPLES)
    save_ruler_reader(folder, [q for part in ruler.parts() for q in ruler.build(part)])
    return folder


def scores(server: ServerProcess, out: Path, task: str, *arguments: str) -> list[Score]:
    """Run an evaluation and rank what it found."""
    common = ("--url", server.url, "--methods", "all", "--budget", "256", "--quiet")
    assert cli.main(["eval", task, *common, "--out", str(out), *arguments]) == 0
    return ranking(read(out)[1])


CASES = {
    "needle": ("needle", "--lengths", "4k", "--depths", "4"),
    "needle decoded": (
        *("needle", "--lengths", "4k", "--depths", "4", "--protocol", "decoded"),
        *("--concurrency", "4"),
    ),
    "longbench": ("longbench", "--data", "synthetic", "--concurrency", "2"),
    "perplexity": ("perplexity", "--lengths", "4k", "--tokens", "64", "--samples", "2"),
    "fidelity": ("fidelity", "--tokens", "64", "--samples", "2"),
    "generate": (
        *("generate", "--lengths", "4k", "--tokens", "128", "--count", "1", "--budget", "512"),
    ),
    "turns": ("turns", "--lengths", "4k", "--turns", "3"),
    "ruler": (
        *("ruler", "--tasks", ",".join(RULER), "--lengths", "4k", "--samples"),
        *(str(SAMPLES), "--protocol", "decoded"),
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_random_pages_rank_last(
    server: ServerProcess, reader: Path, tmp_path: Path, case: str
) -> None:
    """Below `quest`, which is nowhere better than reading everything."""
    task, *arguments = CASES[case]
    if task == "ruler":
        arguments += ["--model", str(reader)]
    found = scores(server, tmp_path / "r.jsonl", task, *arguments)
    assert sorted(score.method for score in found) == ["full", "quest", "random_pages"]
    assert found[-1].method == "random_pages"
    by_name = {score.method: score for score in found}
    quest, broken = by_name["quest"], by_name["random_pages"]
    assert quest.value != broken.value
    assert quest.read == pytest.approx(broken.read, rel=0.02), "the same budget"
    assert by_name["full"].value == pytest.approx(quest.value, rel=0.2, abs=0.02)


def test_a_warm_turn_says_what_a_cold_one_says(server: ServerProcess, tmp_path: Path) -> None:
    """The first turn finds nothing in the cache, the others all of the turn before, in pages."""
    out = tmp_path / "t.jsonl"
    more = ("--lengths", "2k", "--turns", "3", "--cold", "2", "--methods", "quest,random_pages")
    scores(server, out, "turns", *more)
    for cell in read(out)[1]:
        assert cell.detail["as cold"] == 1 and cell.detail["KL of cold"] < 1e-6
        along = cell.detail["along"]
        first, *later = zip(along["cached tokens"], along["prompt tokens"], strict=True)
        assert first[0] == 0
        assert all(read_there > 0.9 * prompt for read_there, prompt in later)


def test_dense_decode_is_faithful_to_itself(server: ServerProcess, tmp_path: Path) -> None:
    """Two runs of the same dense text give the same probabilities, and KL says so."""
    found = scores(server, tmp_path / "f.jsonl", "fidelity", "--tokens", "24", "--samples", "1")
    full = next(score for score in found if score.method == "full")
    assert full.value < 1e-6 and full.detail["top-1"] == 1


def test_forced_decode_agrees_with_prefill(server: ServerProcess, tmp_path: Path) -> None:
    """Dense forced decode gives text the likelihood that SGLang's own prefill gives it."""
    from sgl_sparsekv.evaluation.client import Client
    from sgl_sparsekv.evaluation.settings import Reading
    from sgl_sparsekv.evaluation.tasks.following import follow
    from sgl_sparsekv.evaluation.tasks.needle.small_models import written_text

    from ..client import post

    scores(server, tmp_path / "n.jsonl", "needle", "--lengths", "1k", "--depths", "1")
    client = Client(server.url)
    text = written_text("facts", 2000, 5)
    ids = Tokens(Path(client.info().model)).ids(text.text + text.continuation)
    notes, _ = follow(client, Reading("full", 256, 0), ids[:-32], ids[-32:], 1)
    body = {"input_ids": ids, "return_logprob": True, "logprob_start_len": len(ids) - 33}
    status, answer = post(
        f"{server.url}/generate", {**body, "sampling_params": {"max_new_tokens": 1}}
    )
    assert status == 200
    prefilled = [entry[0] for entry in answer["meta_info"]["input_token_logprobs"]][-31:]
    assert [note.log for note in notes] == pytest.approx(prefilled, abs=0.15)


def test_what_fits_a_context_is_answered_to_its_last_token(server: ServerProcess) -> None:
    """And one token more of the prompt is refused: no more room is left than SGLang needs."""
    from ..client import post

    def ask(prompt: int, new: int) -> tuple[int, dict[str, Any]]:
        sampling = {"max_new_tokens": new, "temperature": 0, "ignore_eos": True}
        body = {"input_ids": [7] * prompt, "sampling_params": sampling}
        return post(f"{server.url}/generate", body)

    fits = answered(CONTEXT)
    status, answer = ask(fits - 64, 64)
    assert status == 200 and answer["meta_info"]["completion_tokens"] == 64
    assert ask(fits, 1)[0] == 200
    assert ask(fits + 1, 1)[0] == 400


@pytest.mark.soak
def test_fidelity_on_a_file_of_ones_own_needs_no_server_that_runs(tmp_path: Path) -> None:
    """The server that is started has room for the longest prompt and all that is followed."""
    save_trained(tmp_path / "model")
    words = "Ada Marlow quietly polishes amber lanterns . "
    own = {"prompt": words * 300, "continuation": words * 4}
    (tmp_path / "own.jsonl").write_text(json.dumps(own) + "\n")
    asked = ("--model", str(tmp_path / "model"), "--data", str(tmp_path / "own.jsonl"))
    out = tmp_path / "f.jsonl"
    more = ("--tokens", "24", "--methods", "full", "--quiet", "--out", str(out))
    assert cli.main(["eval", "fidelity", *asked, *more]) == 0
    (cell,) = read(out)[1]
    assert cell.detail["tokens"] == 23


def test_a_file_of_results_says_what_was_read(server: ServerProcess, tmp_path: Path) -> None:
    """Bytes, budget, versions, commit and protocol, for who compares runs."""
    out = tmp_path / "r.jsonl"
    scores(server, out, "needle", "--lengths", "2k", "--depths", "2")
    header = json.loads(out.read_text().partition("\n")[0])
    assert header["kv_bytes_per_token"] == 512 and header["metadata_share"]["quest"] == 1 / 16
    assert header["protocol"] == "prefilled" and "sinks" in header["budget_counts"]
    assert header["server"]["sglang"] and header["environment"]["commit"]
