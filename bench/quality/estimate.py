"""What was not read of clusters, put in place of nothing: centroids and sums of values."""

import torch

from bench.quality.methods import Runner
from sgl_sparsekv.ops import load_ops
from sgl_sparsekv.segments.choose import estimate
from sgl_sparsekv.types import SegmentIndex, Selection

State = tuple[torch.Tensor, torch.Tensor]


def with_estimate(runner: Runner, selection: Selection, state: State) -> State:
    """Join what was read with the estimate of the rest of the clustered tokens.

    RetroInfer (arXiv 2505.02922) leaves out clusters that were read in part; here what was read is
    taken out of a cluster's size and sum of values, so nothing counts twice and nothing is lost.

    Args:
        runner: of a variant with one code per token.
        selection: single tokens.
        state: out `[rows, H, G, Dv]` and lse `[rows, H, G]` of what was read.
    """
    index, layer = runner.index, runner.layer
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
