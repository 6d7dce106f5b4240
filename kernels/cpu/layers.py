"""The ops of `sgl_sparsekv.layer_ops.LayerOps` on the CPU kernels."""

import torch

from .arguments import dtype_of, strides_of
from .library import Library


class CpuLayerOps:
    """Kernels for what is not attention."""

    _kernels: Library

    def linear(
        self, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None
    ) -> torch.Tensor:
        """See `LayerOps.linear`."""
        rows, inputs = x.shape
        outputs = weight.shape[0]
        out = x.new_empty(rows, outputs)
        self._kernels.linear(
            *(x.data_ptr(), weight.data_ptr(), 0 if bias is None else bias.data_ptr()),
            *(out.data_ptr(), rows, inputs, outputs, dtype_of(x, weight)),
            *(torch.get_num_threads(), strides_of(x=x)[0], strides_of(weight=weight)[0]),
        )
        return out

    def add_norm(
        self, x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, epsilon: float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """See `LayerOps.add_norm`."""
        out, total = x.new_empty(x.shape), x.new_empty(x.shape)
        self._kernels.norm(
            *(x.data_ptr(), residual.data_ptr(), weight.data_ptr(), out.data_ptr()),
            *(total.data_ptr(), *x.shape, dtype_of(x, weight), torch.get_num_threads()),
            *(strides_of(x=x)[0], strides_of(residual=residual)[0], epsilon),
        )
        return out, total

    def norm(self, x: torch.Tensor, weight: torch.Tensor, epsilon: float) -> torch.Tensor:
        """See `LayerOps.norm`."""
        out = x.new_empty(x.shape)
        self._kernels.norm(
            *(x.data_ptr(), 0, weight.data_ptr(), out.data_ptr(), 0, *x.shape),
            *(dtype_of(x, weight), torch.get_num_threads(), strides_of(x=x)[0], 0, epsilon),
        )
        return out

    def gate(self, x: torch.Tensor) -> torch.Tensor:
        """See `LayerOps.gate`."""
        rows, dim = x.shape[0], x.shape[1] // 2
        out = x.new_empty(rows, dim)
        self._kernels.gate(
            *(x.data_ptr(), out.data_ptr(), rows, dim, dtype_of(x, out)),
            *(torch.get_num_threads(), strides_of(x=x)[0]),
        )
        return out

    def rotate(
        self, q: torch.Tensor, k: torch.Tensor, table: torch.Tensor, positions: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """See `LayerOps.rotate`."""
        rows, q_heads, dim = q.shape
        assert q.stride(1) == k.stride(1) == dim and positions.is_contiguous()
        q_out, k_out = q.new_empty(q.shape), k.new_empty(k.shape)
        self._kernels.rotate(
            *(q.data_ptr(), k.data_ptr(), table.data_ptr(), positions.data_ptr()),
            *(q_out.data_ptr(), k_out.data_ptr(), rows, q_heads, k.shape[1], dim),
            *(table.shape[1] // 2, dtype_of(q, table), torch.get_num_threads()),
            *(strides_of(q=q)[0], strides_of(k=k)[0], strides_of(table=table)[0]),
        )
        return q_out, k_out
