"""Memory that views do not read goes back to the pool.

What a request keeps of its row is moved together, and the pages that this leaves go back: those of
its own answer, and its part of the radix tree's, which it no longer holds. The tree itself is as it
was: a prompt that nobody holds stays until its memory is needed, and one that others hold stays
where it is and is read from there. What was moved never enters the tree.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch

from ...geometry import whole_pages
from ...serving.metrics import ServingMetrics
from ...views import PackedRow, RequestView
from ..kv_pool import note_handed_out
from ..request_table import RequestEntry, RequestTable
from .step_views import StepViews


@dataclass(frozen=True)
class _Move:
    """What is to be moved.

    Attributes:
        row: that which the request will have.
        own: places that it fills now, of pages that are the request's own: half-open ranges.
        behind: tokens from the row's end on that the tree owns, of an answer that was read anew
            when its request came back; the request gets pages of its own for them.
        saved: tokens that this gives back, or lets the tree give back.
    """

    row: PackedRow
    own: list[tuple[int, int]]
    behind: int
    saved: int


class Packing:
    """Packs the rows of one scheduler's requests.

    Attributes:
        page_size: tokens per page.

    Args:
        table: of requests.
        views: settles what a step weighed.
        pool: SGLang's KV pool.
        metrics: counts what was given back.
    """

    def __init__(
        self, table: RequestTable, views: StepViews, pool: Any, metrics: ServingMetrics
    ) -> None:
        self.table, self._views, self._metrics = table, views, metrics
        self._layers = range(pool.start_layer, pool.start_layer + pool.layer_num)
        self._pool = pool
        self._futile: WeakKeyDictionary[RequestView, tuple[int, tuple[int, int]]] = (
            WeakKeyDictionary()
        )
        """Views of which nothing would be left over: as of when, and what of their rows others
        and the tree held."""
        self.page_size = int(pool.page_size)

    def give_back(self, requests: Iterable[Any], tree: Any) -> int:
        """Pack every row of which pages are left over.

        Between two steps, with no step under way.

        Args:
            requests: SGLang's `Req`s that decode, whose prompts were offered to the tree.
            tree: SGLang's prefix cache.

        Returns:
            Tokens that were given back, or that the tree may drop now.
        """
        saved = 0
        for request in requests:
            entry = self.table.of(request)
            if entry is not None and entry.view is not None:
                self._views.settle(entry)
                saved += self._pack(entry, entry.view, request, tree)
        return saved

    def _pack(self, entry: RequestEntry, view: RequestView, request: Any, tree: Any) -> int:
        if not self._is_packable(entry, view, request):
            return 0
        first = int(request.kv.cache_protected_len)
        begins = (first, self._held_by_others(request, tree))
        if self._futile.get(view) == (view.made, begins):
            return 0
        moves = [self._move(view, first, begin, self.page_size) for begin in sorted(set(begins))]
        best = max(moves, key=lambda move: move.saved)
        if best.saved <= 0:
            self._futile[view] = view.made, begins
            return 0
        self._do(best, view, request, tree)
        entry.tokens_freed += best.saved
        self._metrics.freed(best.saved)
        return best.saved

    def _is_packable(self, entry: RequestEntry, view: RequestView, request: Any) -> bool:
        """Whether nothing but its view will read its row, and that is news since it was packed."""
        end = whole_pages(view.made, self.page_size)
        news = view.packed is None or view.packed.end < end
        whole = view.layers.keys() == set(self._layers)
        there = view.made <= request.kv.kv_committed_len  # else its last tokens were taken back
        alone = request.session is None and request.beam_group is None
        return entry.packs and news and whole and there and alone

    @staticmethod
    def _held_by_others(request: Any, tree: Any) -> int:
        """First tokens of the row whose slots another request holds in the tree as well."""
        first = int(request.kv.cache_protected_len)
        if request.lock is None:
            return first
        before = int(tree.evictable_size())
        tree.unlock(request.lock)
        alone = int(tree.evictable_size()) - before
        request.lock = tree.lock(request.last_node)
        return first - alone

    @staticmethod
    def _move(view: RequestView, first: int, begin: int, page: int) -> _Move:
        """What moving all that is kept from `begin` on would give; `first`: what the tree owns."""
        end = whole_pages(view.made, page)
        old, behind = view.packed, max(0, first - end)
        own = [(first, end)] if old is None else [(first, old.filled), (old.end, end)]
        own = [(a, b) for a, b in own if a < b]
        needed = whole_pages(view.width(begin, end) + page - 1, page)
        saved = first - begin + sum(b - a for a, b in own) - needed - behind
        return _Move(PackedRow(begin, begin + needed, end), own, behind, saved)

    def _do(self, move: _Move, view: RequestView, request: Any, tree: Any) -> None:
        row = tree.req_to_token_pool.req_to_token[request.kv.req_pool_idx]
        packed, behind = move.row, slice(move.row.end, move.row.end + move.behind)
        needed = packed.filled - packed.begin
        kept, copied = self._taken(view, packed, row), self._copied(row[behind].long())
        own = torch.cat([row[:0], *(row[a:b] for a, b in move.own)]).long()
        if packed.begin < request.kv.cache_protected_len:
            self._hold(request, tree, packed.begin)
        missing = needed + move.behind - len(own)
        if missing > 0:
            own = torch.cat((own, self._fresh(tree, missing)))
        slots, after, rest = own[:needed], own[needed:][: move.behind], own[needed + move.behind :]
        row[packed.begin : packed.filled] = slots.to(row.dtype)
        row[packed.filled : packed.end] = 0
        row[behind] = after.to(row.dtype)
        for place, moved in ((slots, kept), (after, copied)):
            for buffer, tokens in moved:
                buffer[place[: len(tokens)]] = tokens
            note_handed_out(place)  # its pages say something else now
        if len(rest):
            tree.token_to_kv_pool_allocator.free(rest)
        view.pack(packed)

    def _taken(
        self, view: RequestView, packed: PackedRow, row: torch.Tensor
    ) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Copies `[n, H, D]` of what is kept, beside the buffer of the pool that it belongs to."""
        taken = []
        for number, layer in view.layers.items():
            slots = row[layer.sources(packed.begin, packed.end)].long()
            heads = torch.arange(slots.shape[1], device=slots.device)
            for buffer in self._pool.get_kv_buffer(number):
                taken.append((buffer, buffer[slots, heads]))
        return taken

    def _copied(self, slots: torch.Tensor) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Copies `[n, H, D]` of tokens, beside the buffers of the pool that they belong to."""
        buffers = [each for number in self._layers for each in self._pool.get_kv_buffer(number)]
        return [(buffer, buffer[slots]) for buffer in buffers] if len(slots) else []

    @staticmethod
    def _hold(request: Any, tree: Any, tokens: int) -> None:
        """Hold only the first tokens of a row in the tree, which others hold as well."""
        from sglang.srt.mem_cache.base_prefix_cache import MatchPrefixParams
        from sglang.srt.mem_cache.radix_cache import RadixKey

        key = RadixKey(
            request.full_untruncated_fill_ids[:tokens],
            request.extra_key,
            is_bigram=tree.tree_core.is_eagle,
            cache_salt=request.cache_salt,
        )
        match = tree.match_prefix(MatchPrefixParams(key=key))
        assert match.device_prefix_len == tokens, "a held prefix is in the tree"
        lock = tree.lock(match.last_device_node)
        tree.unlock(request.lock)
        request.lock, request.last_node = lock, match.last_device_node
        request.kv.cache_protected_len = tokens
        request.kv.cache_inserted_len = min(request.kv.cache_inserted_len, tokens)

    @staticmethod
    def _fresh(tree: Any, tokens: int) -> torch.Tensor:
        """Whole pages; there are at least as many that the tree may drop."""
        from sglang.srt.mem_cache.common import evict_from_tree_cache

        evict_from_tree_cache(tree, tokens)
        slots: torch.Tensor | None = tree.token_to_kv_pool_allocator.alloc(tokens)
        assert slots is not None, "what the tree dropped could not be had"
        return slots
