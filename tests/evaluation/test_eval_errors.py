"""What prevents an evaluation is one sentence and exit status 2, whichever it is."""

import json

import pytest
from fake_server import fake_server

from sgl_sparsekv import cli

TASKS = ("needle", "ruler", "longbench", "perplexity", "fidelity", "generate", "turns")
NEEDED = {"longbench": ("--data", "synthetic"), "perplexity": (), "fidelity": ()}


@pytest.fixture
def complaint(chain_model, tmp_path, capsys):
    """Run an evaluation that cannot be done; its one sentence."""

    def run(task, *arguments):
        out = tmp_path / "out.jsonl"
        common = ("--model", str(chain_model), "--out", str(out), "--quiet")
        status = cli.main(["eval", task, *common, *NEEDED.get(task, ()), *arguments])
        said = capsys.readouterr()
        assert status == 2 and said.out == ""
        (line,) = said.err.splitlines()
        assert not out.exists()
        return line

    return run


@pytest.mark.parametrize("task", TASKS)
def test_a_dead_server(complaint, task):
    assert "does not answer" in complaint(task, "--url", "http://127.0.0.1:9")


@pytest.mark.parametrize("task", TASKS)
def test_a_missing_model(complaint, tmp_path, task):
    assert "nowhere" in complaint(task, "--model", str(tmp_path / "nowhere"))


@pytest.mark.parametrize(
    ("task", "arguments"),
    [
        ("needle", ("--lengths", "64k")),
        ("ruler", ("--lengths", "64k", "--tasks", "vt")),
        ("longbench", ("--max-length", "65536")),
        ("perplexity", ("--lengths", "64k")),
        ("fidelity", ("--length", "64k")),
        ("generate", ("--lengths", "64k")),
        ("turns", ("--lengths", "64k")),
    ],
)
def test_a_context_beyond_the_models(complaint, task, arguments):
    """The model of these tests has 4,096 positions."""
    assert "context of 4096 tokens" in complaint(task, *arguments)


@pytest.mark.parametrize(
    ("task", "option"),
    [
        ("ruler", "--haystack"),
        ("ruler", "--squad"),
        ("ruler", "--hotpotqa"),
        ("longbench", "--data"),
        ("longbench", "--prompts"),
        ("perplexity", "--data"),
        ("fidelity", "--data"),
        ("math", "--data"),
    ],
)
def test_a_missing_file(complaint, tmp_path, task, option):
    assert "nowhere.json" in complaint(task, option, str(tmp_path / "nowhere.json"))


@pytest.mark.parametrize(
    ("task", "option", "name", "text"),
    [
        ("ruler", "--squad", "squad.json", '{"data": 1}'),
        ("ruler", "--hotpotqa", "hotpot.json", "[{}]"),
        ("longbench", "--prompts", "prompts.json", "[]"),
        ("perplexity", "--data", "texts.jsonl", '{"words": "a"}\n'),
        ("fidelity", "--data", "prompts.jsonl", "no json\n"),
        ("math", "--data", "problems.jsonl", '{"question": "a", "answer": "none"}\n'),
    ],
)
def test_a_file_of_another_form(complaint, tmp_path, task, option, name, text):
    path = tmp_path / name
    path.write_text(text)
    assert name in complaint(task, option, str(path))


def test_a_set_with_a_line_of_another_form(complaint, tmp_path):
    (tmp_path / "qasper.jsonl").write_text(json.dumps({"input": "q", "context": "c"}) + "\n")
    assert "qasper.jsonl" in complaint("longbench", "--data", str(tmp_path))


@pytest.mark.parametrize("task", ["perplexity", "fidelity", "generate", "turns"])
def test_a_server_that_takes_no_forced_tokens(complaint, chain_model, task):
    short = "--length" if task == "fidelity" else "--lengths"
    with fake_server(chain_model, forcing=False) as server:
        said = complaint(task, "--url", server.url, short, "2k")
    assert "--enable-custom-logit-processor" in said


@pytest.mark.parametrize("task", ["perplexity", "fidelity", "generate"])
def test_an_export_of_what_scores_no_answers_is_refused_first(complaint, tmp_path, task):
    assert "kvpress" in complaint(task, "--kvpress", str(tmp_path))


@pytest.mark.parametrize(
    ("task", "arguments", "said"),
    [
        ("generate", ("--tasks", "call"), "task must be one of continue, copy"),
        ("generate", ("--tokens", "4"), "tokens must be at least 8"),
        ("generate", ("--count", "0"), "count must be at least 1"),
        ("generate", ("--samples", "0"), "samples must be at least 1"),
        ("turns", ("--turns", "0"), "turns must be at least 1"),
        ("turns", ("--cold", "4"), "cold must be from 0 to below 4"),
        ("turns", ("--tokens", "0"), "tokens must be at least 1"),
        ("turns", ("--lengths", "256"), "lengths must be above 512 for 4 turns"),
        ("generate", ("--chat",), "chat must be left out"),
        ("turns", ("--chat",), "chat must be left out"),
    ],
)
def test_outputs_that_cannot_be_asked_for(complaint, task, arguments, said):
    assert said in complaint(task, *arguments)
