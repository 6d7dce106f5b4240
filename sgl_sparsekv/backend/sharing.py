"""Whose keys are these? What a sparse step made enters the radix tree, or stays out of it.

A step that reads less than everything makes keys that dense attention would not have made: above
the first sparse layer their input came through what was read. A request with `share_generated` off
keeps them to itself: the tree gets its text up to the first such token. What prefill made, and what
steps made that left nothing out, is always offered. For a token that was generated otherwise, the
tree's slot remembers how much its step read, so that hits of requests that read more are counted.
"""

from collections.abc import Callable
from typing import Any

import torch

from ..page_metadata import PageMetadata
from ..selection import load_method
from ..serving.metrics import ServingMetrics
from .request_table import RequestEntry, RequestTable

EVERYTHING = 2**31 - 1
"""Tokens that a request reads which leaves nothing out."""


class Sharing:
    """What requests offer to each other, and what they took that others would have made better."""

    def __init__(
        self, table: RequestTable, metadata: PageMetadata, metrics: ServingMetrics
    ) -> None:
        self.table = table
        self.budgets = metadata.budgets
        self.metrics = metrics
        self._marked = False

    def checkpoint(
        self, original: Callable[..., None], tree: Any, request: Any, up_to: int, **more: Any
    ) -> None:
        """Insert a request's text into the tree, as far as it is offered."""
        entry = self.table.of(request)
        # With a host tier a page comes back without saying who made it.
        told = entry is not None and not tree.disable and tree.cache_controller is None
        first = int(request.kv.cache_protected_len)
        if entry is not None:
            # What the tree owns already cannot be taken back.
            up_to = max(first, entry.offered(up_to))
        if entry is None or not told:
            original(tree, request, up_to=up_to, **more)
            return
        row = tree.req_to_token_pool.req_to_token[request.kv.req_pool_idx]
        self._count_hit(entry, row[:first])
        own = row[first:up_to].clone()
        original(tree, request, up_to=up_to, **more)
        self._mark(entry, own, row[first : int(request.kv.cache_protected_len)], first)

    def _count_hit(self, entry: RequestEntry, slots: torch.Tensor) -> None:
        """Count tokens `[n]` of a request's prefix hit that were made by who reads less."""
        if entry.tokens_from_sparser is not None:
            return
        entry.tokens_from_sparser = 0
        if self._marked and len(slots):
            made_by = self.budgets[slots.long()]
            sparser = (made_by > 0) & (made_by < budget_of(entry, len(slots)))
            entry.tokens_from_sparser = int(sparser.sum())
            self.metrics.from_sparser(entry.tokens_from_sparser)

    def _mark(
        self, entry: RequestEntry, own: torch.Tensor, owned_by_tree: torch.Tensor, first: int
    ) -> None:
        """Remember who made the slots that the tree took over; others were there before.

        Args:
            entry: of the request.
            own: slots `[n]` of its positions from `first` on, before they were offered.
            owned_by_tree: the slots `[m]` that are there now, m <= n.
            first: position of the first slot.
        """
        made_by = torch.zeros_like(owned_by_tree)
        begin = max(0, entry.exact - first)
        if begin < len(made_by):
            self._marked = True
            made_by[begin:] = budget_of(entry, first + len(made_by))
        slots = owned_by_tree.long()
        taken = owned_by_tree == own[: len(slots)]
        self.budgets[slots] = torch.where(taken, made_by, self.budgets[slots])


def budget_of(entry: RequestEntry, length: int) -> int:
    """Tokens that a request reads of a context of `length` tokens."""
    options = entry.options
    if load_method(options.method).dense:
        return EVERYTHING
    return min(EVERYTHING, options.budget_tokens(length))


_active: Sharing | None = None


def activate_sharing(sharing: Sharing | None) -> None:
    """Make it the one that this process's radix tree asks."""
    global _active
    _active = sharing


def checkpoint_offered(
    original: Callable[..., None], tree: Any, request: Any, *, up_to: int, **more: Any
) -> None:
    """Around `UnifiedRadixCache.checkpoint_into_tree`: leave out what is not offered."""
    if _active is None:
        original(tree, request, up_to=up_to, **more)
    else:
        _active.checkpoint(original, tree, request, up_to, **more)


def rewind_session(kept: bool, sessions: Any, request: Any) -> None:
    """After `StreamingSession.try_cache_finished_req`: the next turn prefills what is withheld."""
    entry = _active.table.of(request) if _active is not None and kept else None
    if entry is not None:
        record = sessions.slots[request.session.session_id].kv
        record.kv_committed_len = entry.offered(record.kv_committed_len)
