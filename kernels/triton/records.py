"""Which record belongs to which segment: on the device, by the page that a segment ends with.

    forget    a page that is written anew loses its record                    once per step
    list      records of the whole segments of every row                      once per step
    reserve   room for records that are to be built                           between steps

So no step waits for the host, and the host need not know a single page: it says which segments of
which rows are whole, by their lengths. Several kinds of records (`kinds`: clusters, products) lie
in one map.
"""

from dataclasses import dataclass

import torch

import triton
import triton.language as tl

NOBODY = tl.constexpr(-1)
"""Page without a record, and record without a page."""
TAKEN = 2**31 - 1
"""Page of places that are no records, of a kind that has fewer than another."""
RESERVE_BLOCK = 256
"""Records that are looked at together for a free one."""
LIST_BLOCK = 256
"""Segments that one program lists at a time."""


@dataclass(frozen=True)
class RecordBuffers:
    """Of `kinds` kinds of records.

    Attributes:
        of_page: int32 `[kinds, pages]`, record of the segment that ends with a page, or -1.
        page_of: int32 `[kinds, most records]`, its page, -1 where the record is free.
        table: int32 `[kinds, max_rows, segments]`, of each row of a step; -1 where there is none.
        next: int32 `[kinds]`, where the search for a free record goes on.
        sizes, capacities: int32 `[kinds]`, tokens of a segment, and records there are.
        told: int32 `[kinds, 2]`, records reserved, and those that gave way to others.
    """

    of_page: torch.Tensor
    page_of: torch.Tensor
    table: torch.Tensor
    next: torch.Tensor
    sizes: torch.Tensor
    capacities: torch.Tensor
    told: torch.Tensor

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        return sum(tensor.nbytes for tensor in vars(self).values())


def allocate_records(
    sizes: list[int], capacities: list[int], rows: int, segments: int, pages: int,
    device: torch.device,
) -> RecordBuffers:  # fmt: skip
    """Buffers in which no page has a record yet.

    Args:
        sizes: tokens of a segment, by kind.
        capacities: records, by kind.
        rows: of the largest step.
        segments: in the longest context.
        pages: of the pool.
        device: where.
    """
    kinds, most = len(sizes), max(capacities)

    def full(*extents: int, fill: int = -1) -> torch.Tensor:
        return torch.full(extents, fill, dtype=torch.int32, device=device)

    numbers = [torch.tensor(x, dtype=torch.int32, device=device) for x in (sizes, capacities)]
    page_of = full(kinds, most)
    for kind, capacity in enumerate(capacities):
        page_of[kind, capacity:] = TAKEN
    return RecordBuffers(
        full(kinds, pages), page_of, full(kinds, rows, segments), full(kinds, fill=0), *numbers,
        full(kinds, 2, fill=0),
    )  # fmt: skip


@triton.jit(do_not_specialize=["count"])
def forget_records_kernel(
    slots, of_page, page_of, count, pages, most, PAGE: tl.constexpr, BLOCK: tl.constexpr
):
    """Forget the records of segments that end with a page that `slots` are written in.

    Grid `[blocks of slots, kinds]`.
    """
    kind = tl.program_id(1)
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    slot = tl.load(slots + i, mask=i < count, other=0)
    there = slot >= PAGE
    mine = of_page + kind * pages + slot // PAGE
    record = tl.load(mine, mask=there, other=-1)
    held = there & (record >= 0)
    free = tl.full([BLOCK], NOBODY, tl.int32)
    tl.store(page_of + kind * most + record, free, mask=held)
    tl.store(mine, free, mask=held)


@triton.jit
def list_records_kernel(
    request_rows, lengths, req_to_token, of_page, sizes, table, pages, segments, stride_kind,
    stride_request, PAGE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Records of the whole segments of a row, -1 behind them. Grid `[rows, kinds]`.

    Args:
        request_rows: int64 `[rows]`, rows of `req_to_token`; lengths: int64 or int32 `[rows]`.
        table: int32 `[kinds, max rows, segments]`.
    """
    row, kind = tl.program_id(0), tl.program_id(1)
    size = tl.load(sizes + kind)
    request = tl.load(request_rows + row).to(tl.int64)
    whole = tl.load(lengths + row).to(tl.int32) // size
    for first in range(0, segments, BLOCK):
        segment = first + tl.arange(0, BLOCK)
        last = req_to_token + request * stride_request + (segment + 1) * size - 1
        slot = tl.load(last, mask=(segment < whole) & (segment < segments), other=0)
        there = slot >= PAGE
        record = tl.load(of_page + kind * pages + slot // PAGE, mask=there, other=-1)
        where = table + kind * stride_kind + row * segments + segment
        tl.store(where, record, mask=segment < segments)


@triton.jit
def free_record(page_of, start, capacity, BLOCK: tl.constexpr):
    """The first record without a page from `start` on, round the ring; -1: all have one."""
    found, looked = -1, 0
    while (found < 0) & (looked < capacity):
        ahead = looked + tl.arange(0, BLOCK)
        place = (start + ahead) % capacity
        owner = tl.load(page_of + place, mask=ahead < capacity, other=0)
        first = tl.min(tl.where(owner < 0, ahead, capacity))
        found = tl.where(first < capacity, (start + first) % capacity, -1)
        looked += BLOCK
    return found


@triton.jit(do_not_specialize=["count", "kind"])
def reserve_records_kernel(
    jobs, req_to_token, of_page, page_of, following, told, count, kind, size, capacity, pages,
    most, stride_request, PAGE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Find records for segments that have none; where none is free, the oldest gives way.

    One program, so that two segments never get the same.

    Args:
        jobs: int32 `[count, 3]`: row of `req_to_token` and number of a whole segment in it; the
            record is written behind them, -1 where the segment has one.
        following: `next` of `RecordBuffers`.
    """
    of_page += kind * pages
    page_of += kind * most
    for j in range(count):
        request = tl.load(jobs + 3 * j).to(tl.int64)
        last = (tl.load(jobs + 3 * j + 1) + 1) * size - 1
        page = tl.load(req_to_token + request * stride_request + last) // PAGE
        record = -1
        if (page > 0) & (tl.load(of_page + page) < 0):
            start = tl.load(following + kind)
            record = free_record(page_of, start, capacity, BLOCK)
            if record < 0:
                record = start
                tl.store(of_page + tl.load(page_of + start), NOBODY)
                tl.store(told + 2 * kind + 1, tl.load(told + 2 * kind + 1) + 1)
            tl.store(page_of + record, page)
            tl.store(of_page + page, record)
            tl.store(following + kind, (record + 1) % capacity)
            tl.store(told + 2 * kind, tl.load(told + 2 * kind) + 1)
        tl.store(jobs + 3 * j + 2, record)
        tl.debug_barrier()  # the next job sees what this one took
