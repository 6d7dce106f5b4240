"""Codes the analytic model matches: no two alike by more than half."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable
from typing import Literal, get_args

import torch

CodeKind = Literal["sparse", "dense", "gaussian"]
CODE_DIM = 31
_OVERLAP = 0.5


def check_kind(kind: str) -> None:
    """Raises ValueError unless `kind` is one of `CodeKind`."""
    if kind not in get_args(CodeKind):
        raise ValueError(f"code must be one of {', '.join(get_args(CodeKind))}, got {kind}")


def key_codes(kind: CodeKind, count: int, seed: int) -> torch.Tensor:
    """Unit codes `[count, CODE_DIM]` whose products are at most 1/2."""
    check_kind(kind)
    if kind == "sparse":
        return _quadruples(count, seed)
    generator = torch.Generator().manual_seed(seed)
    draw = _signs if kind == "dense" else _gaussian
    return _apart(lambda n: draw(generator, n, CODE_DIM), count, _OVERLAP)


def identity_codes(count: int, dim: int, seed: int) -> torch.Tensor:
    """Codes of +-1 `[count, dim]` whose products are at most 3/8 of `dim` in size."""
    generator = torch.Generator().manual_seed(seed)
    unit = _apart(lambda n: _signs(generator, n, dim), count, 0.375, both_signs=True)
    return unit.sign()


def _quadruples(count: int, seed: int) -> torch.Tensor:
    """Four ones of size 1/2 each; any two codes share at most two of them.

    The quadruples with a ^ b ^ c ^ d = 0 form a Steiner system: three of its places fix the fourth.
    """
    rows = [
        (a, b, c, a ^ b ^ c)
        for a, b, c in itertools.combinations(range(1, CODE_DIM + 1), 3)
        if a ^ b ^ c > c
    ]
    random.Random(seed).shuffle(rows)
    out = torch.zeros(count, CODE_DIM)
    out.scatter_(1, torch.tensor(rows[:count]) - 1, 0.5)
    return out


def _signs(generator: torch.Generator, n: int, dim: int) -> torch.Tensor:
    return torch.randint(0, 2, (n, dim), generator=generator).mul(2.0).sub(1.0).div(dim**0.5)


def _gaussian(generator: torch.Generator, n: int, dim: int) -> torch.Tensor:
    return torch.nn.functional.normalize(torch.randn(n, dim, generator=generator), dim=-1)


def _apart(
    draw: Callable[[int], torch.Tensor], count: int, overlap: float, both_signs: bool = False
) -> torch.Tensor:
    """Greedy: keeps each drawn row whose product with every kept row is at most `overlap`."""
    kept = draw(1)
    while len(kept) < count:
        fresh = draw(256)
        product = fresh @ kept.T
        near = (product.abs() if both_signs else product).amax(1) > overlap + 1e-6
        for row in fresh[~near][:64]:
            product = kept @ row
            if (product.abs() if both_signs else product).max() <= overlap + 1e-6:
                kept = torch.cat([kept, row[None]])
    return kept[:count]


def signed_codes(count: int, dim: int, seed: int, weight: int = 4) -> torch.Tensor:
    """Codes `[count, dim]` of `weight` entries +-1 and zeros; products at most `weight` / 2."""
    generator = torch.Generator().manual_seed(seed)

    def draw(n: int) -> torch.Tensor:
        places = torch.rand(n, dim, generator=generator).topk(weight, dim=-1).indices
        signs = torch.randint(0, 2, (n, weight), generator=generator) * 2.0 - 1.0
        return torch.zeros(n, dim).scatter_(1, places, signs / weight**0.5)

    return _apart(draw, count, _OVERLAP).sign()
