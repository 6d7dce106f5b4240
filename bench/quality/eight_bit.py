"""Page planes in 8 bits: what choosing would read if bounds were kept as integers and a scale."""

import torch

SCALE = 2
"""Bytes of the scale of a plane."""


def rounded(planes: torch.Tensor, names: tuple[str, ...]) -> torch.Tensor:
    """What integers of 8 bits with a scale per plane say, bounds rounded outwards.

    Args:
        planes: `[units, H, planes, W]`.
        names: of the planes; `min` is rounded down, `max` up, any other to the nearest.
    """
    wide = planes.float()
    scale = wide.abs().amax(-1, keepdim=True) / 127
    whole = wide / torch.where(scale > 0, scale, 1)
    rounds = {"min": torch.floor, "max": torch.ceil}
    found = [rounds.get(name, torch.round)(whole[:, :, i]) for i, name in enumerate(names)]
    return (torch.stack(found, 2) * scale).to(planes.dtype)
