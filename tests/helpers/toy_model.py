"""A model whose keys depend on the token and on everything before it, as in a real one.

What a page holds is then a function of its root path alone, and two requests that share a path
must find the same keys. Entries are halves of small integers: sums of products are exact in
float32, so bounds and dot products can be compared without a tolerance, and ties are common.
"""

from dataclasses import dataclass

import torch

from sgl_sparsekv.backend.layers import UNBOUNDED, ModelLayers

LAYERS, HEADS, GROUP, DIM = 2, 2, 2, 8
SCALE = DIM**-0.5
SYMBOLS = 4
"""Size of the vocabulary: prompts collide on purpose."""
_STATES = 4093
_MASK = (1 << 61) - 1


def toy_layers() -> ModelLayers:
    """Layers that can all be sparse."""
    return ModelLayers(range(LAYERS), [UNBOUNDED] * LAYERS, [True] * LAYERS)


@dataclass
class ToyModel:
    """Tables of keys, values and queries by the hash of a root path.

    Attributes:
        dtype: element type of keys, values and queries.
        version: another one gives other keys for the same tokens (an update of the weights).
    """

    dtype: torch.dtype
    version: int = 0

    def __post_init__(self) -> None:
        generator = torch.Generator().manual_seed(7)

        def table(*shape: int) -> torch.Tensor:
            drawn = torch.randn(LAYERS, _STATES, *shape, generator=generator)
            return ((drawn * 2).round() / 2).to(self.dtype)

        self._keys = table(HEADS, DIM)
        self._values = table(HEADS, DIM)
        self._queries = table(HEADS * GROUP, DIM)

    def paths(self, tokens: list[int], namespace: str | None = None) -> list[int]:
        """Hash of the root path of each position."""
        state = self.version * 7919 + sum(map(ord, namespace or ""))
        hashes = []
        for token in tokens:
            state = (state * 6364136223846793005 + token + 1442695040888963407) & _MASK
            hashes.append((state >> 20) % _STATES)
        return hashes

    def keys(self, layer: int, paths: list[int]) -> torch.Tensor:
        """K `[tokens, H, D]` of positions with these paths."""
        return self._keys[layer, torch.tensor(paths, dtype=torch.int64)]

    def values(self, layer: int, paths: list[int]) -> torch.Tensor:
        """V `[tokens, H, D]`."""
        return self._values[layer, torch.tensor(paths, dtype=torch.int64)]

    def queries(self, layer: int, paths: list[int]) -> torch.Tensor:
        """Q `[tokens, H * G, D]`."""
        return self._queries[layer, torch.tensor(paths, dtype=torch.int64)]

    def next_token(self, paths: list[int]) -> int:
        """Greedy continuation: the same prompt is continued in the same way."""
        return paths[-1] % SYMBOLS
