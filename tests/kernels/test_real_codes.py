"""How often the Triton kernel gives keys of a pretrained model other codes than a CPU does.

A CPU computes in whole numbers; float32 cannot tell distances that are nearly equal, and a code
that falls the other way may lead the next iteration elsewhere. So codes differ somewhere, and what
counts is how well either stands for the keys.
"""

from pathlib import Path

import pytest
import torch
from coded import distances
from helpers.soak import record
from test_triton_index import built, own

from bench.quality.dump import dump
from sgl_sparsekv.evaluation.tasks.real.document import real_document
from sgl_sparsekv.segments.index import clusters, products
from sgl_sparsekv.summaries import CodeSummary

pytestmark = [pytest.mark.soak, pytest.mark.filterwarnings("ignore::RuntimeWarning:triton")]
SEGMENT, SEGMENTS, LAYERS = 512, 2, (0, 10, 20, 29)
KINDS = {"clusterkv": clusters(SEGMENT, 16), "pqcache": products(SEGMENT, 4, 4)}


@pytest.fixture(scope="module")
def keys(smollm2: Path) -> torch.Tensor:
    """Of some layers of SmolLM2 over a real text, as a cache holds them: `[layers, L, H, D]`."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(smollm2)
    model = AutoModelForCausalLM.from_pretrained(smollm2, dtype=torch.float32)
    length = SEGMENT * SEGMENTS
    document = real_document(lambda text: list(tokenizer(text)["input_ids"]), 2 * length, 100, 1)
    ids = tokenizer(document.text)["input_ids"][: length + 1]
    found = dump(model, ids, [length - 1])
    return torch.stack([found.layers[n].keys[:length] for n in LAYERS]).bfloat16()


def error(
    summary: CodeSummary, keys: torch.Tensor, codes: torch.Tensor, book: torch.Tensor
) -> float:
    """Sum of the distances of all tokens from what their codes stand for."""
    return float(own(distances(keys, codes, book, summary.cosine), codes).sum())


@pytest.mark.parametrize("method", KINDS)
def test_codes_of_a_real_models_keys(method: str, keys: torch.Tensor) -> None:
    """At most one of a hundred differs, and neither errs more than a thousandth above the other."""
    summary, differ, total, errors = KINDS[method], 0, 0, [0.0, 0.0]
    for layer in keys:
        for segment in layer.split(SEGMENT):
            index, wanted = built(summary, segment), summary.build(segment, 0)
            differ += int((index.codes[0] != wanted[0]).sum())
            total += wanted[0].numel()
            for i, (codes, book) in enumerate(((index.codes[0], index.codebooks[0]), wanted)):
                errors[i] += error(summary, segment, codes, book)
    apart = errors[0] / errors[1]
    print(f"{method}: {differ} of {total} codes differ, error {apart:.6f} of the CPU's")
    figures = {"codes": total, "differ": differ, "error_over_the_cpus": round(apart, 6)}
    about = {"model": "SmolLM2-135M-Instruct", "layers": LAYERS, "keys": "bfloat16"}
    record(f"device_codes_{method}", about | figures)
    assert differ <= 0.01 * total and abs(apart - 1) < 1e-3
