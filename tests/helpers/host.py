"""A scheduler that can be stepped by hand: SGLang's moves, one at a time, in any order.

Everything that decides which slot holds which token is SGLang's (`memory.py`), and every forward
step goes through our attention backend's own methods (`steps.py`). What a device does behind the
host's back (work queued on the forward stream) is ordered explicitly.
"""

from array import array
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch

from sgl_sparsekv.backend.views.prefix import leave_queries
from sgl_sparsekv.views import PackedRow

from .steps import Live, Steps
from .toy_model import SYMBOLS


class OutOfPages(Exception):
    """The allocator gave nothing, even after eviction."""


@dataclass
class Host(Steps):
    """Memory and the requests on it.

    Attributes:
        live: requests that arrived and did not end.
        serial: requests that ever arrived.
    """

    live: list[Live] = field(default_factory=list)
    serial: int = 0

    # -- requests --------------------------------------------------------------------------

    def start(
        self,
        prompt: list[int],
        options: dict[str, Any] | None = None,
        namespace: str | None = None,
    ) -> Live:
        """A new request joins the waiting queue."""
        from sglang.srt.managers.schedule_batch import Req
        from sglang.srt.sampling.sampling_params import SamplingParams

        self.serial += 1
        options = self.served(options or {})
        params = SamplingParams(custom_params={"sparsekv": options})
        req = Req(f"r{self.serial}", "", array("q", prompt), params, extra_key=namespace)
        req._compute_max_prefix_len = partial(leave_queries, Req._compute_max_prefix_len, req)
        live = Live(req, self.model.paths(prompt, namespace))
        self.live.append(live)
        return live

    def served(self, options: dict[str, Any]) -> dict[str, Any]:
        """Options as far as this host serves them."""
        if options.get("method") not in (None, *self.options.methods):
            options = options | {"method": "quest"}
        if self.kind == "fused":  # it selects anew in every step, and KV heads share nothing
            plain = {"budget_split": "even", "estimate": None}
            options = options | {"reselect_every": 1, **plain}
            options |= {} if self.covers else {"coverage": None}
        return options

    def prefill(
        self,
        lives: list[Live],
        tokens: int,
        *,
        foreign: bool = False,
        fused: bool = False,
        padding: int = 0,
        mixed: list[Live] | None = None,
        die_after: int | None = None,
    ) -> None:
        """One extend step of up to `tokens` tokens for each request.

        Args:
            lives: requests that wait or are in the middle of their prefill.
            tokens: chunk size.
            foreign: another backend writes K and V; ours is not called.
            fused: K and V are stored by a kernel in front of attention (`save_kv_cache=False`).
            padding: dummy tokens on page 0 behind the batch.
            mixed: decoding requests that ride along.
            die_after: break off behind this layer.

        Raises:
            OutOfPages: nothing was changed but evicted pages.
        """
        admitted = []
        try:
            for live in lives:
                admitted.append(self._admit(live, tokens))
            decode = self._grow(mixed or [])
        except OutOfPages:
            for live, slots in admitted:
                self._withdraw(live, slots)
            raise
        everyone = [(live, slots) for live, slots in admitted] + decode
        if foreign:
            assert not decode
            self._note(admitted, len(admitted))
            for live, slots in admitted:
                self.write_unseen(slots, live.paths[live.length - len(slots) : live.length])
        else:
            self._forward(
                everyone, extend=len(admitted), fused=fused, padding=padding, die_after=die_after
            )
        for live in lives:
            live.as_cold &= not foreign
            self._after_chunk(live)
        for live, _ in decode:
            self._append_output(live)

    def _admit(self, live: Live, tokens: int) -> tuple[Live, torch.Tensor]:
        req, fresh = live.req, not live.req.kv.holds_kv
        if fresh:
            req.init_next_round_input(self.tree)
            req.lock = self.tree.lock(req.last_node)
            prefix = self.tree.prefix_device_indices(req) if req.prefix_len else torch.empty(0)
            prefix = prefix.to(torch.int64)
        else:
            req.init_next_round_input()
            prefix = self.row_pool.req_to_token[live.row, : req.prefix_len].long()
        start = int(req.prefix_len)
        end = min(start + tokens, len(req.full_untruncated_fill_ids))
        self._make_room(end - start + 2 * self.page_size)
        before, after = torch.tensor([start]), torch.tensor([end])
        last = prefix[-1:] if start else torch.tensor([-1])
        slots = None
        if not fresh or self.row_pool.alloc([req]) is not None:
            slots = self.allocator.alloc_extend(before, before, after, after, last, end - start)
        if slots is None:
            self._withdraw(live, None)
            raise OutOfPages
        req.extend_end = end
        self.row_pool.write((live.row, slice(0, start)), prefix.int())
        self.row_pool.write((live.row, slice(start, end)), slots.int())
        req.kv.kv_allocated_len = req.kv.kv_committed_len = end
        return live, slots

    def _withdraw(self, live: Live, slots: torch.Tensor | None) -> None:
        """Undo an admission: give back its pages and, if it held nothing before, its row."""
        from sglang.srt.mem_cache.common import release_kv_cache

        req = live.req
        if slots is not None or req.kv.kv_allocated_len:
            release_kv_cache(req, self.tree, checkpoint=False)
        else:
            self.tree.unlock(req.lock)
            if req.kv.holds_kv:
                self.row_pool.free(req)
        req.reset_for_retract()
        live.decoding = False

    def _after_chunk(self, live: Live) -> None:
        from sglang.srt.mem_cache.common import checkpoint_kv_cache

        if live.req.extend_end == len(live.tokens):
            live.decoding = True
            self._append_output(live)
        checkpoint_kv_cache(live.req, self.tree)

    def _append_output(self, live: Live) -> None:
        live.req.output_ids.append(self.model.next_token(live.paths))
        live.paths = self.model.paths(live.tokens, live.req.extra_key)

    def decode(
        self,
        lives: list[Live],
        *,
        padding: int = 0,
        fused: bool = False,
        die_after: int | None = None,
    ) -> None:
        """One decode step.

        Raises:
            OutOfPages: the scheduler would now retract.
        """
        grown = self._grow(lives)
        if grown:
            self._forward(grown, 0, fused=fused, padding=padding, die_after=die_after)
        for live in lives:
            self._append_output(live)

    def _grow(self, lives: list[Live]) -> list[tuple[Live, torch.Tensor]]:
        """Slots for one more token of each request."""
        if not lives:
            return []
        self._make_room(len(lives) * self.page_size)
        lengths = torch.tensor([live.length for live in lives])
        rows = torch.tensor([live.row for live in lives])
        last = self.row_pool.req_to_token[rows, lengths - 1].long()
        slots = self.allocator.alloc_decode(lengths + 1, lengths + 1, last)
        if slots is None:
            raise OutOfPages
        self.row_pool.write((rows, lengths), slots.int())
        for live in lives:
            live.req.kv.kv_allocated_len += 1
            live.req.kv.kv_committed_len += 1
        return [(live, slots[i : i + 1]) for i, live in enumerate(lives)]

    def release(self, live: Live, *, insert: bool, finished: bool = True) -> None:
        """A request ends (or is retracted) and gives its pages to the tree or back."""
        from sglang.srt.managers.schedule_batch import FINISH_LENGTH
        from sglang.srt.mem_cache.common import release_kv_cache

        if finished:
            live.req.finished_reason = FINISH_LENGTH(length=len(live.req.output_ids))
            self.live.remove(live)
        if live.req.kv.holds_kv:
            entry = self.backend.table.of(live.req)
            whole = entry.view is None or entry.view.packed is None
            if insert and entry.options.share_generated and whole:
                self.kept_back[self.row_pool.req_to_token[live.row, : live.length].long()] = False
            release_kv_cache(live.req, self.tree, checkpoint=insert)
        elif finished:  # it waited; its entry goes with the request itself
            entry = self.backend.table.of(live.req)
            if entry is not None and entry.view is not None:
                entry.view.end()

    def retract(self, live: Live) -> None:
        """Its pages go back without entering the tree; it waits for another prefill."""
        self.release(live, insert=False, finished=False)
        live.req.reset_for_retract()
        live.decoding = False

    def pack(self) -> int:
        """The pool is short: what views leave over is given back; how many tokens that were."""
        if self.packing is None:
            return 0
        answering = [live for live in self.live if live.decoding]
        saved = self.packing.give_back([live.req for live in answering], self.tree)
        for live in answering:
            packed = self.packed(live)
            if packed is not None:
                moved = self.row_pool.req_to_token[live.row, packed.begin : packed.filled]
                self.kept_back[moved.long()] = True
        return saved

    def packed(self, live: Live) -> PackedRow | None:
        """Where its row holds slots, if it was packed."""
        entry = self.backend.table.of(live.req)
        return None if entry is None or entry.view is None else entry.view.packed

    def held(self, live: Live, begin: int, end: int) -> list[int]:
        """Places of its row from `begin` to below `end` that hold a slot."""
        packed, ranges = self.packed(live), [(begin, end)]
        ranges = ranges if packed is None else packed.held(ranges)
        return [place for first, last in ranges for place in range(first, last)]

    def most_to_take_back(self, live: Live) -> int:
        """Its last tokens that are output, on a page of its own, and do not open that page."""
        if self.packed(live) is not None:  # sessions, which take back, are never packed
            return 0
        inside = (live.length - 1) % self.page_size
        if int(live.req.kv.cache_protected_len) > live.length - 1 - inside:
            return 0
        return max(0, min(inside, len(live.req.output_ids) - 1))

    def take_back(self, live: Live, tokens: int) -> None:
        """The last tokens go, their slots stay, and a step writes another token there.

        So a streaming session goes on in the page it ended in, behind a step that ran too far.

        Raises:
            OutOfPages: the scheduler would now retract.
        """
        assert 0 < tokens <= self.most_to_take_back(live)
        end = live.length - tokens
        output = live.req.output_ids
        other = (output[len(output) - tokens - 1] + 1) % SYMBOLS
        live.req.output_ids = output[: len(output) - tokens - 1] + array("q", [other])
        live.req.kv.kv_committed_len = live.req.kv.kv_allocated_len = end
        live.paths = self.model.paths(live.tokens, live.req.extra_key)
        live.as_cold = False
        self.decode([live])

    def zombie(self, live: Live, *, insert: bool, late: bool) -> None:
        """A finished request runs one more decode step, as the overlap scheduler lets it.

        Args:
            live: a decoding request; it ends.
            insert: its pages enter the tree.
            late: the step is planned and run behind the release. Otherwise it is planned in front
                of it and its layers run behind it, which is what happens on a device.
        """
        grown = self._grow([live])
        row, length = live.row, live.length
        if late:
            self.release(live, insert=insert)
            self._forward(grown, 0, row_of={id(live): row}, judged=False)
            return
        self._held_back = []
        batch = self._plan(grown, 0, {id(live): row})
        self.release(live, insert=insert)
        self._run(batch, grown, 0, lengths={id(live): length}, judged=False)
        freed, self._held_back = self._held_back, None
        for pages in freed:
            self._poison_pages(pages)

    def load_back(self, tokens: list[int], namespace: str | None = None) -> int:
        """A host tier brings whole pages: allocated, written unseen, inserted into the tree.

        Returns:
            tokens that were missing.

        Raises:
            OutOfPages: the allocator gave nothing.
        """
        from sglang.srt.mem_cache.base_prefix_cache import InsertParams, MatchPrefixParams
        from sglang.srt.mem_cache.radix_cache import RadixKey

        key = RadixKey(array("q", tokens), namespace).page_aligned(self.page_size)
        match = self.tree.match_prefix(MatchPrefixParams(key=key))
        there = int(match.device_prefix_len)
        missing = len(key) - there
        if not missing:
            return 0
        lock = self.tree.lock(match.last_device_node)
        self._make_room(missing)
        slots = self.allocator.alloc(missing)
        if slots is None:
            self.tree.unlock(lock)
            raise OutOfPages
        prefix = self.tree.path_device_indices(match.last_device_node)[:there]
        self.write_unseen(slots, self.model.paths(tokens, namespace)[there : len(key)])
        self.tree.insert(
            InsertParams(key=key, value=torch.cat((prefix, slots)), prev_prefix_len=there)
        )
        self.tree.unlock(lock)
        return missing

    def move_private_page(self, live: Live, which: int) -> bool:
        """Move a page that the tree does not own to another place; False if there is none."""
        first = int(live.req.kv.cache_protected_len)
        starts = self.held(live, first, live.length)[:: self.page_size]
        if not starts:
            return False
        self._make_room(self.page_size)
        target = self.allocator.alloc(self.page_size)
        if target is None:
            return False
        start = starts[which % len(starts)]
        end = min(start + self.page_size, live.length)
        source = self.row_pool.req_to_token[live.row, start:end].long()
        self.pool.move_kv_cache(target[: end - start], source)
        self.row_pool.write((live.row, slice(start, end)), target[: end - start].int())
        self.kept_back[target[: end - start]] = self.kept_back[source]
        self.allocator.free(source)
        return True

    def write_unseen(self, slots: torch.Tensor, paths: list[int]) -> None:
        """K and V of positions arrive without any forward step of ours."""
        super().write_unseen(slots, paths)
        self.kept_back[slots] = False

    def evict(self, tokens: int) -> None:
        """Drop least recently used leaves."""
        from sglang.srt.mem_cache.base_prefix_cache import EvictParams

        self.tree.evict(EvictParams(num_tokens=tokens))

    def flush(self, *, new_weights: bool) -> None:
        """`flush_cache`, with nothing running; all requests wait and start over."""
        for live in self.live:
            if live.req.kv.holds_kv:
                self.retract(live)
        self.tree.reset()
        self.row_pool.clear()
        self.allocator.clear()
        self._poison_pages(torch.arange(1, self.pages + 1))
        if new_weights:
            self.model.version += 1
            for live in self.live:
                live.paths = self.model.paths(live.tokens, live.req.extra_key)
                live.as_cold = False
