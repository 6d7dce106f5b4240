"""Where SGLang runs short of KV memory: views give back first, then it retracts as ever."""

from collections.abc import Callable
from typing import Any

from ..request_table import active_table
from .packing import Packing

_active: Packing | None = None


def activate_packing(packing: Packing | None) -> None:
    """Make it the one that this process's scheduler asks."""
    global _active
    _active = packing


def admit_more(scheduler: Any, running_batch: Any, *args: object, **kwargs: object) -> None:
    """Before `Scheduler.get_new_batch_prefill`: where requests wait for memory, give some back."""
    if _active is None or not running_batch.batch_is_full or not scheduler.waiting_queue:
        return
    rows = scheduler.get_num_allocatable_reqs(len(running_batch.reqs), running_batch=running_batch)
    if rows > 0 and _active.give_back(_answering(running_batch), scheduler.tree_cache):
        running_batch.batch_is_full = False


def go_on(scheduler: Any, batch: Any, *args: object, **kwargs: object) -> None:
    """Before `Scheduler.update_running_batch`: before requests are retracted, give back."""
    if _active is not None and not batch.is_empty() and not batch.check_decode_mem():
        _active.give_back(_answering(batch), scheduler.tree_cache)


def _answering(batch: Any) -> list[Any]:
    """Requests whose prompt was offered to the tree: SGLang does so with the first token."""
    return [req for req in batch.reqs if req.output_ids and not req.finished()]


def free_held(
    original: Callable[..., None], tree: Any, kv: Any, ranges: list[tuple[int, int]]
) -> None:
    """Around `BasePrefixCache.free_kv_row`: leave out the places of a packed row that hold
    nothing."""
    table = active_table()
    view = None if table is None else table.entry(int(kv.req_pool_idx)).view
    packed = None if view is None else view.packed
    original(tree, kv, ranges if packed is None else packed.held(ranges))


def forget_places(result: object, tree: object, request: Any, **kwargs: object) -> None:
    """After `UnifiedRadixCache.on_release`: the row is gone, and with it what was moved; with the
    request its view is."""
    table = active_table()
    entry = None if table is None else table.of(request)
    if entry is not None and entry.view is not None:
        entry.view.unpack()
        if request.finished():
            entry.view.end()


def held_by_requests(original: Callable[..., tuple[int, int]], checker: Any) -> tuple[int, int]:
    """Around `SchedulerInvariantChecker._get_total_uncached_sizes`, which SGLang compares with its
    pool: places that hold nothing are no tokens."""
    full, sliding = original(checker)
    table = active_table()
    for request in checker._requests_owning_rows() if table is not None else ():
        entry = table.of(request) if table is not None else None
        packed = None if entry is None or entry.view is None else entry.view.packed
        full -= 0 if packed is None else packed.end - packed.filled
    return full, sliding


def tokens_to_come(original: Callable[..., float], adder: object, request: Any) -> float:
    """Around `PrefillAdder._get_running_request_total_token_offset`: what an answer still adds to
    its row at most, where its view is renewed and its memory can be given back."""
    most, table = original(adder, request), active_table()
    if table is None or _active is None or not table.server.admit_packed:
        return most
    entry = table.of(request)
    if entry is None or not entry.packs or not entry.options.renew_every:
        return most
    return min(most, entry.options.renew_every + _active.page_size)
