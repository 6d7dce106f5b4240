"""What was not read of clusters, put in place of nothing: centroids and sums of values."""

import torch

from bench.quality.methods import Runner
from sgl_sparsekv.ops import load_ops
from sgl_sparsekv.segment_records import ResidualIndex, SegmentIndex
from sgl_sparsekv.segments.exact import dot, product_grid, total
from sgl_sparsekv.selection.policy import RowPlan
from sgl_sparsekv.summaries import ResidualSummary
from sgl_sparsekv.types import Reduction, Selection

State = tuple[torch.Tensor, torch.Tensor]


def with_estimate(runner: Runner, selection: Selection, plan: RowPlan, state: State) -> State:
    """Join what was read with the estimate of the rest of the clustered tokens.

    RetroInfer (arXiv 2505.02922) leaves out clusters that were read in part; here what was read is
    taken out of a cluster's size and sum of values, so nothing counts twice and nothing is lost.

    Args:
        runner: of a variant with one code per token, or a cluster and codes.
        selection: single tokens.
        plan: that was selected by.
        state: out `[rows, H, G, Dv]` and lse `[rows, H, G]` of what was read.
    """
    index, layer = runner.index, runner.layer
    if isinstance(index, ResidualIndex):
        spans, reach = runner.candidates(plan), runner.inputs(plan).counts * ResidualSummary.REACH
        how = (layer.scale, Reduction.MAX_SOFTMAX, reach, 1)
        weights = runner.ops.weigh(layer.q.float(), index, spans, selection, *how)
        return runner.ops.estimate(weights, index, *(one.contiguous() for one in state))
    assert isinstance(index, SegmentIndex)
    records, heads, _, size = index.codes.shape
    if not records:
        return state
    clusters = index.codebooks.shape[3]
    centroids = index.codebooks[:, :, 0].movedim(0, 1).flatten(1, 2)  # [H, records * C, D]
    first = torch.arange(records)[:, None, None] * clusters
    labels = (index.codes[:, :, 0].long() + first).movedim(0, 1).flatten(1)  # [H, records * S]
    values = layer.values.double().movedim(0, 1)
    every = _Clusters(
        torch.zeros(heads, records * clusters, values.shape[-1], dtype=torch.float64),
        torch.zeros(heads, records * clusters, dtype=torch.int64),
    ).added(labels, values[:, : records * size], 1)
    outs, lses = [], []
    for row, whole in enumerate((index.table >= 0).sum(-1).tolist()):
        tokens = selection.logical[row].long()
        inside = (tokens >= 0) & (tokens < whole * size)
        place = tokens.where(inside, 0)
        read = values.gather(1, place[..., None].expand(-1, -1, values.shape[-1]))
        left = every.added(labels.gather(1, place), read * inside[..., None], -inside.long())
        sizes = left.sizes.clone()
        sizes[:, whole * clusters :] = 0
        nothing = torch.zeros_like(sizes, dtype=torch.bool)
        out, lse = estimate(
            *(layer.q[row].float(), centroids, left.sums, sizes, nothing, layer.scale)
        )
        outs.append(out)
        lses.append(lse)
    return load_ops("reference").merge(*state, torch.stack(outs), torch.stack(lses))


class _Clusters:
    """Sums of values float64 `[H, C, Dv]` and sizes int64 `[H, C]`."""

    def __init__(self, sums: torch.Tensor, sizes: torch.Tensor) -> None:
        self.sums, self.sizes = sums, sizes

    def added(
        self, labels: torch.Tensor, values: torch.Tensor, count: torch.Tensor | int
    ) -> "_Clusters":
        """With tokens `[H, n]` more, each `count` times; a count of -1 takes them away."""
        counts = torch.as_tensor(count).expand(labels.shape)
        index = labels[..., None].expand(values.shape)
        sums = self.sums.scatter_add(1, index, values * counts[..., None])
        return _Clusters(sums, self.sizes.scatter_add(1, labels, counts))


def estimate(
    q: torch.Tensor,
    centroids: torch.Tensor,
    value_sums: torch.Tensor,
    sizes: torch.Tensor,
    chosen: torch.Tensor,
    scale: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention over clusters that were not read, every key taken to be its centroid.

    RetroInfer's estimation zone (arXiv 2505.02922): weight exp(scale q·centroid) for each of a
    cluster's tokens, so its values enter as their sum.

    Args:
        q: `[H, G, D]`.
        centroids: `[H, C, D]`.
        value_sums: `[H, C, Dv]`.
        sizes: int `[H, C]`.
        chosen: bool `[H, C]`, clusters that were read, if only in part.
        scale: softmax scale.

    Returns:
        out `[H, G, Dv]` in q's dtype and lse float32 `[H, G]`, mergeable with the attention state
        of what was read; 0 and -inf when every cluster was.
    """
    left_out = (chosen | (sizes == 0))[:, None]
    logits = dot(product_grid(q), product_grid(centroids)) * scale
    logits = logits.masked_fill(left_out, -torch.inf)
    lse = log_sum_exp(logits + sizes.double().log()[:, None])
    highest = logits.amax(-1, keepdim=True)
    weights = (logits - highest.masked_fill(highest == -torch.inf, 0)).exp()
    mass = total(weights * sizes[:, None])[..., None]
    out = dot(product_grid(weights), product_grid(value_sums.mT)) / mass.masked_fill(mass == 0, 1)
    return out.to(q.dtype), lse.float()


def log_sum_exp(x: torch.Tensor) -> torch.Tensor:
    """Over the last dimension, in float64: `[..., n]` -> `[...]`; -inf when all are."""
    top = x.double().amax(-1, keepdim=True)
    shifted = (x.double() - top.masked_fill(top == -torch.inf, 0)).exp()
    return top[..., 0] + total(shifted).clamp(min=torch.finfo(torch.float64).tiny).log()
