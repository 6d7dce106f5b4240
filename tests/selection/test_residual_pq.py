"""What the default asks a device for."""

from types import SimpleNamespace
from typing import Any

import torch

from sgl_sparsekv.segment_records import ResidualIndex
from sgl_sparsekv.segments.residual import ResidualSummary
from sgl_sparsekv.selection import load_method


class Asked:
    """Ops that answer with what they were asked."""

    def score_codes(self, *how: Any) -> Any:
        return how

    def choose(self, *how: Any) -> Any:
        return how


def test_a_device_is_asked_to_look_up_as_many_tokens_as_the_budget_reaches() -> None:
    index = ResidualIndex.__new__(ResidualIndex)
    names = ("q", "keys", "candidates", "scale", "reduction", "known")
    inputs: Any = SimpleNamespace(**{name: name for name in names}, index=index)
    inputs.counts = torch.tensor([3, 5])
    method, ops = load_method("residual_pq"), Asked()
    *asked, reach = method.score(ops, inputs)  # type: ignore[arg-type]
    assert asked == ["q", "keys", index, "candidates", "scale", "reduction", "known"]
    assert torch.equal(reach, inputs.counts * ResidualSummary.REACH)
    assert method.choose(ops, inputs) == (inputs, ResidualSummary.REACH)  # type: ignore[arg-type]
