"""The text model foretells running text and quotes, and its training repeats by seed."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest
import torch
from helpers.stop import StoppedAt

from sgl_sparsekv.models import build_text_tokenizer, load_text, text, train_text
from sgl_sparsekv.models.checkpoint import Checkpoint
from sgl_sparsekv.models.corpus import TextSampler, library
from sgl_sparsekv.models.text import TEXT_WEIGHTS, TextStage
from sgl_sparsekv.models.weights import read_recipe


def _stream(count: int) -> list[int]:
    """Tokens of modules that were not trained on, `count` texts of them."""
    tokenizer = build_text_tokenizer()
    return [i for one in library(held_out=True)[:count] for i in tokenizer(one).input_ids]


def test_foretells_text_it_never_saw_and_quotes_of_it() -> None:
    ids = _stream(3)[:1200]
    asked = torch.tensor([*ids, *ids[300:332]])
    with torch.no_grad():
        logits = load_text()(asked[None], use_cache=False).logits[0, :-1]
    right = (logits.argmax(-1) == asked[1:]).float()
    assert right[600:1199].mean() > 0.3
    assert right[-24:].mean() > 0.7


def test_tokens_are_bytes_and_merges() -> None:
    tokenizer = build_text_tokenizer()
    written = "def naïve(x):\n    return x  # 日本\n"
    ids = tokenizer(written, add_special_tokens=False).input_ids
    assert tokenizer.decode(ids) == written
    assert len(tokenizer) == text.VOCABULARY


def test_samples_quote_what_came_before() -> None:
    sampler = TextSampler([list(range(2, 5000))], 0, 100_000)
    batch = sampler.batch(8, 512)
    assert batch.ids.shape == batch.positions.shape == batch.quoted.shape == (8, 512)
    assert 0.1 < batch.quoted.float().mean() < 0.4
    for ids, positions, quoted in zip(*(x.tolist() for x in vars(batch).values()), strict=True):
        assert all(a < b for a, b in pairwise(positions)) and positions[-1] < 100_000
        pairs = set()
        for i, pair in enumerate(pairwise(ids)):
            assert not quoted[i + 1] or pair in pairs
            pairs.add(pair)


def test_training_repeats_by_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    some = library(held_out=True)
    monkeypatch.setattr(text, "library", lambda held_out: some)
    ladder = (TextStage(64, 2, 2),)
    (first, about), (second, _) = (train_text(3, ladder) for _ in range(2))
    assert about["steps"] == 2 and about["seed"] == 3
    for a, b in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(a, b)


def test_a_stopped_training_goes_on_to_the_same_weights(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Behind its last finished stage."""
    some = library(held_out=True)
    monkeypatch.setattr(text, "library", lambda held_out: some)
    ladder, path = (TextStage(96, 2, 2), TextStage(128, 2, 2)), tmp_path / "m.part.pt"
    whole, about = train_text(3, ladder)
    steps = StoppedAt(4, text._train_step)
    monkeypatch.setattr(text, "_train_step", steps)
    with pytest.raises(KeyboardInterrupt):
        train_text(3, ladder, checkpoint=Checkpoint(path))
    parts, again = train_text(3, ladder, checkpoint=Checkpoint(path, resume=True))
    assert len(steps.calls) == 2 + 2 + 2
    assert again["steps"] == about["steps"] == 4 and again["merges"] == about["merges"]
    assert [stage["text"] for stage in again["reached"]] == [s["text"] for s in about["reached"]]
    for a, b in zip(whole.parameters(), parts.parameters(), strict=True):
        assert torch.equal(a, b)


def test_the_recipe_is_in_the_file() -> None:
    about = read_recipe(TEXT_WEIGHTS)
    assert about["steps"] == sum(stage.steps for stage in text.TEXT_LADDER)
    assert [stage["length"] for stage in about["reached"]] == [256, 1024, 4096]
    assert TEXT_WEIGHTS.stat().st_size < 2e6
