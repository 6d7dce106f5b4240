"""What the rules let through fits the tensors that SGLang makes of it, and keeps logits finite."""

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from sgl_sparsekv.serving.fields import LEAST, MOST_BIAS, SAMPLING
from sgl_sparsekv.serving.rules import INT32, INT64, Limits

pytestmark = pytest.mark.usefixtures("sglang")
VOCAB = 64
EXTREMES: dict[str, tuple[Any, ...]] = {
    "temperature": (0, LEAST, 1e-5, MOST_BIAS),
    "top_p": (LEAST, 1),
    "top_k": (-1, 1, 1 << 30),
    "min_p": (0, 1),
    "frequency_penalty": (-2, 2),
    "presence_penalty": (-2, 2),
    "repetition_penalty": (LEAST, 2),
    "min_new_tokens": (0, INT32),
    "max_new_tokens": (0, INT32),
    "sampling_seed": (-INT64 - 1, INT64),
    "logit_bias": ({"5": MOST_BIAS}, {"5": -MOST_BIAS}, {str(i): -MOST_BIAS for i in range(VOCAB)}),
    "stop_token_ids": ([0, VOCAB - 1],),
}


@dataclass(eq=False)
class Batch:
    """As much of SGLang's `ScheduleBatch`; its penalties refer to it weakly."""

    reqs: list[Any]
    device: str = "cpu"


def request(**params: Any) -> SimpleNamespace:
    """As much of SGLang's `Req` as sampling reads."""
    from sglang.srt.sampling.sampling_params import SamplingParams

    made = SamplingParams(**{"max_new_tokens": INT32, **params})
    made.verify(VOCAB)
    made.normalize(SimpleNamespace())
    return SimpleNamespace(
        sampling_params=made,
        custom_logit_processor=None,
        return_sampling_mask=False,
        sampling_logprobs_mode="selected",
        origin_input_ids=[5, 6],
        output_ids=[5],
        eos_token_ids={1},
        tokenizer=SimpleNamespace(additional_stop_token_ids=None, eos_token_id=1),
    )


def probabilities(**params: Any) -> torch.Tensor:
    """Of the next token, by SGLang's own steps, `[VOCAB]`."""
    from sglang.srt.sampling.sampling_batch_info import SamplingBatchInfo

    batch = Batch([request(**params)])
    info = SamplingBatchInfo.from_schedule_batch(batch, VOCAB)
    logits = torch.linspace(-50, 50, VOCAB).repeat(1, 1)
    info.penalizer_orchestrator.cumulate_output_tokens(torch.tensor([5]))
    info.update_penalties()
    info.apply_logits_bias(logits)
    logits.div_(info.temperatures)
    return torch.softmax(logits, dim=-1)[0]


@pytest.mark.parametrize(
    ("name", "value"), [(name, value) for name, values in EXTREMES.items() for value in values]
)
def test_an_extreme_that_passes_leaves_probabilities(name: str, value: Any) -> None:
    SAMPLING[name].check(name, value, Limits(VOCAB, 4096))
    found = probabilities(**{name: value})
    assert found.isfinite().all()
    assert found.sum().item() == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize(
    "params",
    [
        {"logit_bias": {"5": MOST_BIAS}, "temperature": LEAST},
        {"repetition_penalty": LEAST, "temperature": LEAST, "presence_penalty": 2},
        {"repetition_penalty": LEAST, "logit_bias": {"5": -MOST_BIAS}},
    ],
)
def test_extremes_together(params: dict[str, Any]) -> None:
    assert probabilities(**params).isfinite().all()


def test_what_the_rules_refuse_does_not_fit() -> None:
    """The two that were found first: nothing of them is SGLang's to refuse."""
    with pytest.raises(RuntimeError):
        probabilities(top_k=2**40)
    assert not probabilities(logit_bias={"5": 1e39}).isfinite().all()
