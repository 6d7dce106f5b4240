"""Which defaults the data picks: candidates, equal total bytes, and the command."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from bench.defaults import answers, report
from bench.defaults.__main__ import main
from bench.defaults.answers import Answered
from bench.defaults.candidates import (
    SHAPES,
    Candidate,
    budget_within,
    candidates,
    dense_bytes,
    middle_of,
    total_bytes,
)
from bench.defaults.errors import LEVELS, findings
from bench.defaults.results import Run, load, newest, save
from bench.quality.dump import Dump, LayerDump
from bench.quality.run import QUEST
from bench.quality.subjects import Subject
from sgl_sparsekv.evaluation.tasks.base import Part
from sgl_sparsekv.tooling.journal import Journal

LENGTHS, DIM, LAYERS = np.array([4000, 4090]), 64, 6
WHEN = {"when": "2026-01-02T03:04:05", "machine": "a machine", "commit": "abc"}


def test_every_method_is_tried_around_what_is_served():
    tried = list(candidates())
    assert len({(c.method, c.shape, c.variant, c.dense_layers) for c in tried}) == len(tried)
    for method, shapes in SHAPES.items():
        own = [one for one in tried if one.method == method]
        assert [one.variant for one in own if one.axis == "shape"] == list(shapes)
        around = [one.variant for one in own if one.axis != "shape"]
        assert {replace(one, sink=16, window=64) for one in around} == {middle_of(method)}


@pytest.mark.parametrize("dense", [0, 1, 2])
def test_the_budget_counts_dense_layers(dense):
    level = total_bytes(QUEST, 1024, 1, LAYERS, LENGTHS, DIM)
    one = Candidate("quest", "dense", QUEST, dense)
    budget = budget_within(one, level, LAYERS, LENGTHS, DIM)
    assert budget is not None
    read = [total_bytes(QUEST, b, dense, LAYERS, LENGTHS, DIM) for b in (budget, budget + 16)]
    assert read[0] <= level < read[1]
    assert dense != 1 or budget in range(1024, 1040)


def test_dense_layers_that_cost_all_bytes_leave_no_budget():
    level = dense_bytes(LENGTHS, DIM)
    one = Candidate("quest", "dense", QUEST, 1)
    assert budget_within(one, level, LAYERS, LENGTHS, DIM) is None


@pytest.fixture
def subject():
    def dumped(context: int) -> Dump:
        torch.manual_seed(0)
        keys = torch.randn(LAYERS, context + 1, 2, 16)
        positions = torch.tensor([context - 40, context - 3])
        q = 3 * keys[:, [99, 700]][:, :, :, None].repeat(1, 1, 1, 2, 1)
        layers = [
            LayerDump(i, one.bfloat16(), key.bfloat16(), key.bfloat16(), key.bfloat16(), 0.5)
            for i, (one, key) in enumerate(zip(q, keys, strict=True))
        ]
        return Dump(positions, tuple(layers), 1.0, torch.empty(0), torch.empty(0))

    found = Subject("made", "a made model", lambda: None, lambda n: ([], []))
    return type(
        "Made", (), {"name": found.name, "about": found.about, "dump": staticmethod(dumped)}
    )()


def test_findings_are_at_equal_bytes_and_go_into_the_page(subject, tmp_path, monkeypatch):
    monkeypatch.setattr(
        "bench.defaults.errors.candidates",
        lambda: [one for one in candidates() if one.method in ("quest", "streaming")],
    )
    journal = Journal(tmp_path / "part.jsonl", {}, False)
    found = findings(subject, [3072], "reference", journal)
    again = findings(subject, [3072], "reference", Journal(tmp_path / "part.jsonl", {}, True))
    assert found == again
    for one in found:
        level = total_bytes(
            QUEST, one.quest_budget, one.quest_dense_layers, LAYERS, LENGTHS * 0 + 3050, 16
        ) / (dense_bytes(LENGTHS * 0 + 3050, 16) * LAYERS)
        assert one.budget is None or one.share <= level * 1.02
    served = [one for one in found if one.served]
    assert len(served) == 2 * len(LEVELS)
    said = Answered(3072, "quest", 1, 500, 0.25, 0.0123, 0.9, 0.8)
    path = save(Run("made", "a made model", WHEN, found, [said]), tmp_path)
    assert load(path).findings == [replace(f, **rounded(f)) for f in found]
    (named,) = newest(tmp_path)
    page = report.render([named])
    for words in ("| quest | 32 |", "| streaming | 16 + 256 |", "| quest | 2 |", "0.0123", "80%"):
        assert words in page


def rounded(one):
    values = {name: getattr(one, name) for name in ("share", "error", "error_p90")}
    return {k: v if v is None else float(f"{v:.4g}") for k, v in values.items()}


class Asked:
    """A task of two questions; what it is told depends on the reading."""

    def __init__(self, name: str) -> None:
        self.name = name

    def parts(self):
        return [Part(self.name, 4096, 0, 2)]

    def build(self, part):
        return [1.0, 3.0]

    def ask(self, question, reading, client):
        value = question * (1 + reading.dense_layers)
        detail = {"top-1": 0.5} if self.name == "fidelity" else {}
        return SimpleNamespace(value=value, detail=detail)


def test_answers_are_means_by_method_and_dense_layers():
    config = {"num_hidden_layers": 30, "hidden_size": 576, "num_attention_heads": 9}
    readings = list(answers._readings(SimpleNamespace(config=config), 8192))
    assert {(one.method, one.dense_layers) for one, _ in readings} == {
        (method, dense) for method in answers.METHODS for dense in (0, 1, 2)
    }
    shares = [share for _, share in readings]
    assert max(shares) - min(shares) < 0.01, "the bytes are the same"
    tasks = (Asked("fidelity"), Asked("needle"))
    found = list(answers._ask(tasks, readings, None, Journal(), 8192))
    assert len(found) == len(readings)
    for one in found:
        assert one.kl == one.needles == 2 * (1 + one.dense_layers) and one.top_1 == 0.5


def test_a_model_that_is_none_is_one_sentence(tmp_path, capsys):
    assert main([str(tmp_path), "--out", str(tmp_path)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "MODEL must be a folder with a config.json" in line
