"""What a request is told it read, when SGLang starts it over."""

from array import array
from typing import Any

import pytest

from sgl_sparsekv.backend.request_table import RequestTable
from sgl_sparsekv.config import ServerOptions


def request(**more: Any) -> Any:
    """SGLang's own, holding nothing."""
    from sglang.srt.managers.schedule_batch import Req
    from sglang.srt.sampling.sampling_params import SamplingParams

    return Req("one", "", array("q", [1, 2, 3]), SamplingParams(), **more)


@pytest.mark.parametrize(("embeds", "counted"), [([[0.5, 1.0]] * 3, 2), (None, 5)])
def test_steps_whose_output_was_thrown_away_are_not_told(
    sglang: None, embeds: list[list[float]] | None, counted: int
) -> None:
    """SGLang restarts a retracted prompt of embeddings at zero, and goes on with any other."""
    table, req = RequestTable(ServerOptions()), request(input_embeds=embeds)
    table.note(4, req)
    for _ in range(3):
        table.record(4, attended=10, in_context=100, length=50)
    table.entry(4).telemetry.steps = 3
    req.output_ids.extend([7, 7, 7])
    req.reset_for_retract()
    for row in (6, 6):
        table.note(row, req)
        table.record(row, attended=10, in_context=100, length=50)
    report = table.report("one")
    assert report is not None and report["decode_steps"] == counted
    assert (report["tokens_attended"], report["tokens_in_context"]) == (10 * counted, 100 * counted)
    assert table.entry(6).telemetry.steps == (0 if embeds else 3)
    assert len(req.output_ids) == (0 if embeds else 3), "as SGLang does it"
