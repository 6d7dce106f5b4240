"""Keys of segments: noise, and bunches with a few large channels as rotated keys have them."""

import torch


def noise(
    tokens: int, heads: int = 3, width: int = 16, dtype: torch.dtype = torch.float32
) -> torch.Tensor:
    """Keys `[S, H, D]` without structure."""
    return torch.randn(tokens, heads, width).to(dtype)


def bunches(
    tokens: int, heads: int = 3, width: int = 16, dtype: torch.dtype = torch.float32
) -> torch.Tensor:
    """Keys `[S, H, D]` around eight centres of unequal weight, two channels ten times larger."""
    centres = torch.randn(8, heads, width)
    centres[..., :2] *= 10
    which = torch.distributions.Geometric(0.3).sample((tokens,)).long() % 8
    return (centres[which] + 0.3 * torch.randn(tokens, heads, width)).to(dtype)


KINDS = {"noise": noise, "bunches": bunches}
