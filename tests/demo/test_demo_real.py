"""The second act, played before stand-ins: what is asked, figures, texts side by side."""

import io
import json
import re
from contextlib import ExitStack, contextmanager

import demo_samples as samples
import pytest
import speaker

from sgl_sparsekv.demo import run as run_module
from sgl_sparsekv.demo.answer import RequestFailed
from sgl_sparsekv.demo.options import DemoOptions
from sgl_sparsekv.demo.real import act as act_module
from sgl_sparsekv.demo.real import model as model_module
from sgl_sparsekv.demo.real.act import RealAct, real_act
from sgl_sparsekv.demo.real.model import Fetching, NoModel
from sgl_sparsekv.demo.real.page import section
from sgl_sparsekv.demo.real.result import as_json, table
from sgl_sparsekv.demo.real.saying import say
from sgl_sparsekv.demo.real.score import parted
from sgl_sparsekv.demo.real.script import QUESTIONS, write_script
from sgl_sparsekv.demo.timing import ms_per_step
from sgl_sparsekv.evaluation.tokens import Tokens
from sgl_sparsekv.tooling.progress import Progress

QUIET = Progress(io.StringIO(), quiet=True)
RUNS = ["torch_native", "full", "quest", "pqcache", "residual_pq", "streaming"]
CONTEXT = 600


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return speaker.save_model(tmp_path_factory.mktemp("chat") / "smollm2")


@pytest.fixture(scope="module")
def played(folder, tmp_path_factory):
    """The act, and both stand-ins after it."""
    with ExitStack() as stack:
        dense = stack.enter_context(speaker.speaker(folder, ours=False))
        ours = stack.enter_context(speaker.speaker(folder))

        @contextmanager
        def serve(specs, out, progress):
            servers = {"torch_native": dense, "sparsekv": ours}
            yield {spec.name: servers[spec.name] for spec in specs}

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(act_module, "serve", serve)
            options = DemoOptions(tmp_path_factory.mktemp("out"))
            yield real_act(folder, options, QUIET, CONTEXT), dense, ours


def test_all_prompts_begin_with_one_text_of_whole_paragraphs(folder):
    tokens = Tokens(folder)
    script = write_script(tokens, CONTEXT)
    assert CONTEXT * 0.5 < len(script.shared) <= CONTEXT + 20
    first, *questions = script.passages
    assert [passage.title for passage in questions] == list(QUESTIONS)
    for passage in script.passages:
        assert passage.ids[: len(script.shared)] == script.shared
    assert first.prompt.endswith("\n\n") and first.goes_on and not first.goes_on.startswith("\n")
    assert script == write_script(tokens, CONTEXT), "the same for the same Python"


def test_runs_are_dense_the_method_and_the_control_and_what_they_read_is_reported(played):
    act, dense, _ = played
    assert [run.name for run in act.runs] == RUNS
    native, full, *sparse = act.runs
    assert native.kv_read_fraction == full.kv_read_fraction == 1
    assert all(run.kv_read_fraction == pytest.approx(0.07, rel=1e-3) for run in sparse)
    assert len(native.sayings) == 1 and len(full.sayings) == 1 + len(QUESTIONS)
    assert dense.stopped, "the dense server is ended as soon as it is not needed"
    assert all(check.passed for check in act.checks)


def test_all_follow_dense_and_the_nearer_method_is_found_nearer(played):
    act, _, _ = played
    native, full, quest, pqcache, residual, streaming = act.runs
    assert native.agreement == full.agreement == 1
    assert native.kl_nats == full.kl_nats == 0
    assert 0 < pqcache.kl_nats < residual.kl_nats < quest.kl_nats < streaming.kl_nats
    assert pqcache.agreement > streaming.agreement


def test_every_run_is_asked_with_its_own_options(played):
    _, dense, ours = played
    custom = [body["sampling_params"].get("custom_params", {}) for body in dense.bodies]
    assert not any("sparsekv" in one for one in custom)
    sent = [body["sampling_params"]["custom_params"]["sparsekv"] for body in ours.bodies]
    assert {one["method"] for one in sent} == {*RUNS} - {"torch_native"}
    assert {one["budget"] for one in sent} == {512}
    assert ours.bodies[0]["sampling_params"]["max_new_tokens"] == 1, "the text is read once, first"


def test_json_has_what_is_promised(played):
    found = json.loads(json.dumps(as_json(played[0])))
    assert found["model"] == "SmolLM2-135M-Instruct"
    assert found["context_tokens"] == len(played[0].script.shared)
    assert [run["name"] for run in found["runs"]] == RUNS
    for run in found["runs"]:
        for name in ("tokens_per_s", "kv_read_fraction", "agreement", "kl_nats"):
            assert isinstance(run[name], float), name
    full, quest = found["runs"][1:3]
    assert all(said["as_dense"] == said["tokens"] for said in full["said"])
    assert any(said["as_dense"] < said["tokens"] for said in quest["said"])


