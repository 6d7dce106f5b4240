"""What must hold after every operation on a `Host`, and in every decode step of it."""

from dataclasses import dataclass, field

import torch

from sgl_sparsekv.ops import load_ops
from sgl_sparsekv.page_metadata import find_mismatches
from sgl_sparsekv.selection import load_method
from sgl_sparsekv.views.stretches import kept_in

from .cold import ColdRun, always_kept, segment_record, units_to_keep
from .cold_view import cold_view, viewed
from .host import Host
from .recorder import Judged
from .toy_model import LAYERS, SCALE

TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2e-2}
"""Largest difference of an output from float64 over the same keys."""


class Broken(AssertionError):
    """An invariant does not hold; the message starts with its name."""


def require(condition: bool, invariant: str, detail: object = "") -> None:
    """Raise `Broken` unless `condition`."""
    if not condition:
        raise Broken(f"{invariant}: {detail}")


def units_of_free_pages(host: Host) -> set[int]:
    """Physical units that belong to nobody."""
    pages = host.allocator.get_all_free_pages()
    return set(host.geometry.units_of_pages(pages).tolist())


def check_ownership(host: Host) -> None:
    """Every page is free, in the tree or private to one request, and sizes sum."""
    size = host.page_size
    free = host.allocator.get_all_free_pages().tolist()
    cached = host.tree.all_values_flatten()
    tree_pages = host.geometry.page_of(cached[::size]).tolist()
    private: list[int] = []
    for live in host.live:
        kv = live.req.kv
        if kv.holds_kv:
            own = host.row_pool.req_to_token[kv.req_pool_idx]
            places = host.held(live, kv.cache_protected_len, kv.kv_allocated_len)[::size]
            private += host.geometry.page_of(own[places]).tolist()
    owners = [*free, *tree_pages, *private]
    require(len(set(owners)) == len(owners), "ownership", "a page has two owners")
    require(sorted(owners) == list(range(1, host.pages + 1)), "ownership", "a page was lost")
    tree = host.tree.evictable_size() + host.tree.protected_size()
    require(tree == len(cached) == len(tree_pages) * size, "sizes", "tree sizes do not sum")
    if not any(live.req.kv.holds_kv for live in host.live):
        require(host.tree.protected_size() == 0, "sizes", "a lock was not given back")
    holding = sum(live.req.kv.holds_kv for live in host.live)
    require(len(host.row_pool.free_slots) == host.rows - holding, "sizes", "a row was lost")


def check_views_left(host: Host) -> None:
    """With no request left, all room for views is free."""
    if host.kind != "fused" or host.backend.views is None:
        return
    store = host.backend.views.store
    store._collect()
    free = store._queries.widest, store._kept.widest, len(store._numbers)
    there = store.shape.queries, store.shape.kept, store.shape.views
    require(free == there, "leak", f"room for views: {free} of {there} is free")


def check_sharing(host: Host) -> None:
    """The tree holds nothing that a sparse step made for a request that does not share."""
    offered = host.tree.all_values_flatten().long()
    require(not bool(host.kept_back[offered].any()), "sharing", "kept-back tokens in the tree")


def check_metadata(host: Host) -> None:
    """R2: a sealed unit of a page that somebody owns says what its keys say."""
    sealed = host.metadata.sealed
    unit = host.geometry.unit_size
    require(not bool(sealed[: host.geometry.units_per_page].any()), "R2 sealed", "page 0")
    owned = sealed.clone()
    for slots in host.handed_out:  # lose their stamps when the next step begins
        owned[host.geometry.units_of_pages(host.geometry.page_starts(slots))] = False
    owned[host.geometry.units_of_pages(host.allocator.get_all_free_pages())] = False
    units = torch.nonzero(owned).flatten()
    for layer in range(LAYERS):
        keys = host.pool.get_key_buffer(layer)
        found = find_mismatches(host.metadata, load_ops("reference"), layer, keys, units)
        require(not found, "R2 equality", found[:1])
        rows = keys.unflatten(0, (-1, unit))[units]
        require(not bool(rows.isnan().any()), "R3 poison", "a sealed unit holds freed keys")
    for live in host.live:
        kv = live.req.kv
        if kv.holds_kv and kv.kv_committed_len % unit:
            last = int(host.row_pool.req_to_token[live.row, kv.kv_committed_len - 1]) // unit
            require(not bool(owned[last]), "R2 sealed", "a partial unit")


