"""What some queries attend to among listed tokens."""

import torch


def shares_of(
    q: torch.Tensor,
    q_positions: torch.Tensor,
    keys: torch.Tensor,
    k_positions: torch.Tensor,
    scale: float,
) -> torch.Tensor:
    """Softmax of queries over tokens that are not younger: float32 `[G, n, T]`.

    Args:
        q: `[n, G, D]`, queries of one KV head.
        q_positions: int64 `[n]`.
        keys: `[T, D]`, keys of that head.
        k_positions: int64 `[T]`.
        scale: of the softmax.
    """
    logits = q.movedim(1, 0).float() @ keys.float().T * scale
    later = k_positions > q_positions[:, None]
    return logits.masked_fill_(later, -torch.inf).softmax(-1).nan_to_num_(0.0)