def test_texts_stand_side_by_side_and_where_they_part_is_marked(played):
    act, _, _ = played
    html = section(act)
    assert html.count("<blockquote>") == 5 * (1 + len(QUESTIONS))
    apart = sum(
        parted(dense.ids, said.ids) < len(said.ids)
        for run in act.runs[2:]
        for dense, said in zip(act.runs[1].sayings, run.sayings, strict=True)
    )
    assert html.count("<mark>") == apart + 1  # one explains the others
    for text in re.findall(r"<blockquote>(.*?)</blockquote>", html, re.DOTALL):
        assert re.fullmatch(r'[^<]*(<mark>[^<]*</mark><span class="soft">[^<]*</span>)?', text)
    assert "<script" not in html and "$" not in re.sub(r"<blockquote>.*?</blockquote>", "", html)


def test_pieces_of_what_was_said_are_the_text(played, folder):
    tokens = Tokens(folder)
    for saying in played[0].runs[2].sayings:
        assert "".join(saying.split(7)).startswith(tokens.text(saying.ids[:5]))
        assert len(saying.pieces) == len(saying.ids)
    said = tokens.ids("naïve €")[1:]
    assert "".join(tokens.pieces(said)) == "naïve €"


def test_table_lines_up_under_what_was_read(played):
    head, *lines = table(played[0])
    assert "SmolLM2" in head and "language reference" in head
    assert len({len(line) for line in lines}) == 1 and len(lines) == 2 + len(RUNS)


def test_an_act_that_is_left_out_says_why():
    act = RealAct("smollm2", skipped="pip is not there")
    assert table(act) == ["second act left out: pip is not there"]
    assert as_json(act) == {"model": "smollm2", "skipped": "pip is not there", "runs": []}
    assert "pip is not there" in section(act)


def test_a_model_with_too_short_a_context_is_refused_before_a_server_starts(tmp_path):
    short = speaker.save_model(tmp_path / "short", positions=512)
    options = DemoOptions(tmp_path, real=str(short))
    with pytest.raises(ValueError, match="context of 512, of which SGLang keeps 7 free"):
        run_module.run_demo(samples.scenario(), options, QUIET)


def test_a_server_that_refuses_is_one_sentence(folder):
    with (
        speaker.speaker(folder) as server,
        pytest.raises(RequestFailed, match=r"did not answer: HTTP 400, .*too many tokens"),
    ):
        say(server.url, [5, 6], speaker.DIES)
    with pytest.raises(RequestFailed, match="did not answer"):
        say("http://127.0.0.1:9", [5, 6], 1)


def test_without_its_model_the_first_act_is_all_there_is(monkeypatch, tmp_path):
    class NotFetched(ExitStack):
        def __init__(self, folder):
            super().__init__()

        def wait(self):
            raise NoModel("m==1 cannot be fetched: no network")

    asked = samples.scenario()
    monkeypatch.setattr(run_module, "Fetching", NotFetched)
    monkeypatch.setattr(
        run_module, "exact_act", lambda *args: (samples.all_runs(asked), samples.log(asked))
    )
    outcome = run_module.run_demo(asked, DemoOptions(tmp_path), QUIET)
    assert outcome.exit_code == 0
    said = run_module.report_lines(outcome, tmp_path)
    assert "second act left out: m==1 cannot be fetched: no network" in said
    assert json.loads((tmp_path / "demo.json").read_text())["real"]["runs"] == []
    assert "Left out: m==1 cannot be fetched" in (tmp_path / "demo.html").read_text()


@pytest.fixture
def command(monkeypatch):
    """Let a script stand for `sparsekv model smollm2`."""

    def use(script):
        real = model_module.subprocess.Popen
        monkeypatch.setattr(
            model_module.subprocess,
            "Popen",
            lambda command, **kwargs: real([command[0], "-c", script], **kwargs),
        )

    return use


def test_a_model_that_cannot_be_had_says_why(command, tmp_path):
    command("import sys; sys.exit('a bar 7%\\rsparsekv model: m==1 cannot be fetched: no network')")
    with (
        Fetching(tmp_path / "smollm2") as fetching,
        pytest.raises(NoModel, match=r"^m==1 cannot be fetched: no network$"),
    ):
        fetching.wait()


def test_fetching_ends_with_the_demo(command, tmp_path):
    command("import time; time.sleep(60)")
    with Fetching(tmp_path / "smollm2") as fetching:
        process = fetching._process
    assert process.returncode is not None


def test_the_step_time_is_a_median_over_steps():
    """Of one answer too: a pause of the machine in the middle of it changes nothing."""
    steady = [(0.01 * i, 1 + i) for i in range(9)]
    paused = [(t + (5 if n > 4 else 0), n) for t, n in steady]
    assert ms_per_step([paused]) == pytest.approx(10)
    bunched = [steady[0], steady[2], steady[8]]
    assert ms_per_step([bunched]) == pytest.approx(10)
    late = [(0.04 * (i // 4) + 1e-5 * (i % 4), 1 + i) for i in range(33)]
    assert ms_per_step([late]) == pytest.approx(10), "read four at a time by a busy client"
    assert ms_per_step([]) == 0
