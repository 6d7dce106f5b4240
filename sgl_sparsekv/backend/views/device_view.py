"""The view of a request that a GPU serves: the host's part, which knows no key and no query."""

import weakref

import torch

from ...config import RequestOptions
from ...selection import load_method
from ...selection.view import ViewMethod
from ...views import LayerView, RequestView
from .store import ViewPlace, ViewStore


class DeviceView(RequestView):
    """What it keeps lies in a `ViewStore`, as do its last queries; it has room there from its first
    step on, or none, and then reads everything.

    It is made between two steps, from keys and queries that the steps before have left.

    Attributes:
        place: what it owns; None: no room yet, or none any more.
        ended: the request did.
        due: tokens of the context for which it is to be made before the next step; 0: it is not.
        method: how tokens are chosen.
        options: of the request.
        block: tokens of a block, where whole blocks are given up.
    """

    def __init__(
        self,
        method: ViewMethod,
        options: RequestOptions,
        prompt: int,
        block: int,
        store: ViewStore,
    ) -> None:
        super().__init__(method, options, prompt, block)
        self.method, self.options, self.block = method, options, block
        self.place: ViewPlace | None = None
        self.due = 0
        self._store = store
        self._first = self._noted = 0
        self._release: weakref.finalize[..., DeviceView] | None = None
        self.ended = False

    @classmethod
    def on(
        cls, store: ViewStore, options: RequestOptions, prompt: int, block: int
    ) -> "DeviceView | None":
        """That of a request whose method keeps one, else None."""
        method = load_method(options.method)
        if not isinstance(method, ViewMethod):
            return None
        return cls(method, options, prompt, block, store)

    def unmade(self) -> "DeviceView":
        """The same view before it was read."""
        if self.place is not None:
            self._store.forget(self.place)
        self.made = self.due = self._first = self._noted = 0
        self.layers.clear()
        self._mass.clear()
        return self

    def enter(self) -> ViewPlace | None:
        """Its place, if there is room for it: one query more than it is made by, as a request that
        was retracted reads one token more before it is."""
        if self.place is None and not self.ended:
            self.place = self._store.admit(self._ring_size + 1)
            if self.place is not None:
                self._release = weakref.finalize(self, self._store.dropped.append, self.place)
                self._release.atexit = False
        return self.place

    def end(self) -> None:
        """The request ended: it owns nothing any more."""
        self.ended, self.place = True, None
        if self._release is not None:
            self._release()

    # -- queries that steps leave in its rings ---------------------------------------------

    @property
    def _end(self) -> int:
        return self._noted

    @property
    def _held(self) -> int:
        return self._noted - self._first

    def note(self, first: int, length: int) -> None:
        """A step leaves the queries of the positions from `first` to below `length`.

        A gap forgets what was before.
        """
        if self.place is None:
            return
        if not self._first <= first <= self._noted:
            self._first = first
        self._first, self._noted = max(self._first, length - self.place.size), length
        if not self.due and self.is_due(length):
            self.due = length

    def tokens(self, length: int) -> int:
        """How many it reads in a context of `length`, over layers and KV heads."""
        heads = sum(len(layer.counts) for layer in self.layers.values())
        kept = 0 if self.place is None else self.place.kept[1]
        return kept + heads * (length - self.made)

    def positions(self) -> range:
        """Those whose queries it is made by now."""
        goes_on = self.made and self.method.accumulates
        count = self.due - self.made if goes_on else self.options.observation_window
        return range(max(self._first, self.due - min(count, self._ring_size)), self.due)

    def keeps(
        self, number: int, counts: list[int], kept: torch.Tensor | None, mass: list[float] | None
    ) -> None:
        """Note what a layer keeps from now on: by KV head how many, and if it is to be told where
        they are, int32 `[H, n]`, and the share of attention they hold."""
        if kept is None:
            kept = torch.empty(len(counts), 0, dtype=torch.int32)
        self.layers[number] = LayerView(self.due, torch.tensor(counts), kept)
        if mass is not None:
            self._mass[number] = mass

    def was_made(self) -> None:
        """Every layer has said what it keeps."""
        self.made, self.due = self.due, 0
        if self.is_due(self._noted):  # read on while it was retracted
            self.due = self._noted