def check_records(host: Host) -> int:
    """A record says what the keys of the segment say that ends with its page.

    Returns:
        Segments of which two running requests hold different continuations.
    """
    branches: dict[int, set[int]] = {}
    for name, records in host.kinds.items():
        size, held = records.summary.segment_size, host.recorded(name)
        require(len(set(held.values())) == len(held), "records", f"{name}: one of two pages")
        stale = set()
        for slots in host.handed_out:
            stale |= set(host.geometry.page_starts(slots).tolist())
        for live in host.live:
            if not live.req.kv.holds_kv or host.packed(live) is not None:
                continue
            row = host.row_pool.req_to_token[live.row, : live.req.kv.kv_committed_len].long()
            if len(row) % size > size - host.page_size:
                last = int(row[-1]) // host.page_size
                require(last not in held or last in stale, "R2 records", "a partial segment")
            for nth, page in enumerate(host.geometry.segment_pages(row, size).tolist()):
                branches.setdefault(int(row[nth * size]), set()).add(page)
                if page not in held or page in stale:
                    continue
                for layer in range(LAYERS):
                    keys = host.pool.get_key_buffer(layer)[row]
                    values = host.pool.get_value_buffer(layer)[row]
                    wanted = segment_record(host.backend.ops, records.summary, nth, keys, values)
                    arrays = records.arrays[layer]
                    same = all(torch.equal(arrays[a][held[page]], wanted[a]) for a in wanted)
                    require(same, "R2 records", f"{name} of page {page}, layer {layer}")
    return sum(len(pages) > 1 for pages in branches.values())


