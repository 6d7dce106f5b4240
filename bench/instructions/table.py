"""The table of counts, before a change and now."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sgl_sparsekv.kernels.triton.catalogue import cases
from sgl_sparsekv.kernels.triton.compile import compile_case, cuda_build
from sgl_sparsekv.kernels.triton.fused import WORKERS
from sgl_sparsekv.kernels.triton.tuning import Tuning, rows_together, score_chunks

from bench.instructions.listing import Listing, disassemble
from bench.instructions.waits import Way, per_pass, shortest
from sgl_sparsekv.geometry import ceil_div

BEFORE = Path(__file__).with_name("before.json")
ARCHITECTURE = (9, 0)
KERNELS = {"score, quest + oracle": "score", "select": "select", "attend": "attend"}
"""Cases that a server with default flags launches, and how the table calls them."""
HEAD = (
    "| kernel | | instructions | barriers | loads, of 128 bits | asynchronous copies, of 128 bits "
    "| waits in turn | inner loops: instructions, barriers, copies, waits of a pass |\n"
    "|---|---|---|---|---|---|---|---|"
)

WIDTHS = (2049, 8193)
"""Units of a server's longest row: 128k in units of 64 and 16."""
RANKED = "ATOMS"
"""What only a row whose units are ranked passes: a histogram in shared memory."""
LANGUAGES = (
    "| `select` of a ranked row | instructions | shortest way: issued by a warp, barriers, waits "
    "| a further digit: instructions, barriers |\n|---|---|---|---|"
)


@dataclass(frozen=True)
class Counts:
    """One kernel.

    Attributes:
        instructions: in the listing.
        barriers: of the whole program.
        loads: from global memory, atomics aside.
        wide_loads: of 128 bits.
        copies: asynchronous, global to shared memory.
        wide_copies: of 128 bits.
        waits: round trips to memory in turn on the shortest way through, loops passed once.
        loops: per innermost loop instructions, barriers, copies, waits of one pass.
    """

    instructions: int
    barriers: int
    loads: int
    wide_loads: int
    copies: int
    wide_copies: int
    waits: int
    loops: list[list[float]]

    @classmethod
    def of(cls, listing: Listing) -> "Counts":
        """Counts of a listing."""
        way = shortest(listing, works=True)
        assert way is not None, "no way through the kernel was found"
        loops = [
            [
                loop[1] - loop[0] + 1, listing.count("BAR", within=loop),
                listing.count("LDGSTS", within=loop), per_pass(listing, loop),
            ]
            for loop in listing.loops
        ]  # fmt: skip
        return cls(
            len(listing.code), listing.count("BAR"), listing.count("LDG"), listing.wide("LDG"),
            listing.count("LDGSTS"), listing.wide("LDGSTS"), way.waits, loops,
        )  # fmt: skip


def counted() -> dict[str, Counts]:
    """Counts of today's kernels, by name."""
    found = {case.name: case for case in cases(ARCHITECTURE)}
    return {
        short: Counts.of(disassemble(compile_case(found[name], ARCHITECTURE).binary))
        for name, short in KERNELS.items()
    }


def rows(before: dict[str, Any], now: dict[str, Counts]) -> list[str]:
    """Lines of the table."""
    lines = []
    for name, counts in now.items():
        for label, one in (("before", Counts(**before[name])), ("now", counts)):
            loops = "; ".join(" ".join(f"{n:g}" for n in loop) for loop in one.loops)
            lines.append(
                f"| {name} | {label} | {one.instructions} | {one.barriers} | {one.loads}, "
                f"{one.wide_loads} | {one.copies}, {one.wide_copies} | {one.waits} | {loops} |"
            )
    return lines


def languages() -> list[str]:
    """Lines of `select` in Triton and in CUDA C++, for rows of so many units."""
    (case,) = (case for case in cases(ARCHITECTURE) if case.name == "select")
    listing = disassemble(compile_case(case, ARCHITECTURE).binary)
    lines = [f"| Triton, up to 2,048 units | {way_of(listing)} | all four are on the way |"]
    for units in WIDTHS:
        listing = disassemble(cuda_build(ARCHITECTURE, units).binary)
        (digit,) = (loop for loop in listing.loops if listing.count("BAR", within=loop))
        size, barriers = digit[1] - digit[0] + 1, listing.count("BAR", within=digit)
        kind = f"CUDA C++, up to {units:,} units"
        lines.append(f"| {kind} | {way_of(listing)} | {size}, {barriers} |")
    return lines


def way_of(listing: Listing) -> str:
    """Size, and the way through of a row whose units are ranked."""
    way: Way | None = shortest(listing, works=True, through=RANKED)
    assert way is not None, "no way through the kernel was found"
    return f"{len(listing.code)} | {way.instructions}, {way.barriers}, {way.waits}"


def programs() -> str:
    """How many programs `score` has in one layer, before and now, and how many without a block."""
    rows, heads, unit, processors, width, filled = 8, 8, 16, 132, 131_076, 32_768
    blocks, used, pairs = ceil_div(width, 32 * unit), ceil_div(filled, 32 * unit), rows * heads
    before, idle = pairs * (blocks + 2), pairs * (blocks - used)
    together = rows_together(rows, 4, Tuning.most_lanes)
    chunks, groups = score_chunks(rows, heads, blocks, together, processors), rows // together
    now = groups * heads * (chunks + ceil_div(WORKERS, groups))
    late = pairs * max(0, chunks // together - used)
    return (
        f"Programs of `score` in a layer, {rows} rows of {filled:,} tokens on a server of "
        f"{width - 4:,}, {heads} KV heads, {processors} multiprocessors: {before:,} before, of "
        f"which {idle:,} had no block to score; {now:,} now, of which {late:,}."
    )


def table() -> str:
    """All of it, as the page has it."""
    lines = rows(json.loads(BEFORE.read_text())["kernels"], counted())
    return "\n".join([HEAD, *lines, "", LANGUAGES, *languages(), "", programs()])
