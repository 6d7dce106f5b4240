"""Views of the requests of one step on a GPU: noted in it, made between two of them.

Every decode step leaves the queries of its rows, every prefill the last ones of its prompts, in
rings on the device. What a step made due is made before the next one (`making.py`); a step in
which nothing is due waits for nothing.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from ...config import RequestOptions
from ...selection.policy import IntArray
from ...types import ViewShape
from ..observer import StepObserver
from ..request_table import RequestEntry
from .device_view import DeviceView
from .making import ViewMaker
from .store import ViewPlace

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Noted:
    """Tokens of a prefill whose queries a view takes.

    Attributes:
        view: of their request.
        tokens: int64 `[n]`, which of the step's.
        places: int64 `[n]`, where in a layer's ring.
    """

    view: DeviceView
    tokens: torch.Tensor
    places: torch.Tensor


class DeviceViews:
    """Views of one scheduler's requests.

    Attributes:
        store: where they lie.

    Args:
        maker: makes them.
    """

    def __init__(self, maker: ViewMaker) -> None:
        self.store, self._maker = maker.store, maker
        self._extending: list[_Noted] = []
        self._short = False

    @property
    def shape(self) -> ViewShape:
        """What there is room for."""
        return self.store.shape

    def view_of(self, options: RequestOptions, prompt: int, block: int) -> DeviceView | None:
        """See `RequestTable.view_of`."""
        return DeviceView.on(self.store, options, prompt, block)

    # -- once per step ---------------------------------------------------------------------

    def begin_step(self) -> None:
        """Forget the prompts of the last step."""
        self._extending.clear()

    def extend(self, entry: RequestEntry, tokens: slice, length: int) -> None:
        """A row reads a part of its prompt: the last tokens of its context of `length`."""
        view = self._view(entry)
        place = None if view is None else self._enter(view)
        if view is None or place is None:
            return
        first = length - (tokens.stop - tokens.start)
        view.note(first, length)
        newest = torch.arange(max(first, length - place.size), length)
        device = self.store.buffers.kept.device
        here = (newest - first + tokens.start).to(device)
        self._extending.append(_Noted(view, here, (newest % place.size).to(device)))

    def narrowed(
        self, rows: IntArray, entries: Sequence[RequestEntry], lengths: IntArray
    ) -> list[bool]:
        """Which of the requests that decode in contexts of `lengths` tokens have a view; what is
        due is made."""
        each = zip(rows.tolist(), entries, lengths.tolist(), strict=True)
        return [self._settled(*one) for one in each]

    def _settled(self, row: int, entry: RequestEntry, length: int) -> bool:
        view = self._view(entry)
        if view is None or self._enter(view) is None:
            return False
        while view.due and view.due < length:
            self._maker.make(view, row)
        if length <= max(view.made, view.due):  # its last tokens were taken back
            view.unmade()
        return view.made > 0

    def decode(
        self, entries: Sequence[RequestEntry], lengths: IntArray, observer: StepObserver
    ) -> None:
        """Rows decode in a sparse step, in contexts of `lengths` tokens."""
        for place, (entry, length) in enumerate(zip(entries, lengths.tolist(), strict=True)):
            view = self._view(entry)
            if view is None or view.place is None:
                continue
            if view.made:
                observer.read_beside(place, view.tokens(length), self.store.heads)
            view.note(length - 1, length)

    def bind(self, row: int, entry: RequestEntry) -> None:
        """Say on the device whose view a row has."""
        view = self._view(entry)
        self.store.bind(row, None if view is None else view.place)

    def listed(self, layer: int, entry: RequestEntry, length: int) -> torch.Tensor | None:
        """Positions int32 `[H, n]` that a row reads in a layer, -1 behind them; None: all."""
        view = self._view(entry)
        if view is None or not view.made or layer not in view.layers:
            return None
        return view.layers[layer].listed(length)[0]

    def _view(self, entry: RequestEntry) -> DeviceView | None:
        """That of a request which has layers that can be narrowed."""
        view = entry.view
        return view if isinstance(view, DeviceView) and self._maker.narrows(view) else None

    def _enter(self, view: DeviceView) -> ViewPlace | None:
        place = view.enter()
        if place is None and not (self._short or view.ended):
            self._short = True
            logger.warning(
                "sparsekv: no room for the view of a request: such requests read everything until "
                "others end"
            )
        return place

    # -- once per layer of a prefill -------------------------------------------------------

    @property
    def extends(self) -> bool:
        """Whether a prompt is read whose queries a view takes."""
        return bool(self._extending)

    def extended(self, number: int, q: torch.Tensor) -> None:
        """Prompts were read in a layer: q `[tokens, H * G * D]`."""
        for noted in self._extending:
            if noted.view.place is not None and number >= noted.view.options.dense_layers:
                nth = number - self.shape.first_layer
                ring = self.store.ring(noted.view.place, nth)
                ring.index_copy_(0, noted.places, q[noted.tokens].to(ring.dtype))
