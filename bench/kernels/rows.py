"""What a run says of one op at one shape."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from .layers import DIM, HEADS, PAGE_SIZE

TOKEN_BYTES = 2 * HEADS * DIM * 2
UNIT_BYTES = 2 * HEADS * DIM * 2


@dataclass(frozen=True)
class Row:
    """One op at one shape; times in milliseconds.

    Attributes:
        op: op; `decode_sparse` for score + select + attend with everything around them;
            `decode_covering` where a share of attention says how much is read, and `same_bytes`
            for a fixed budget that reads as many bytes; `decode_view` for what a view lists, and
            `same_tokens` for a dense step over as many; `shared_*` for rows on one prefix, whose
            distinct bytes count, and `alone_*` for the same rows one after the other.
        method: `quest`, `quest_two_level`, `clusterkv`, `pqcache`, `residual_pq`, `snapkv` or
            `dense`.
        context: tokens of each row.
        batch: rows.
        page_size: slots per page.
        budget: tokens attended per row and KV head.
        ms: least of the repeats.
        median_ms: median of the repeats.
        bytes: what must be read.
        floor_ms: bytes over the measured read bandwidth; None where arithmetic is the limit.
        of_floor: ms / floor_ms.
        peer: what it is compared with; `prefill`, of the same prompt, for indexing it.
        peer_ms: the peer's least.
        speedup: peer_ms / ms.
        beside: what it is held against: `quest`, `same_bytes` or `same_tokens`; None: nothing.
        ratio: median over the turns of its time over that one's in the same turn.
        ratio_spread: the middle half of these lies between.
    """

    op: str
    method: str
    context: int
    batch: int
    page_size: int
    budget: int
    ms: float
    median_ms: float
    bytes: int
    floor_ms: float | None
    of_floor: float | None
    peer: str | None = None
    peer_ms: float | None = None
    speedup: float | None = None
    beside: str | None = None
    ratio: float | None = None
    ratio_spread: Sequence[float] | None = None


def row_of(
    op: str,
    shape: tuple[str, int, int, int],
    times: list[float],
    size: int,
    speed: float | None,
    peer: tuple[str, float] | None,
    beside_peer: Sequence[float] = (),
) -> Row:
    """A row from the times of an op.

    Args:
        op: op.
        shape: method, context, batch and budget.
        times: milliseconds of each run.
        size: bytes that must be read.
        speed: of memory, in bytes per millisecond; None where arithmetic is the limit.
        peer: its name and its least time.
        beside_peer: milliseconds of runs that took turns with the peer's.
    """
    method, context, batch, budget = shape
    ms = min([*times, *beside_peer])
    floor = size / speed if speed else None
    who, peer_ms = peer or (None, None)
    return Row(
        *(op, method, context, batch, PAGE_SIZE, budget, ms, median(times), size),
        *(floor, ms / floor if floor else None),
        *(who, peer_ms, peer_ms / ms if peer_ms else None),
    )
