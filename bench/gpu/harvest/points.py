"""The points at which kernels are measured: what is compiled first is what is used later."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import product

from bench.gpu.shapes import Extents, K, Shape
from bench.gpu.variants import Variant

SHAPES = (
    Shape(32 * K, 1), Shape(32 * K, 8), Shape(128 * K, 1), Shape(128 * K, 8), Shape(64 * K, 8),
    Shape(64 * K, 1),
)  # fmt: skip
"""The most telling first."""
HOPPER = (9, 0)
"""Compiled for where there is no GPU."""
SWEPT = (Shape(32 * K, 1), Shape(32 * K, 8))
NARROW = (("8 ranks", 1, 8), ("Qwen2.5-7B", 4, 7))
"""Name, KV heads and query heads per KV head of layers with fewer heads: fewer programs."""
WARP, MOST_SCORES = 32, 16
"""Threads of a warp; scores of a chunk that one thread may hold: with more, registers spill."""
NARROW_SHAPE = Shape(32 * K, 8)


@dataclass(frozen=True)
class Point:
    """One launch by one variant.

    Attributes:
        launch: score, select, attend, or decode: all three of a layer.
        variant: who launches it.
    """

    launch: str
    variant: Variant


def sweeps() -> Iterator[Point]:
    """Constants of each launch around today's."""
    for splits in (4, 8, 16, 32, 64, 128):
        yield Point("attend", Variant(f"{splits} splits", constants=(("NUM_SPLITS", splits),)))
    for tokens, warps, stages in product((32, 64, 128), (4, 8), (2, 3, 5)):
        tuned = {"attend_tokens": tokens, "attend_warps": warps, "attend_stages": stages}
        name = f"{tokens} tokens, {warps} warps, {stages} stages"
        yield Point("attend", Variant(name, tuning=tuple(tuned.items())))
    for units, warps in product((16, 32, 64), (2, 4, 8)):
        tuned = {"score_units": units, "score_warps": warps}
        yield Point("score", Variant(f"{units} units, {warps} warps", tuning=tuple(tuned.items())))
    for chunk, warps in product((512, 1024, 2048, 4096), (4, 8, 16, 32)):
        if not 1 <= chunk / (WARP * warps) <= MOST_SCORES:
            continue
        constants = (("SELECT_CHUNK", chunk), ("SELECT_WARPS", warps))
        yield Point("select", Variant(f"chunk {chunk}, {warps} warps", constants=constants))


PASSES = """for step in tl.static_range(4):
        histogram = tl.zeros([DIGITS], tl.int32)
        histogram"""
STORED = ("select.py", "entry, mask=keep)", "entry, mask=keep & (placed < 0))")
"""With fewer passes more units are kept than there is room for: nothing of them is stored."""
CHOSEN = "        least, of_equals = threshold_of(key, unit < total, count)\n"
NORMALISED = "    share -= normalisers(parts, begin, end, g, BLOCK, GROUP, PARTS)[:, None]\n"
MARKED = "        met = tl.where(entry < 0, 1, met)\n"


def ablations() -> Iterator[Point]:
    """Kernels without one of their parts: what it costs. Their results are wrong."""
    for count in (4, 2, 1, 0):
        edit = ("radix.py", PASSES, PASSES.replace("(4)", f"({count})"))
        yield Point("select", Variant(f"{count} passes, stores nothing", edits=(STORED, edit)))
    written = (
        CHOSEN + "        tl.store(physical, of_equals + least.to(tl.int32))\n        return\n"
    )
    yield Point("select", Variant("writes no table", edits=(("select.py", CHOSEN, written),)))
    ranked = ("select.py", NORMALISED, "")
    yield Point("select", Variant("normalises nothing", edits=(ranked,)))
    joined = ("attend.py", "    if (active == 1) & (", "    if (active >= 1) & (")
    yield Point("attend", Variant("does not join splits", edits=(joined,)))
    stamps = ("score.py", MARKED, "")
    yield Point("score", Variant("looks for no missing stamps", edits=(stamps,)))


CUDA = ("tuning.py", "return SELECT_BY[known] if", 'return "cuda" if')
SELECT_CUDA = Variant("CUDA C++", edits=(CUDA,))


EARLY = Variant(
    "starts early",
    edits=(("tuning.py", "is not None and STARTS_EARLY[known]", "is not None"),),
)
"""Launches that start while the ones in front of them end, where the GPU can."""


def candidates() -> Iterator[Point]:
    """What could serve in place of today's kernels and launches."""
    yield Point("decode", EARLY)
    yield Point("select", SELECT_CUDA)
    fewer = (("CUDA_SELECT_THREADS", 512),)
    yield Point("select", Variant("CUDA C++, 512 threads", edits=(CUDA,), constants=fewer))


def narrow(extents: Extents) -> Iterator[tuple[str, Extents]]:
    """The measured layer with other heads."""
    for name, heads, group in NARROW:
        yield name, replace(extents, heads=heads, group=group)
