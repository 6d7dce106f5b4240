"""A method that is broken on purpose, as another package would bring it: it never looks at keys."""

import torch

from sgl_sparsekv.ops import Ops
from sgl_sparsekv.selection import SelectionMethod
from sgl_sparsekv.types import ScoreInputs


class RandomPages(SelectionMethod):
    """Units ranked by a hash of their position: the same ones whatever is asked."""

    name = "random_pages"

    def score(self, ops: Ops, inputs: ScoreInputs) -> torch.Tensor:
        """See `SelectionMethod.score`."""
        rows, width = inputs.candidates.unit_table.shape
        unit = torch.arange(width, device=inputs.q.device)
        head = torch.arange(inputs.q.shape[1], device=inputs.q.device)
        hashed = ((unit[None, :] * 2654435761 + head[:, None] * 40503) % 65_521).float()
        begin, end = inputs.candidates.begin[:, None], inputs.candidates.end[:, None]
        inside = ((unit >= begin) & (unit < end))[:, None, :]
        return torch.where(inside, hashed.expand(rows, -1, -1), -torch.inf).contiguous()
