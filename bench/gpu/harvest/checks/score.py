"""`score`: the estimate of every query head and candidate, and what normalises them."""

import torch
from sgl_sparsekv.kernels.triton.spec import SPREAD

from bench.gpu.gate import SLACK
from bench.gpu.harvest.checks.inputs import Setting, candidates, each, prepare, put, rows_of
from bench.gpu.harvest.checks.summaries import compare, summarised
from bench.gpu.harvest.differ import near
from bench.gpu.kernels import Run
from bench.gpu.step import SUMMARIES, Step
from sgl_sparsekv.ops import load_ops
from sgl_sparsekv.types import Candidates, Reduction

WIDEST = 2.0
"""Standard deviations of normal keys stay below it."""
SPAN = 256
"""Units from which exact scores are taken."""


def check(run: Run) -> None:
    """As a step launches it, then the ops."""
    each(run, "score in a step", in_step)
    each(run, "score by min_max and mean_std", alone)
    each(run, "score by keys", exact)


def in_step(run: Run, setting: Setting) -> str:
    """Logits of all candidates, of those without a stamp too; sums; fields of pending units.

    Raises:
        AssertionError: one differs.
    """
    step = prepare(run, setting)
    plan, held = put(step), step.fused.buffers
    written = summarised(step)
    held.logits.fill_(torch.nan)
    held.parts[:, :, :, 0], held.parts[:, :, :, 1] = -torch.inf, 0.0
    step.score(0)
    for row in rows_of(setting):
        span = slice(int(plan.begin[row]), int(plan.end[row]))
        want = reference_logits(step, written, row)[:, :, span]
        got = held.logits[row, :, :, span]
        near(f"logits of row {row}", got, want, SLACK, ("head", "query", "candidate"))
        got, want = step.normaliser()[row], want.double().logsumexp(-1)
        near(f"sum over candidates of row {row}", got, want, SLACK, ("head", "query"))
    compare("min_max", step.fields[0], written)
    return f"{len(rows_of(setting))} of {setting.shape.batch} rows"


def reference_logits(step: Step, fields: torch.Tensor, row: int) -> torch.Tensor:
    """Scaled bounds of all units, float32 `[H, G, U]`; -inf where a unit has no fields."""
    formula = SUMMARIES["min_max"].score
    assert formula is not None
    planes = fields[step.scene.units(step.unit)[row]].movedim(1, 0).float()
    made = formula(step.scene.q[row].float(), planes) * step.scene.extents.scale
    return made.nan_to_num(-torch.inf)


def alone(run: Run, setting: Setting) -> str:
    """Log of the reduced softmax, from fields.

    Raises:
        AssertionError: a score differs.
    """
    step = prepare(run, setting)
    at, keys = candidates(step, put(step)), step.scene.kv[0][0]
    for summary in SUMMARIES.values():
        fields = torch.zeros_like(step.fields[0])
        units = at.unit_table.flatten().unique().long()
        load_ops("reference").summarise(summary, keys, fields, units)
        arguments = (step.scene.q, fields, at, step.scene.extents.scale, Reduction.MAX_SOFTMAX)
        want = load_ops("reference").score(summary, *arguments)
        band = SLACK
        if summary.name == "mean_std":  # squares in TF32: of the root 2^-10, twice in a softmax
            longest = float(step.scene.q.double().norm(dim=-1).max())
            band += 2**-9 * SPREAD * WIDEST * step.scene.extents.scale * longest
        found = run.ops.score(summary, *arguments)
        within(f"scores by {summary.name}", found, want, at, band)
    return f"{setting.shape.batch} rows"


def exact(run: Run, setting: Setting) -> str:
    """Log of the reduced softmax, from the keys themselves.

    Raises:
        AssertionError: a score differs.
    """
    step = prepare(run, setting)
    full = candidates(step, put(step))
    at = Candidates(full.unit_table, full.begin, full.end.minimum(full.begin + SPAN))
    keys = step.scene.kv[0][0]
    arguments = (
        step.scene.q, keys, at, step.scene.extents.scale, Reduction.MAX_SOFTMAX, setting.unit
    )  # fmt: skip
    want = load_ops("reference").score_exact(*arguments)
    within("scores by keys", run.ops.score_exact(*arguments), want, at)
    return f"{setting.shape.batch} rows, {SPAN} units at most"


def within(
    what: str, got: torch.Tensor, want: torch.Tensor, at: Candidates, band: float = SLACK
) -> None:
    """Compare candidates alone.

    Raises:
        AssertionError: a score differs.
    """
    unit = torch.arange(want.shape[-1], device=want.device)
    inside = (unit >= at.begin[:, None]) & (unit < at.end[:, None])
    near(what, got.where(inside[:, None], 0.0), want.where(inside[:, None], 0.0), band)
