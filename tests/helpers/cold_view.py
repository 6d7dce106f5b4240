"""The view of a request that is alone from its first token on."""

import torch

from sgl_sparsekv.selection import load_method
from sgl_sparsekv.views import RequestView

from .cold import ColdRun
from .toy_model import GROUP, HEADS, LAYERS, SCALE


def cold_view(cold: ColdRun, prompt: int, length: int) -> RequestView:
    """That of a request whose `prompt` was read at once, before the step over `length` tokens."""
    method, block = load_method(cold.options.method), cold.options.unit_size
    view = RequestView(method, cold.options, prompt, block)
    layers = range(cold.options.dense_layers, LAYERS)
    for now in range(prompt, length):
        first = 0 if now == prompt else now - 1
        for layer in layers:
            q = cold.model.queries(layer, cold.paths[first:now])
            view.observe(layer, q.view(len(q), HEADS, GROUP, -1), first)
            if view.is_due(now):
                keys = cold.model.keys(layer, cold.paths[:now])
                view.weigh(layer, keys, torch.arange(now), SCALE)
        view.settle(list(layers))
    return view


def viewed(cold: ColdRun, layer: int, prompt: int, length: int) -> list[list[int]]:
    """Positions `[H][n]` that a layer reads in the step over `length` tokens."""
    view = cold_view(cold, prompt, length)
    if not view.made:
        return [list(range(length))] * HEADS
    listed, counts = view.layers[layer].listed(length)
    return [head[:count].tolist() for head, count in zip(listed, counts.tolist(), strict=True)]
