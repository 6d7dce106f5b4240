"""Final scores of a layer, written out for callers that want them; a server needs none."""

import triton
import triton.language as tl

from .select import group_rank


@triton.jit
def share_kernel(
    logits, parts, begins, ends, out, width,
    BLOCKS: tl.constexpr, BLOCKS_PADDED: tl.constexpr, BLOCK: tl.constexpr,
    GROUP: tl.constexpr, MEAN: tl.constexpr,
):  # fmt: skip
    """float32 `[rows, H, width]` from what `score_kernel` leaves. Grid `[rows, H, blocks]`."""
    row, head, block = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    pair = row.to(tl.int64) * tl.num_programs(1) + head
    unit = block * BLOCK + tl.arange(0, BLOCK)
    begin, end = tl.load(begins + row), tl.load(ends + row)
    rank = tl.full([BLOCK], float("-inf"), tl.float32)
    if begin < end:
        rank = group_rank(
            logits + pair * GROUP * width, parts + pair * BLOCKS * 2 * GROUP,
            unit, begin, end, width, BLOCKS, BLOCKS_PADDED, BLOCK, GROUP, MEAN,
        )  # fmt: skip
    tl.store(out + pair * width + unit, rank, mask=unit < width)
