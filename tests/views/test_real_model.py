"""Every method keeps what its paper keeps, on the attention of a pretrained model."""

from pathlib import Path

import pytest
import torch

from bench.quality.dump import dump
from sgl_sparsekv.evaluation.tasks.real.document import real_document
from sgl_sparsekv.views import RequestView

from .paper import BLOCK, METHODS, Attention, fed, judge, kept_by, options_of

PROMPT, BUDGET = 1500, 192


@pytest.fixture(scope="module")
def attention(smollm2: Path) -> Attention:
    """All layers of SmolLM2 over a real text."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(smollm2)
    model = AutoModelForCausalLM.from_pretrained(smollm2, dtype=torch.float32)
    document = real_document(lambda text: list(tokenizer(text)["input_ids"]), 2 * PROMPT, 100, 1)
    ids = tokenizer(document.text)["input_ids"][: PROMPT + 1]
    found = dump(model, ids, range(PROMPT))
    q = torch.stack([layer.q for layer in found.layers])
    keys = torch.stack([layer.keys for layer in found.layers])
    return Attention(q, keys[:, :PROMPT], found.layers[0].scale)


@pytest.mark.soak
@pytest.mark.parametrize("method", METHODS)
def test_a_prompt_is_narrowed_as_the_paper_does(attention: Attention, method: str) -> None:
    options = options_of(method, budget=BUDGET, observation_window=32)
    view = RequestView.of(options, PROMPT, BLOCK)
    assert view is not None
    fed(view, attention, 0, PROMPT)
    everything = [[list(range(PROMPT))] * len(attention.heads)] * len(attention.layers)
    queries = range(PROMPT - 32, PROMPT)
    judge(method, attention, options, everything, queries, kept_by(view), near=1e-6)
