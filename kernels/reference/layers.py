"""The ops of `sgl_sparsekv.layer_ops.LayerOps`, in float32 up to where they round."""

import torch


class ReferenceLayerOps:
    """Readable torch."""

    def linear(
        self, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None
    ) -> torch.Tensor:
        """See `LayerOps.linear`."""
        out = x.float() @ weight.float().T
        return (out if bias is None else out + bias.float()).to(x.dtype)

    def add_norm(
        self, x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, epsilon: float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """See `LayerOps.add_norm`."""
        total = x.float() + residual.float()
        return _norm(total, weight, epsilon).to(x.dtype), total.to(x.dtype)

    def norm(self, x: torch.Tensor, weight: torch.Tensor, epsilon: float) -> torch.Tensor:
        """See `LayerOps.norm`."""
        return _norm(x.float(), weight, epsilon).to(x.dtype)

    def gate(self, x: torch.Tensor) -> torch.Tensor:
        """See `LayerOps.gate`."""
        gate, up = x.chunk(2, dim=-1)
        return torch.nn.functional.silu(gate.float()).to(x.dtype) * up

    def rotate(
        self, q: torch.Tensor, k: torch.Tensor, table: torch.Tensor, positions: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """See `LayerOps.rotate`."""
        cosine, sine = table[positions][:, None].chunk(2, dim=-1)
        return _turned(q, cosine, sine), _turned(k, cosine, sine)


def _norm(x: torch.Tensor, weight: torch.Tensor, epsilon: float) -> torch.Tensor:
    """Of float32 x `[rows, D]`; Zhang and Sennrich 2019 (arXiv:1910.07467), equation 4."""
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + epsilon) * weight.float()


def _turned(x: torch.Tensor, cosine: torch.Tensor, sine: torch.Tensor) -> torch.Tensor:
    """x `[rows, H, D]` by angles `[rows, 1, R]`; Su et al. 2021 (arXiv:2104.09864), equation 34."""
    half = cosine.shape[-1]
    one, two, rest = x.split((half, half, x.shape[-1] - 2 * half), dim=-1)
    return torch.cat((one * cosine - two * sine, two * cosine + one * sine, rest), dim=-1)
