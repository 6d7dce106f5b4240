"""Final scores of a layer, written out for callers that want them; a server needs none."""

import triton
import triton.language as tl

from .select import group_rank


@triton.jit(do_not_specialize=["blocks"])
def share_kernel(
    logits, parts, begins, ends, out, blocks, width,
    BLOCK: tl.constexpr, CHUNK: tl.constexpr, PARTS: tl.constexpr, GROUP: tl.constexpr,
    MEAN: tl.constexpr,
):  # fmt: skip
    """float32 `[rows, H, width]` from what `score_kernel` leaves. Grid `[rows, H, chunks]`."""
    row, head, chunk = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    pair = row.to(tl.int64) * tl.num_programs(1) + head
    unit = chunk * CHUNK + tl.arange(0, CHUNK)
    begin, end = tl.load(begins + row), tl.load(ends + row)
    rank = tl.full([CHUNK], float("-inf"), tl.float32)
    if begin < end:
        rank = group_rank(
            logits + pair * GROUP * width, parts + pair * blocks * 2 * GROUP,
            unit, begin, end, width, BLOCK, GROUP, MEAN, PARTS,
        )  # fmt: skip
    tl.store(out + pair * width + unit, rank, mask=unit < width)
