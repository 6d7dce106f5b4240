"""Request options on the device, by row of `req_to_token`: what `begin` plans from."""

import torch

from ..config import RequestOptions
from ..fused_ops import FusedDecode
from ..selection import load_method

LONGEST = 1 << 30
"""Tokens; more than any context, and sums of two still fit in 32 bits."""


class OptionTable:
    """Keeps the device's table of options equal to the requests that own the rows.

    Writes are ordered on the forward stream before the step that needs them. The host's copy is
    page-locked, so a write neither waits nor allocates.
    """

    def __init__(self, step: FusedDecode, default: RequestOptions) -> None:
        self._step = step
        options, ratios = step.buffers.options, step.buffers.ratios
        pinned = options.device.type == "cuda"
        self._options = torch.zeros(options.shape, dtype=options.dtype, pin_memory=pinned)
        self._ratios = torch.zeros(ratios.shape, dtype=ratios.dtype, pin_memory=pinned)
        cover = step.buffers.cover
        self._asked = cover if cover is None else torch.zeros_like(cover.asked, pin_memory=pinned)
        self._written: dict[int, RequestOptions] = {}
        self._options[:] = torch.tensor(self._values(default), dtype=torch.int32)
        self._ratios[:] = self._ratio(default)
        options.copy_(self._options)
        ratios.copy_(self._ratios)
        if self._asked is not None:
            self._asked[:] = default.coverage or 0.0
            cover.asked.copy_(self._asked)

    def bind(self, row: int, options: RequestOptions) -> None:
        """Give a row the options of the request that owns it now."""
        if self._written.get(row) == options:
            return
        self._written[row] = options
        self._options[row] = torch.tensor(self._values(options), dtype=torch.int32)
        self._ratios[row] = self._ratio(options)
        device = self._step.buffers
        device.options[row].copy_(self._options[row], non_blocking=True)
        here = slice(row, row + 1)
        device.ratios[here].copy_(self._ratios[here], non_blocking=True)
        if self._asked is not None:
            self._asked[row] = options.coverage or 0.0
            device.cover.asked[here].copy_(self._asked[here], non_blocking=True)

    def _values(self, options: RequestOptions) -> list[int]:
        """formula, budget, least budget, sink, window, dense layers, how fine its units are"""
        method, unit = load_method(options.method), self._step.shape.unit_size
        tokens = options.budget if isinstance(options.budget, int) else 0
        counts = (tokens, options.minimum_budget, options.sink, options.window)
        return [
            self._step.formula(method.formula),
            *(min(count, LONGEST) for count in counts),
            options.dense_layers,
            (unit // method.ranked_unit(unit)).bit_length() - 1,
        ]

    def _ratio(self, options: RequestOptions) -> float:
        return 0.0 if isinstance(options.budget, int) else options.budget