@dataclass
class Checker:
    """Checks one host; remembers when each row's scores were taken.

    Attributes:
        host: what is checked.
        compared: rows and layers whose output was compared.
        branched: segments found with more than one continuation.
        indexed: rows and layers that read a record.
        scored: by row, request and its retractions, length, and scores' lengths and records by
            layer.
    """

    host: Host
    compared: int = 0
    branched: int = 0
    indexed: int = 0
    scored: dict[int, tuple[tuple[str, int], int, dict[int, tuple[int, list[bool]]]]] = field(
        default_factory=dict
    )

    def check(self) -> None:
        """After any operation."""
        check_ownership(self.host)
        check_sharing(self.host)
        check_metadata(self.host)
        self.branched += check_records(self.host)
        recorder = self.host.recorder
        if recorder.done:
            recorder.done = False
            free = units_of_free_pages(self.host)
            for judged in recorder.judged:
                self._check_row(judged, free)

    def _check_row(self, judged: Judged, free: set[int]) -> None:
        host, live = self.host, judged.live
        options = host.backend.table.entry(judged.row).options
        cold = ColdRun(
            host.model, host.backend.ops, host_unit(host), live.paths, options, host.index
        )
        self._begin_row(judged, options.reselect_every)
        for layer in range(LAYERS):
            units = host.recorder.units_of(layer, judged.place)
            physical = host.recorder.physical_of(layer, judged.place)
            if physical is not None:
                self._check_selection(judged, layer, units, physical, free, cold)
            elif host.chooses:
                kept = units_to_keep(judged.length, options, cold.own)
                total = -(-judged.length // cold.own)
                view = host.backend.table.entry(judged.row).view
                everything = options.method == "full" or layer < options.dense_layers
                if view is not None and not everything:
                    everything = view.made == 0
                    cold_made = cold_view(cold, len(live.req.origin_input_ids), judged.length).made
                    require(not live.as_cold or cold_made == 0, "invariant 5", "no view was made")
                require(everything or kept == total, "R7 budget", "everything was read")
            unit = host_unit(host) if physical is None else cold.own
            expected = cold.attention(layer, judged.length, units, unit)
            if physical is not None and options.estimates:
                rest = host.recorder.indexed_of(layer, judged.place, "rest")
                expected = cold.estimated(layer, judged.length, units, unit, rest)
            token = judged.place
            if host.backend._decode_tokens is not None:
                token = int(host.backend._decode_tokens[judged.place])
            out = host.recorder.outputs[layer][token].double()
            require(bool(out.isfinite().all()), "R3 poison", "output is not finite")
            error = float((out - expected).abs().max())
            require(error <= TOLERANCE[host.dtype], "attend", error)
            self.compared += 1

    def _begin_row(self, judged: Judged, every: int) -> None:
        req, length = judged.live.req, judged.length
        whose, known = (req.rid, req.retraction_count), self.scored.get(judged.row)
        held = known is not None and known[0] == whose and known[2]
        if not held or not known[1] <= length < known[1] + every:
            self.scored[judged.row] = (whose, length, {})

    def _check_selection(
        self,
        judged: Judged,
        layer: int,
        units: list[list[int]],
        physical: list[list[int]],
        free: set[int],
        cold: ColdRun,
    ) -> None:
        host, length, unit, own = self.host, judged.length, host_unit(self.host), cold.own
        method = load_method(cold.options.method)
        kept = always_kept(length, cold.options, 1 if method.narrows else unit, own)
        count = units_to_keep(length, cold.options, own)
        slots = host.row_pool.req_to_token[judged.row, :length]
        table = (slots[::own] // own).tolist()
        packed = host.packed(judged.live)
        held = {table[place] for place in host.held(judged.live, 0, length)} if packed else set()
        for chosen, places in zip(units, physical, strict=True):
            require(chosen == sorted(set(chosen)), "R7 order", chosen)
            planned = cold.options.adaptive or method.narrows or len(chosen) == count
            require(planned and kept <= set(chosen), "R7 budget", chosen)
            there = places == [table[u] for u in chosen] if packed is None else set(places) <= held
            require(there, "ownership", "not the row's units")
            freed = free & {place * own // unit for place in places}
            require(not freed, "R3 poison", "a free unit was selected")
        if method.summaries:
            scored = torch.tensor(
                sorted({table[u] * own // unit for u in range(len(table)) if u not in kept})
            )
            require(bool(host.metadata.sealed[scored.long()].all()), "R2 sealed", "unsealed")
            if cold.options.method == "quest":
                self._check_bound(layer, scored.long(), cold.query(layer, length))
        if method.narrows:
            self._check_told(judged, layer, units)
            if judged.live.as_cold:
                prompt = len(judged.live.req.origin_input_ids)
                expected = viewed(cold, layer, prompt, length)
                what = f"{cold.options.method} of {prompt} at {length}"
                require(units == expected, "invariant 5", f"{what}: {units} but cold {expected}")
            return
        now = (length, self._indexed(judged, layer, cold.options.method))
        scored_at, indexed = self.scored[judged.row][2].setdefault(layer, now)
        expected = cold.selection(layer, length, scored_at, indexed)
        require(units == expected, "invariant 5", f"{units} but cold {expected}")

    def _check_told(self, judged: Judged, layer: int, units: list[list[int]]) -> None:
        """What a response would tell now is what the step read."""
        entry = self.host.backend.table.entry(judged.row)
        assert entry.view is not None
        if not entry.options.kept_map:
            return
        told, since = entry.view.told(), range(entry.view.made, judged.length)
        kept = [[*kept_in(head).tolist(), *since] for head in told["map"][str(layer)]]
        require(units == kept, "invariant 5", f"told {kept}, read {units}")
        require(told["since"] == len(since), "invariant 5", f"told {told['since']} tokens since")

    def _indexed(self, judged: Judged, layer: int, method: str) -> list[bool]:
        """Which whole segments of a row have a record; some have none only if memory is full."""
        indexed = self.host.recorder.indexed_of(layer, judged.place)
        summary = load_method(method).segments(self.host.index)
        if summary is None:
            return []
        whole = judged.length // summary.segment_size
        require(not any(indexed[whole:]), "records", "a record of a segment that is not whole")
        records = self.host.metadata.records[summary.name]
        full = len(self.host.recorded(summary.name)) == records.capacity
        before = judged.length - 1 if self.host.kind == "fused" else judged.length
        built = before // summary.segment_size
        require(all(indexed[:built]) or full, "records", "a whole segment without a record")
        self.indexed += any(indexed)
        return indexed[:whole]

    def _check_bound(self, layer: int, units: torch.Tensor, q: torch.Tensor) -> None:
        host = self.host
        planes = host.metadata.fields("min_max", layer)[units].movedim(1, 0).float()
        bound = load_method("quest").summary.score(q.float(), planes)
        keys = host.pool.get_key_buffer(layer).unflatten(0, (-1, host_unit(host)))[units]
        best = torch.einsum("hgd,uthd->hgut", q.float(), keys.float()).amax(-1)
        require(bool((bound >= best).all()), "R5 bound", SCALE)


def host_unit(host: Host) -> int:
    """Tokens per unit."""
    return int(host.geometry.unit_size)
