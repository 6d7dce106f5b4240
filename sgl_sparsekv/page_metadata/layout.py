"""The shape of what is summarised."""

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class KeyLayout:
    """What one layer's K looks like: `[slots, num_kv_heads, head_dim]` of `dtype`.

    Attributes:
        values: channels of V; None: those of K.
    """

    num_layers: int
    num_kv_heads: int
    head_dim: int
    dtype: torch.dtype
    values: int | None = None

    @property
    def v_head_dim(self) -> int:
        """Channels of V."""
        return self.values or self.head_dim
