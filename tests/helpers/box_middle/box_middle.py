import torch

from sgl_sparsekv.selection.base import SummaryMethod
from sgl_sparsekv.summaries import PageSummary

REACH = 0.25


def middle_and_half(keys: torch.Tensor) -> torch.Tensor:
    """Keys `[m, unit, H, D]` -> middle and half width of their box, `[m, H, 2, D]`."""
    low, high = keys.float().amin(1), keys.float().amax(1)
    return torch.stack(((low + high) * 0.5, (high - low) * 0.5), -2).to(keys.dtype)


def toward_the_bound(q: torch.Tensor, planes: torch.Tensor) -> torch.Tensor:
    """q `[..., G, D]`, planes `[..., u, 2, D]` -> `[..., G, u]`: a quarter of the way to it."""
    return q @ planes[..., 0, :].mT + REACH * q.abs() @ planes[..., 1, :].mT


class BoxMiddle(SummaryMethod):
    name = "box_middle"
    formula = "own"
    summary = PageSummary(
        "box_middle", ("middle", "half"), middle_and_half, toward_the_bound, ulps=1,
        kernels="box_middle_triton:PLANES",
    )  # fmt: skip
