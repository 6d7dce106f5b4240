"""What must hold after every operation on a `Host`, and in every decode step of it."""

from dataclasses import dataclass, field

import torch

from sgl_sparsekv.page_metadata import find_mismatches
from sgl_sparsekv.selection import load_method

from .cold import ColdRun, always_kept, units_to_keep
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
            own = own[kv.cache_protected_len : kv.kv_allocated_len : size]
            private += host.geometry.page_of(own).tolist()
    owners = [*free, *tree_pages, *private]
    require(len(set(owners)) == len(owners), "ownership", "a page has two owners")
    require(sorted(owners) == list(range(1, host.pages + 1)), "ownership", "a page was lost")
    tree = host.tree.evictable_size() + host.tree.protected_size()
    require(tree == len(cached) == len(tree_pages) * size, "sizes", "tree sizes do not sum")
    if not any(live.req.kv.holds_kv for live in host.live):
        require(host.tree.protected_size() == 0, "sizes", "a lock was not given back")
    holding = sum(live.req.kv.holds_kv for live in host.live)
    require(len(host.row_pool.free_slots) == host.rows - holding, "sizes", "a row was lost")


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
        found = find_mismatches(host.metadata, layer, keys, units)
        require(not found, "R2 equality", found[:1])
        rows = keys.unflatten(0, (-1, unit))[units]
        require(not bool(rows.isnan().any()), "R3 poison", "a sealed unit holds freed keys")
    for live in host.live:
        kv = live.req.kv
        if kv.holds_kv and kv.kv_committed_len % unit:
            last = int(host.row_pool.req_to_token[live.row, kv.kv_committed_len - 1]) // unit
            require(not bool(owned[last]), "R2 sealed", "a partial unit")


@dataclass
class Checker:
    """Checks one host; remembers when each row's scores were taken."""

    host: Host
    compared: int = 0
    scored: dict[int, tuple[str, int, dict[int, int]]] = field(default_factory=dict)

    def check(self) -> None:
        """After any operation."""
        check_ownership(self.host)
        check_metadata(self.host)
        recorder = self.host.recorder
        if recorder.done:
            recorder.done = False
            free = units_of_free_pages(self.host)
            for judged in recorder.judged:
                self._check_row(judged, free)

    def _check_row(self, judged: Judged, free: set[int]) -> None:
        host, live = self.host, judged.live
        options = host.backend.table.entry(judged.row).options
        cold = ColdRun(host.model, host.backend.ops, host.geometry.unit_size, live.paths, options)
        self._begin_row(judged, options.reselect_every)
        for layer in range(LAYERS):
            units = host.recorder.units_of(layer, judged.place)
            physical = host.recorder.physical_of(layer, judged.place)
            if physical is not None:
                self._check_selection(judged, layer, units, physical, free, cold)
            elif host.chooses:
                kept = units_to_keep(judged.length, options, host_unit(host))
                everything = options.method == "full" or layer < options.dense_layers
                require(everything or kept == len(units[0]), "R7 budget", "everything was read")
            expected = cold.attention(layer, judged.length, units)
            token = judged.place
            if host.backend._decode_tokens is not None:
                token = int(host.backend._decode_tokens[judged.place])
            out = host.recorder.outputs[layer][token].double()
            require(bool(out.isfinite().all()), "R3 poison", "output is not finite")
            error = float((out - expected).abs().max())
            require(error <= TOLERANCE[host.dtype], "attend", error)
            self.compared += 1

    def _begin_row(self, judged: Judged, every: int) -> None:
        rid, length = judged.live.req.rid, judged.length
        known = self.scored.get(judged.row)
        if known is None or known[0] != rid or not known[1] <= length < known[1] + every:
            self.scored[judged.row] = (rid, length, {})

    def _check_selection(
        self,
        judged: Judged,
        layer: int,
        units: list[list[int]],
        physical: list[list[int]],
        free: set[int],
        cold: ColdRun,
    ) -> None:
        host, length, unit = self.host, judged.length, host_unit(self.host)
        kept = always_kept(length, cold.options, unit)
        count = units_to_keep(length, cold.options, unit)
        slots = host.row_pool.req_to_token[judged.row, :length]
        table = (slots[::unit] // unit).tolist()
        summary = load_method(cold.options.method).summary
        for chosen, places in zip(units, physical, strict=True):
            require(chosen == sorted(set(chosen)), "R7 order", chosen)
            require(len(chosen) == count and kept <= set(chosen), "R7 budget", chosen)
            require(places == [table[u] for u in chosen], "ownership", "not the row's units")
            require(not free & set(places), "R3 poison", "a free unit was selected")
        if summary is not None:
            scored = torch.tensor([table[u] for u in range(len(table)) if u not in kept])
            require(bool(host.metadata.sealed[scored.long()].all()), "R2 sealed", "unsealed")
            if summary.name == "min_max":
                self._check_bound(layer, scored.long(), cold.query(layer, length))
        scored_at = self.scored[judged.row][2].setdefault(layer, length)
        expected = cold.selection(layer, length, scored_at)
        require(units == expected, "invariant 5", f"{units} but cold {expected}")

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
