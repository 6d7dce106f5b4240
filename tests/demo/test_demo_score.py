import demo_samples as samples
import pytest

from sgl_sparsekv.demo.checks import check_all
from sgl_sparsekv.demo.picture import depth_map
from sgl_sparsekv.demo.real.act import RealAct
from sgl_sparsekv.demo.run import Outcome, report_lines
from sgl_sparsekv.demo.scenario import words_right

PAGE = 64


@pytest.fixture
def asked():
    return samples.scenario()


def failing(asked, runs):
    return [check.text for check in check_all(asked, runs, PAGE) if not check.passed]


def test_words_are_compared_place_by_place():
    assert words_right(("a", "b", "c"), "a x c") == (True, False, True)
    assert words_right(("a", "b"), "a") == (True, False)
    assert words_right(("a", "b"), "a b extra") == (True, True)


def test_figures_of_a_run(asked):
    run = samples.run(asked, "quest", read=0.031)
    assert run.correct == run.questions == 16
    assert run.kv_read_fraction == pytest.approx(0.031, rel=1e-3)
    assert run.metadata_read_fraction == 1 / 16
    assert run.decode_ms_per_step == pytest.approx(10)
    # Eight questions at once, seven steps each, in 70 ms: the first token is prefill's.
    assert run.tokens_per_s == pytest.approx(8 * 7 / 0.07)
    assert run.applied


def test_sglangs_own_backend_reads_everything(asked):
    run = samples.run(asked, "torch_native")
    assert run.kv_read_fraction == 1.0
    assert run.metadata_read_fraction == 0.0


def test_one_wrong_word_makes_an_answer_wrong(asked):
    assert samples.run(asked, "quest", right=samples.WORDS - 1).correct == 0


def test_all_conditions_hold_for_a_good_demo(asked):
    runs = samples.all_runs(asked)
    assert failing(asked, runs) == []
    assert outcome(asked, runs).exit_code == 0


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"quest": 4}, "quest answers every question"),
        ({"streaming": 8}, "streaming, at the same budget, misses answers that quest finds"),
    ],
)
def test_a_failing_condition_is_named_and_ends_with_1(asked, change, named):
    found = outcome(asked, samples.all_runs(asked, **change))
    assert found.exit_code == 1
    assert f"failed: {named}" in report_lines(found, samples.Path("out"))


def test_quest_must_read_little(asked):
    runs = samples.all_runs(asked)
    runs[2] = samples.run(asked, "quest", read=0.06)
    assert failing(asked, runs) == ["quest reads at most 5.0% of the KV cache"]


def test_options_must_have_been_applied(asked):
    runs = samples.all_runs(asked)
    for answer in runs[2].answers:
        answer.report["budget"] = 2048
    runs[2] = samples.score_run("quest", runs[2].options, runs[2].answers, asked)
    assert failing(asked, runs) == ["every response names the options it was asked for"]


def test_words_after_a_wrong_one_are_not_counted_by_depth(asked):
    right = depth_map(asked, samples.run(asked, "full"), 16)
    wrong = depth_map(asked, samples.run(asked, "streaming", right=1), 16)
    assert sum(tried for _, tried in right) == sum(found for found, _ in right) == 16 * 7
    assert sum(found for found, _ in wrong) == 0
    assert sum(tried for _, tried in wrong) == 16


def outcome(asked, runs):
    no_act = RealAct("none", skipped="it was not asked for")
    return Outcome(tuple(runs), tuple(check_all(asked, runs, PAGE)), {}, no_act)
