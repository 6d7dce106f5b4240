"""Summaries of units: by the op alone, and as workers of `score` and of prefill make them."""

import torch

from bench.gpu.gate import EPS
from bench.gpu.harvest.checks.inputs import Setting, each, fresh_units, prepare, put
from bench.gpu.harvest.differ import near, same
from bench.gpu.kernels import Run
from bench.gpu.step import SUMMARIES, Step
from sgl_sparsekv.ops import load_ops

AXES = ("unit", "head", "plane", "channel")


def check(run: Run) -> None:
    """The op, then the pending units of a step."""
    each(run, "summarise", alone)
    each(run, "summarise pending units", pending)


def alone(run: Run, setting: Setting) -> str:
    """`min_max` to the bit and `mean_std` within a rounding; other units are not touched.

    Raises:
        AssertionError: a channel differs.
    """
    step = prepare(run, setting)
    chosen = step.scene.units(setting.unit)[0, :-1:2].contiguous()
    for name, summary in SUMMARIES.items():
        got, want = (torch.full_like(step.fields[0], torch.nan) for _ in range(2))
        run.ops.summarise(summary, step.scene.kv[0][0], got, chosen)
        load_ops("reference").summarise(summary, step.scene.kv[0][0], want, chosen)
        compare(name, got, want)
    return f"{len(chosen)} units"


def pending(run: Run, setting: Setting) -> str:
    """What a prefill's launch writes for the units of the list.

    Raises:
        AssertionError: a channel differs.
    """
    step = prepare(run, setting)
    put(step)
    want = summarised(step)
    step.fused.summarise(step.scene.kv[0][0], {"min_max": step.fields[0]})
    compare("min_max", step.fields[0], want)
    return f"{len(fresh_units(step))} units"


def summarised(step: Step) -> torch.Tensor:
    """The fields as they must be when all pending units are written."""
    want = step.fields[0].clone()
    keys = step.scene.kv[0][0]
    load_ops("reference").summarise(SUMMARIES["min_max"], keys, want, fresh_units(step))
    return want


def compare(name: str, got: torch.Tensor, want: torch.Tensor) -> None:
    """Fields `[units, H, 2, D]`.

    Raises:
        AssertionError: a channel differs.
    """
    same(f"{name}: what is NaN", got.isnan(), want.isnan(), AXES)
    got, want = got.nan_to_num(), want.nan_to_num()
    if name == "min_max":
        same(name, got, want, AXES)
    else:
        near(name, got, want, 2.02 * EPS[want.dtype] * want.double().abs() + 1e-6, AXES)
