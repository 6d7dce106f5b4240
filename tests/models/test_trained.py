"""The shipped weights answer, with every page or a few, and say how they were made."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from helpers.stop import StoppedAt

from sgl_sparsekv.models import (
    build_trained_tokenizer,
    load_trained,
    needle_document,
    recipe,
    trained,
)
from sgl_sparsekv.models.checkpoint import Checkpoint
from sgl_sparsekv.models.curriculum import Sampler, Stage
from sgl_sparsekv.models.simulate import Selector, accuracy, answers
from sgl_sparsekv.models.trained import train
from sgl_sparsekv.models.training import tail_forward


def test_answers_at_4k() -> None:
    document = needle_document(4096)
    selectors = [Selector(), Selector("quest"), Selector("recent")]
    model = load_trained()
    dense, quest, recent = answers(model, build_trained_tokenizer(), document, selectors)
    assert accuracy(document, dense)[1] == 1.0
    assert accuracy(document, quest)[1] == 1.0
    assert accuracy(document, recent)[1] == 0.0


def test_training_forward_is_the_models_own() -> None:
    model = load_trained()
    batch = Sampler(1, 65536).batch(Stage(128, 2, 1e-3, 1.0, 1, 1))
    logits, _ = tail_forward(model, batch)
    with torch.no_grad():
        full = model(batch.ids, position_ids=batch.positions).logits[:, -batch.tail :]
    torch.testing.assert_close(logits, full, rtol=1e-3, atol=1e-3)


def test_training_repeats_by_seed_and_records_itself() -> None:
    ladder = (Stage(64, 2, 1e-3, 1.0, 2, 2),)
    first, about = train(3, ladder)
    second, _ = train(3, ladder)
    assert about["steps"] == 2 and about["seed"] == 3
    for a, b in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(a, b)


def test_a_stopped_training_goes_on_to_the_same_weights(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Behind its last finished stage; the file of another recipe is refused."""
    ladder = (Stage(64, 2, 1e-3, 1.0, 2, 2), Stage(96, 1, 1e-3, 1.0, 2, 2))
    path = tmp_path / "m.part.pt"
    whole, about = train(3, ladder)
    steps = StoppedAt(4, trained._train_step)
    monkeypatch.setattr(trained, "_train_step", steps)
    with pytest.raises(KeyboardInterrupt):
        train(3, ladder, checkpoint=Checkpoint(path))
    with pytest.raises(ValueError, match="is there already; --resume goes on with it"):
        Checkpoint(path)
    with pytest.raises(ValueError, match="has seed 3, asked for is 4"):
        train(4, ladder, checkpoint=Checkpoint(path, resume=True))
    parts, again = train(3, ladder, checkpoint=(kept := Checkpoint(path, resume=True)))
    assert len(steps.calls) == 2 + 2 + 2
    assert again == about | {"cpu_seconds": again["cpu_seconds"]}
    for a, b in zip(whole.parameters(), parts.parameters(), strict=True):
        assert torch.equal(a, b)
    kept.finish()
    assert not list(tmp_path.iterdir())


def test_recipe_is_in_the_file() -> None:
    about = recipe()
    assert about["steps"] > 0 and about["ladder"] and about["reached"]
