"""What the tests of the Triton kernels share.

Without a GPU the kernels run in Triton's interpreter (`tests/conftest.py`). It cannot multiply
bfloat16, so there the kernels widen both sides of every matrix product to float32 (`UPCAST`) and
the weights of `attend` are not rounded; and it truncates where a GPU rounds a result to bfloat16,
twice the error. Loads, stores, masks, addresses, control flow and float32 sums are the same. On a
GPU the same tests run with 16-bit operands, and the bands below grow by what that rounding allows.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import fields, is_dataclass
from typing import Any

import pytest
import torch
from cases import EPS, Batch, allowed_error, attention
from sgl_sparsekv.kernels.reference import load as load_reference
from sgl_sparsekv.kernels.reference.rows import candidate_spans, reduce_group, unit_rows
from sgl_sparsekv.kernels.triton import load, ops, tuning
from sgl_sparsekv.kernels.triton.cuda import emulation
from sgl_sparsekv.kernels.triton.launch import interpreted
from sgl_sparsekv.kernels.triton.spec import SPREAD

from sgl_sparsekv.selection.mean_std import MeanStd
from sgl_sparsekv.selection.quest import Quest
from sgl_sparsekv.selection.quest_int8 import QuestInt8
from sgl_sparsekv.types import Candidates, Reduction

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
REFERENCE = load_reference()
REDUCTIONS = (Reduction.MAX_SOFTMAX, Reduction.MEAN_SOFTMAX)
"""Those with kernels here."""
SUMMARIES = {"min_max": Quest.summary, "mean_std": MeanStd.summary}
ALL = SUMMARIES | {"min_max_int8": QuestInt8.summary}
"""Those that are built in, and one that brings its planes."""
SHAPES = [  # lengths, H, G, D, unit size, element type: every value of each, not every product
    ([4097], 2, 4, 128, 16, torch.bfloat16),
    ([511, 17, 1], 1, 8, 64, 32, torch.float16),
    ([16, 1, 15, 17, 33] * 3 + [65, 300], 2, 7, 96, 16, torch.bfloat16),
    ([1, 15, 900], 8, 1, 256, 64, torch.float16),
    ([16, 700, 130], 1, 4, 192, 16, torch.float32),
    ([4097], 1, 1, 80, 64, torch.bfloat16),
    ([127, 200, 64], 2, 8, 128, 32, torch.float32),
]


def moved(value: Any, device: torch.device) -> Any:
    """A tensor, or a bundle of tensors, on a device."""
    if isinstance(value, torch.Tensor):
        return value.to(device)
    if isinstance(value, tuple):
        return tuple(moved(part, device) for part in value)
    if is_dataclass(value) and isinstance(value, Candidates | Batch):
        parts = {field.name: moved(getattr(value, field.name), device) for field in fields(value)}
        return type(value)(**parts)
    return value


class HostOps:
    """`TritonOps` for tensors of the host: arguments go to the device, results come back."""

    def __init__(self) -> None:
        self.ops = load()

    def __getattr__(self, name: str) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            there = [moved(argument, DEVICE) for argument in arguments]
            result = getattr(self.ops, name)(*there)
            if name == "select":
                parts = (result.logical.cpu(), result.physical.cpu(), result.counts.cpu())
                return type(result)(*parts)
            return moved(result, torch.device("cpu"))

        return call

    def summarise(
        self, summary: object, keys: torch.Tensor, out: torch.Tensor, units: torch.Tensor
    ) -> None:
        """As `Ops.summarise`, in place."""
        there = out.to(DEVICE)
        self.ops.summarise(summary, keys.to(DEVICE), there, units.to(DEVICE))
        out.copy_(there)


@contextmanager
def select_by(who: str, order: int = 0) -> Iterator[None]:
    """`select` is served by one kernel on every GPU, or by the three of "narrow" where a row is
    longer than a chunk; see `emulation.order`."""
    with pytest.MonkeyPatch.context() as patch:
        one = "cuda" if who == "cuda" else "triton"
        patch.setattr(tuning, "SELECT_BY", dict.fromkeys(tuning.SELECT_BY, one))
        patch.setattr(
            ops, "is_narrowed", lambda ranked, _: who == "narrow" and ranked > ops.SELECT_CHUNK
        )
        patch.setattr(emulation, "order", order)
        yield


def candidate_fields(batch: Batch, name: str, ops: Any = REFERENCE) -> torch.Tensor:
    """Fields of the candidate units; NaN elsewhere."""
    units, summary = batch.keys.shape[0] // batch.unit_size, ALL[name]
    shape = (units, batch.keys.shape[1], *summary.shape(batch.keys.shape[2]))
    found = torch.full(shape, summary.poison, dtype=summary.dtype or batch.keys.dtype)
    spans = candidate_spans(batch.candidates)
    listed = [batch.table[row, begin:end] for row, begin, end in spans]
    if listed:
        ops.summarise(summary, batch.keys, found, torch.cat(listed).long())
    return found


def scores_in(
    wide: torch.dtype,
    name: str,
    q: torch.Tensor,
    source: torch.Tensor,
    candidates: Candidates,
    scale: float,
    reduction: Reduction,
    unit_size: int,
) -> torch.Tensor:
    """Scores by the reference's formula, computed in an element type.

    Args:
        source: fields of a summary, or keys when `name` is "exact".
    """
    shape = (*q.shape[:2], candidates.unit_table.shape[1])
    scores = torch.full(shape, -torch.inf, dtype=wide)
    for row, begin, end in candidate_spans(candidates):
        units = candidates.unit_table[row, begin:end].long()
        if name == "exact":
            k = unit_rows(source, units, unit_size).to(wide)
            logits = torch.einsum("hgd,uthd->hgut", q[row].to(wide), k) * scale
            estimate = logits.logsumexp(-1)
        else:
            planes = source[units].movedim(1, 0).to(wide)
            estimate = ALL[name].score(q[row].to(wide), planes) * scale
        scores[row, :, begin:end] = reduce_group(estimate, reduction)
    return scores


def score_band(
    exact: torch.Tensor, low: torch.Tensor, name: str, q: torch.Tensor, scale: float
) -> torch.Tensor:
    """Error allowed of scores, given in float64 and float32.

    On a GPU the squares of `mean_std` are multiplied with 10 bits of fraction: the variance errs by
    at most 2^-9 of itself, its root by 2^-10, and softmax over candidates may double that. Standard
    deviations of the tests' keys stay below 2.
    """
    inside = exact > -torch.inf
    band = torch.zeros_like(exact)
    if inside.any():
        band[inside] = allowed_error(exact[inside], low[inside], torch.float32)
    if name == "mean_std" and not interpreted() and q.dtype is not torch.float32:
        band += 2**-9 * scale * SPREAD * 2 * q.double().norm(dim=-1).max()
    return band


def compare_attention(
    out: torch.Tensor, lse: torch.Tensor | None, batch: Batch, row: int, lists: torch.Tensor | None,
    scale: float,
) -> None:  # fmt: skip
    """One row's result against float64 attention over listed logical units `[H, n]`, or all."""
    dtype, unit, length = batch.q.dtype, batch.unit_size, batch.lengths[row]
    slots = batch.slots(row)
    for head in range(batch.q.shape[1]):
        tokens = torch.arange(length)
        if lists is not None:
            tokens = (lists[head].long()[:, None] * unit + torch.arange(unit)).reshape(-1)
            tokens = tokens[tokens < length]
        chosen = slots[tokens]
        parts = (batch.q[row, head], batch.keys[chosen, head], batch.values[chosen, head])
        exact = attention(*(x.double() for x in parts), scale)
        low = attention(*(x.float() for x in parts), scale)
        band = allowed_error(exact[0], low[0], dtype)
        if dtype is torch.bfloat16 and interpreted():
            band = band + EPS[dtype] * exact[0].abs()
        elif dtype is not torch.float32 and not interpreted():  # weights are rounded once
            weights = (parts[0].double() @ parts[1].double().T * scale).softmax(-1)
            band = band + 2 * EPS[dtype] * (weights @ parts[2].double().abs())
        assert ((out[row, head].double() - exact[0]).abs() <= band).all()
        if lse is not None:
            band = allowed_error(exact[1], low[1], torch.float32) + 1e-6
            assert ((lse[row, head].double() - exact[1]).abs() <= band).all()
