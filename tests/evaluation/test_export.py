"""Results as kvpress writes its own: three files per way of reading, never written over."""

import csv
import json
from dataclasses import replace

import pytest
import yaml

from sgl_sparsekv.evaluation.export import write_kvpress
from sgl_sparsekv.evaluation.results import Cell, Results

CELL = Cell(
    task="vt", length=4096, sample=0, nth=0, method="quest", budget=512, metric="string_match_all",
    value=0.5, place=None, expected=("A", "B"), said="A, then", prompt_tokens=4000, cached_tokens=0,
    tokens_attended=512, tokens_in_context=4000, decode_steps=1, seconds=0.1,
)  # fmt: skip


def write(path, *cells):
    results = Results(path, "ruler", {"model": "/models/llama", "protocol": "decoded"}, False)
    for cell in cells:
        results.add(cell, {"environment": {"commit": "abc"}})


def test_a_folder_per_length_and_way_of_reading(tmp_path):
    path, out = tmp_path / "r.jsonl", tmp_path / "out"
    full = replace(CELL, method="full", value=1.0, tokens_attended=4000)
    write(path, CELL, replace(CELL, sample=1, value=1.0), full, replace(CELL, length=8192))
    names = sorted(folder.name for folder in write_kvpress(path, out))
    assert names == [
        "ruler__4096__llama__sparsekv_full__0.00",
        "ruler__4096__llama__sparsekv_quest__0.88",
        "ruler__8192__llama__sparsekv_quest__0.94",
    ]
    quest = out / names[1]
    assert json.loads((quest / "metrics.json").read_text()) == {"vt": {"string_match": 75.0}}
    config = yaml.safe_load((quest / "config.yaml").read_text())
    assert config["compression_ratio"] == 0.875 and config["kv_read_fraction"] == 0.128
    assert config["environment"]["commit"] == "abc" and not config["query_aware"]
    assert "stays in the cache" in config["compression_ratio_means"]
    with (quest / "predictions.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["predicted_answer"] for row in rows] == ["A, then"] * 2
    assert rows[0]["answer"] == "['A', 'B']" and float(rows[0]["compression_ratio"]) == 0.875


def test_what_is_there_is_left_alone(tmp_path):
    path, out = tmp_path / "r.jsonl", tmp_path / "out"
    write(path, CELL)
    (folder,) = write_kvpress(path, out)
    before = (folder / "predictions.csv").read_bytes()
    with pytest.raises(ValueError, match="another"):
        write_kvpress(path, out)
    assert (folder / "predictions.csv").read_bytes() == before


def test_a_share_of_the_context_is_its_own_ratio(tmp_path):
    path = tmp_path / "r.jsonl"
    write(path, replace(CELL, budget=0.05, length=0))
    (folder,) = write_kvpress(path, tmp_path / "out")
    assert folder.name == "ruler__all__llama__sparsekv_quest__0.95"
