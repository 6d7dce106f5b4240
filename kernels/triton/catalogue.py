"""The kernels as servers launch them: what `compile.py` compiles ahead of time.

A server's kernels differ in head size, element type, unit, group and reduction. Their product is
large, so VARIANTS cover every value of each beside the widest combinations, which need most
registers and shared memory.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from sgl_sparsekv.summaries import CodeSummary

from . import int8_bounds
from .attend import attend_kernel, merge_kernel
from .cluster_ops import (
    MOST_OPENED,
    OPEN_WARPS,
    OPENED_PARTS,
    REGISTERS,
    TOGETHER,
    opened_block,
    rest_warps,
    run_of,
)
from .clusters import clusters_kernel
from .code_ops import code_tuning, empty_index
from .codes import codes_kernel
from .cover import count_kernel, draw_kernel, spread_kernel, weigh_kernel
from .cover_buffers import sample_room
from .fused import BEGIN_UNITS, FORGET_SLOTS, SEAL_UNITS
from .held import choose_held_kernel, commit_held_kernel, plan_held_kernel
from .index import REGISTERS as INDEX_REGISTERS
from .index import constants_of as index_constants
from .index import index_kernel, index_tuning
from .level_ops import RANKS_CHUNK
from .levels import FIRST, SINCE, pages_kernel, segments_kernel
from .mass import mass_kernel
from .narrow import narrow_kernel, place_kernel
from .opened import opened_kernel
from .opening import open_kernel
from .outliers import outliers_kernel
from .records import (
    LIST_BLOCK,
    RESERVE_BLOCK,
    forget_records_kernel,
    list_records_kernel,
    reserve_records_kernel,
)
from .residual import TOKENS as RESIDUAL_TOKENS
from .residual import describe_kernel, pack_kernel
from .rest import rest_kernel
from .sample import known_kernel
from .score import score_kernel
from .segment_bounds import segment_bounds_kernel
from .select import select_kernel
from .share import share_kernel
from .spec import FORMULAS, RESIDUALS, SAMPLE_TOKENS, SAMPLE_UNITS, SEGMENT
from .step import begin_kernel, forget_kernel, seal_kernel
from .summarise import summarise_kernel
from .tuning import (
    COVER_CHUNK,
    COVER_WARPS,
    HELD_CHUNK,
    HELD_WARPS,
    NARROW_REGISTERS,
    NARROW_WARPS,
    SELECT_CHUNK,
    SELECT_PARTS,
    SELECT_REGISTERS,
    SELECT_WARPS,
    STARTS_EARLY,
    TUNING,
    VIEW_STAGES,
    Tuning,
    attend_registers,
    num_splits,
    rows_together,
    select_threads,
    tuning_for,
    weigh_warps,
)

ARCHITECTURES = tuple(sorted(TUNING))
"""Compute capabilities that are compiled for."""
EARLY = tuple(sorted(STARTS_EARLY))
"""Those whose launches may start before the ones in front of them end."""
HEADS = 8


def _not_built(keys: torch.Tensor, skip: int) -> tuple[torch.Tensor, torch.Tensor]:
    raise NotImplementedError("only what a record holds is asked for")


SEGMENT_TOKENS, SUBSPACES = 512, 4
"""Of residual records."""
LEARNED = (
    CodeSummary("products", SEGMENT_TOKENS, 1, 16, False, 10, None, _not_built),
    CodeSummary("products", SEGMENT_TOKENS, SUBSPACES, 16, False, 10, None, _not_built),
)
DEFAULT_RECORDS = {
    "clusterkv": CodeSummary("clusters", 512, 1, 32, True, 6, 64, _not_built),
    "pqcache": CodeSummary("products", 512, 4, 16, False, 10, None, _not_built),
}
"""Of methods with the options that they have by default: a test compares."""
LONG = 128 << 10
"""Tokens of a context."""


@dataclass(frozen=True)
class Variant:
    """One kind of server.

    Attributes:
        head_dim: of K and V.
        dtype: Triton's name of the cache's element type.
        unit: tokens per unit.
        group: query heads per KV head.
        mean: reduction over the group by mean, else by maximum.
    """

    head_dim: int = 128
    dtype: str = "bf16"
    unit: int = 16
    group: int = 4
    mean: bool = False

    def tuning(self, arch: tuple[int, int]) -> Tuning:
        """Constants on one architecture."""
        return tuning_for(arch, self.head_dim, 4 if self.dtype == "fp32" else 2)


COMMON = Variant()
"""The variant of which every kernel is compiled, and whose builds tests repeat."""
WIDEST = Variant(256, "bf16", 16, 8, True)
VARIANTS = (
    COMMON,
    Variant(64, "fp16", 64, 8, True),
    Variant(128, "fp16", 64, 1),
    WIDEST,
    Variant(256, "fp16", 64, 4),
    Variant(256, "fp32", 16, 1),
)


@dataclass(frozen=True)
class Case:
    """One kernel with the constants of one use.

    Attributes:
        name: kernel and use, as the report shows it.
        kernel: the function.
        constants: its compile-time arguments.
        variant: kind of server.
        warps: warps per program.
        float_out: `out` is float32 whatever the cache.
        registers: most that a thread may have; None: as the compiler likes.
        types: of arguments whose names say another one elsewhere; "{}" is the cache's.
    """

    name: str
    kernel: Any
    constants: dict[str, Any]
    variant: Variant
    warps: int = 4
    float_out: bool = False
    registers: int | None = None
    types: dict[str, str] = field(default_factory=dict)

    @property
    def early(self) -> bool:
        """Whether it may start before the launch in front of it ends."""
        return bool(self.constants.get("EARLY"))


def cases(arch: tuple[int, int], variant: Variant = COMMON) -> list[Case]:
    """Kernels of one variant on one architecture; all of them for COMMON."""
    found = [
        *_score(arch, variant), *_select(arch, variant), *_narrow(variant),
        *_held(variant), *_attend(arch, variant), *_mass(arch, variant), *_cover(arch, variant),
        *_summarise(variant), *_coded(arch, variant), *_levels(arch, variant),
        *_clusters(arch, variant),
    ]  # fmt: skip
    return found + _others(arch, variant) if variant == COMMON else found


def early_cases(arch: tuple[int, int], variant: Variant = COMMON) -> list[Case]:
    """The launches of a layer as they are where they start early; the widest use of `score`."""
    widest = [
        list(_score(arch, variant))[-1], next(_select(arch, variant)), *_attend(arch, variant),
        *_narrow(variant), *(case for case in _held(variant) if "EARLY" in case.constants),
        *_mass(arch, variant), *_cover(arch, variant),
    ]  # fmt: skip
    return [
        replace(case, name=f"{case.name}, early", constants={**case.constants, "EARLY": True})
        for case in widest
    ]


def _ranks(arch: tuple[int, int], variant: Variant) -> dict[str, Any]:
    return {
        "BLOCK": variant.tuning(arch).score_units, "CHUNK": SELECT_CHUNK, "PARTS": SELECT_PARTS,
        "GROUP": variant.group, "MEAN": variant.mean,
    }  # fmt: skip


INT8, OWN_TYPES = "quest_int8", {"own_planes": "*i8"}
"""A method whose planes are its own, and their type."""


def _own(name: str) -> dict[str, Any]:
    """Of planes that a method brings."""
    return {"HAS_OWN": name == INT8, "WRITE": int8_bounds.PLANES.write if name == INT8 else None}


def _own_estimate(name: str) -> Any:
    return int8_bounds.PLANES.estimate if name == INT8 else None


def _score(arch: tuple[int, int], variant: Variant) -> Iterator[Case]:
    uses = {
        "quest": (True, False, False), "mean_std": (False, True, False),
        "quest + oracle": (True, False, True), "shadowkv": (False, False, False),
        INT8: (False, False, False),
        "quest, coverage": (True, False, False), "mean_std, coverage": (False, True, False),
    }  # fmt: skip
    tuned = variant.tuning(arch)
    for name, (low, std, exact) in uses.items():
        if name == INT8 and variant.dtype == "fp32":
            continue
        constants = {
            "BLOCK": tuned.score_units, "GROUP": variant.group, "UNIT": variant.unit,
            "DIM": variant.head_dim, "HAS_MIN_MAX": low, "HAS_MEAN_STD": std, "HAS_EXACT": exact,
            "HAS_LANDMARK": name == "shadowkv", **_own(name), "ESTIMATE": _own_estimate(name),
            "STAGES": tuned.score_stages, "UPCAST": False, "COVERS": "coverage" in name,
            "EARLY": False,
        }  # fmt: skip
        most = rows_together(256, variant.group, tuned.most_lanes)
        for rows in sorted({1, most} if variant == COMMON else {most}):
            label = f"score, {name}" + (f", {rows} rows" if rows > 1 else "")
            yield Case(
                label, score_kernel, {**constants, "ROWS": rows}, variant, tuned.score_warps,
                registers=tuned.score_registers, types=OWN_TYPES if name == INT8 else {},
            )  # fmt: skip


def _select(arch: tuple[int, int], variant: Variant) -> Iterator[Case]:
    """Its own table, the pages of a stock kernel, and with logical units for watched servers."""
    uses = {"": (False, False), ", stock pages": (True, False), ", watched": (False, True),
            ", finer units": (False, False), ", finer units, codes": (False, False),
            ", finer units, codes, marks": (False, False),
            ", coverage": (False, False), ", finer units, coverage": (False, False),
            ", held": (False, False), ", finer units, codes, held": (False, False)}  # fmt: skip
    if variant != COMMON:  # the head size does not matter
        codes = {", finer units, codes": (False, False)} if variant == WIDEST else {}
        pages = {"": (False, False)} if variant.unit == 16 else {", stock pages": (True, True)}
        uses = pages | codes
    for name, (dense, logical) in uses.items():
        constants = {
            **_ranks(arch, variant),
            "REDUCED": False,
            "COPY_DENSE": dense,
            "LOGICAL": logical,
            "FINER": "finer" in name,
            "CODED": "codes" in name or "coverage" in name,
            "MARKED": "marks" in name,
            "COUNTED": "codes" in name,
            "COVERS": "coverage" in name,
            "HELD": "held" in name,
            "EARLY": False,
        }
        warps, registers = select_threads(variant.group, variant.mean, "codes" in name)
        yield Case(
            f"select{name}", select_kernel, constants, variant, warps, registers=registers
        )  # fmt: skip


def _narrow(variant: Variant) -> Iterator[Case]:
    """Behind `select` of rows of single tokens, in contexts of 128k; for COMMON alone."""
    if variant != COMMON:
        return
    constants = {"CHUNK": SELECT_CHUNK, "CHUNKS": LONG // SELECT_CHUNK, "EARLY": False}
    for name, covers in (("narrow", False), ("narrow, coverage", True)):
        use = {**constants, "COVERS": covers}
        yield Case(
            name, narrow_kernel, use, variant, NARROW_WARPS, registers=NARROW_REGISTERS
        )  # fmt: skip
    for name in ("place", "place, watched", "place, marks", "place, held"):
        use = {
            **constants, "LOGICAL": "watched" in name, "MARKED": "marks" in name,
            "HELD": "held" in name,
        }  # fmt: skip
        yield Case(name, place_kernel, use, variant, NARROW_WARPS)


def _held(variant: Variant) -> Iterator[Case]:
    """Of rows that choose every r-th step; for COMMON alone."""
    if variant != COMMON:
        return
    yield Case("plan held", plan_held_kernel, {"UNIT": variant.unit}, variant)
    for name, beside in (("choose held", False), ("choose held, marks and coverage", True)):
        use = {
            "CHUNK": HELD_CHUNK, "LOGICAL": False, "MARKED": beside, "COVERS": beside,
            "EARLY": False,
        }  # fmt: skip
        yield Case(name, choose_held_kernel, use, variant, HELD_WARPS, types={"keys": "*i32"})
    yield Case("commit held", commit_held_kernel, {}, variant)


def _attend(arch: tuple[int, int], variant: Variant) -> Iterator[Case]:
    tuned = variant.tuning(arch)
    constants = {
        "HEADS": HEADS, "GROUP": variant.group, "DIM": variant.head_dim,
        "VALUE_DIM": variant.head_dim, "UNIT": variant.unit, "SPLITS": num_splits(HEADS),
        "TOKENS": tuned.attend_tokens, "STAGES": tuned.attend_stages, "UPCAST": False,
        "EARLY": False,
    }  # fmt: skip
    uses = {
        "attend": (False, False), "attend, finer units": (False, True),
        "attend, views": (True, False), "attend, views and finer units": (True, True),
        "attend, coverage": (False, False), "attend, finer units, coverage": (False, True),
    }  # fmt: skip
    uses["attend, finer units and the rest"] = (False, True)
    for name, (views, finer) in uses.items():
        rest = num_splits(HEADS) if "rest" in name else 0
        use = {**constants, "VIEWS": views, "FINER": finer, "REST": rest}
        use["COVERS"] = "coverage" in name
        use["STAGES"] += VIEW_STAGES * views
        registers = attend_registers(variant.head_dim, views, finer, "coverage" in name)
        yield Case(name, attend_kernel, use, variant, tuned.attend_warps, registers=registers)


def _mass(arch: tuple[int, int], variant: Variant) -> Iterator[Case]:
    tuned = variant.tuning(arch)
    constants = {
        "HEADS": HEADS, "GROUP": variant.group, "DIM": variant.head_dim, "UNIT": variant.unit,
        "SPLITS": num_splits(HEADS), "TOKENS": 2 * tuned.attend_tokens,
        "STAGES": tuned.attend_stages, "UPCAST": False, "EARLY": False,
    }  # fmt: skip
    for name, finer in (("mass", False), ("mass, finer units", True)):
        yield Case(name, mass_kernel, {**constants, "FINER": finer}, variant, tuned.attend_warps)


LONGEST = 131_072
"""Tokens of a row that chooses single ones."""


def _cover(arch: tuple[int, int], variant: Variant) -> Iterator[Case]:
    """Rows that ask for a coverage, in units of the server and in tokens."""
    tuned = variant.tuning(arch)
    same = {
        "GROUP": variant.group, "DIM": variant.head_dim, "UNIT": variant.unit, "UPCAST": False,
        "EARLY": False,
    }  # fmt: skip
    reads = {**same, "TOKENS": tuned.attend_tokens, "STAGES": tuned.attend_stages}
    for name, finer in (("", False), (", finer units", True)):
        use = {**reads, "FINER": finer}
        yield Case(f"known{name}", known_kernel, use, variant, tuned.attend_warps)
    chunks = {"CHUNK": COVER_CHUNK, "CHUNKS": LONGEST // COVER_CHUNK}
    few = {"LEAST_UNITS": SAMPLE_UNITS, "LEAST_TOKENS": SAMPLE_TOKENS}
    plain = {"CHUNK": COVER_CHUNK, "EARLY": False}
    spread = {**plain, "SCORES": tuned.score_units, "PARTS": SELECT_PARTS, "GROUP": variant.group}
    uses: dict[str, tuple[Any, dict[str, Any]]] = {"spread": (spread_kernel, spread)}
    uses["count"] = (count_kernel, plain)
    for name, finer in (("", False), (", finer units", True)):
        size = sample_room(1 if finer else variant.unit)
        drawn = {**chunks, **few, "UNIT": variant.unit, "SIZE": size, "FINER": finer}
        uses[f"draw{name}"] = (draw_kernel, {**drawn, "EARLY": False})
        uses[f"weigh{name}"] = (weigh_kernel, {**same, **drawn})
    for name, (kernel, constants) in uses.items():
        warps = weigh_warps(constants["SIZE"]) if kernel is weigh_kernel else COVER_WARPS
        yield Case(name, kernel, constants, variant, warps)


def _summarise(variant: Variant) -> Iterator[Case]:
    for name in ("quest", "mean_std", "shadowkv", INT8):
        constants = {
            "UNIT": variant.unit, "DIM": variant.head_dim, "HAS_MIN_MAX": name == "quest",
            "HAS_MEAN_STD": name == "mean_std", "HAS_LANDMARK": name == "shadowkv",
            **_own(name),
        }  # fmt: skip
        types = OWN_TYPES if name == INT8 else {}
        yield Case(f"summarise, {name}", summarise_kernel, constants, variant, types=types)


def _coded(arch: tuple[int, int], variant: Variant) -> Iterator[Case]:
    """Records by the default options: they are built, and tokens are ranked by them. Of COMMON, and
    of the widest with 16 bits."""
    if variant not in (COMMON, WIDEST):
        return
    itemsize = 4 if variant.dtype == "fp32" else 2
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}[variant.dtype]
    for method, summary in DEFAULT_RECORDS.items():
        width = variant.head_dim // summary.subspaces
        shapes = index_tuning(width, summary.segment_size, itemsize, arch)
        wide = index_constants(summary, variant.head_dim, itemsize, shapes)
        yield Case(
            f"index, {method}", index_kernel, {**wide, "LESS": False}, variant, shapes.warps,
            registers=INDEX_REGISTERS,
            types={"slots": "*i32", "records": "i32", "key_pointers": "*i64"},
        )  # fmt: skip
        q = torch.empty(1, 1, variant.group, variant.head_dim, dtype=dtype, device="meta")
        index = empty_index(summary, variant.head_dim, dtype)
        tuned = code_tuning(q, index)
        for name, ranks in (("sums", False), ("ranks", True), ("ranks, coverage", True)):
            constants = {
                "RANKS": ranks, "MEAN": variant.mean, "CODED": FORMULAS[summary.name],
                "GROUP": variant.group, "DIM": variant.head_dim, "UNIT": variant.unit,
                "SUBSPACES": summary.subspaces, "CODES": summary.codes,
                "SEGMENT": summary.segment_size, "RUN": tuned.run, "BLOCK": tuned.block,
                "PIECE": tuned.piece, "PARTS": tuned.parts, "STAGES": tuned.stages,
                "UPCAST": False, "COVERS": "coverage" in name, "EARLY": False,
            }  # fmt: skip
            yield Case(
                f"{name} of codes, {method}", codes_kernel, constants, variant, tuned.warps,
                registers=tuned.registers,
            )  # fmt: skip


def _clusters(arch: tuple[int, int], variant: Variant) -> Iterator[Case]:
    """Clusters and what is left of keys, by the default options; of COMMON and the widest."""
    if variant not in (COMMON, WIDEST):
        return
    run, splits = run_of(SEGMENT_TOKENS), num_splits(HEADS)
    shape = {
        "GROUP": variant.group, "UNIT": variant.unit, "SEGMENT": SEGMENT_TOKENS, "EARLY": False,
    }  # fmt: skip
    vectors = {**shape, "DIM": variant.head_dim}
    coded = {**vectors, "SUBSPACES": SUBSPACES, "RUN": run, "UPCAST": False}
    parts = {"BLOCK": opened_block(SEGMENT_TOKENS), "PARTS": OPENED_PARTS}
    types = {
        "centroids": "*i8", "codebooks": "*i8", "values": "*i8", "places": "*i16",
        "cluster_ends": "*i16", "by_code": "fp32", "by_centroid": "fp32",
    }  # fmt: skip
    yield Case(
        "logits of clusters", clusters_kernel,
        {**vectors, "BLOCK": TOGETHER, "TOKENS": run, "UPCAST": False}, variant,
        registers=REGISTERS, types=types,
    )  # fmt: skip
    yield Case(
        "open clusters", open_kernel,
        {**shape, "MEAN": variant.mean, "BLOCK": MOST_OPENED, "ONE": True}, variant, OPEN_WARPS,
        types={"keys": "*i32"},
    )  # fmt: skip
    for name, ranks in (("sums", False), ("ranks", True)):
        constants = {"RANKS": ranks, "MEAN": variant.mean, "RESIDUALS": RESIDUALS}
        yield Case(
            f"{name} in open clusters", opened_kernel, {**coded, **parts, **constants}, variant,
            types=types,
        )  # fmt: skip
    rest = {
        **coded, "VALUE_DIM": variant.head_dim, "SPLITS": splits, "REST": splits,
        "RESIDUALS": RESIDUALS,
    }  # fmt: skip
    warps = rest_warps(variant.head_dim)
    yield Case("what is not read", rest_kernel, rest, variant, warps, types=types)
    built = {"PARTS": SUBSPACES, "SIZE": SEGMENT_TOKENS, "TILE": RESIDUAL_TOKENS}
    types = {
        "slots": "*i32", "records": "i32", "value_pointers": "*i64", "found": "*u8", "means":
        "*" + variant.dtype, "places": "*i16", "ends": "*i16", "centroids": "*i8", "values": "*i8",
        "books": "*" + variant.dtype, "codebooks": "*i8",
    }  # fmt: skip
    yield Case(
        "describe clusters", describe_kernel,
        {**built, "DIM": variant.head_dim, "VALUE_DIM": variant.head_dim, "SPLIT": True}, variant,
        types=types,
    )  # fmt: skip
    yield Case(
        "pack codes", pack_kernel, {**built, "WIDTH": variant.head_dim // SUBSPACES}, variant,
        types=types,
    )  # fmt: skip
    for part, learned in zip(("clusters", "what is left"), LEARNED, strict=True):
        width = variant.head_dim // learned.subspaces
        tuned = index_tuning(width, SEGMENT_TOKENS, 2, arch)
        wide = index_constants(learned, variant.head_dim, 2, tuned)
        yield Case(
            f"index, {part}", index_kernel, {**wide, "LESS": part != "clusters"}, variant,
            tuned.warps, registers=INDEX_REGISTERS,
            types={"slots": "*i32", "records": "i32", "key_pointers": "*i64", "centroids": "*i8"},
        )  # fmt: skip


def _levels(arch: tuple[int, int], variant: Variant) -> Iterator[Case]:
    """Two levels of bounds, in contexts of 128k tokens."""
    tuned = variant.tuning(arch)
    yield Case(
        "bounds of segments", segment_bounds_kernel,
        {"SIZE": SEGMENT, "UNIT": variant.unit, "DIM": variant.head_dim}, variant,
        types={"slots": "*i32"},
    )  # fmt: skip
    constants = {
        "GROUP": variant.group, "DIM": variant.head_dim, "UNIT": variant.unit,
        "BLOCK": tuned.score_units, "WIDEST": LONG // SEGMENT, "UPCAST": False, "EARLY": False,
    }  # fmt: skip
    pages = {**constants, "CHUNK": RANKS_CHUNK, "STAGES": tuned.score_stages}
    uses = {
        "segments": (segments_kernel, constants),
        "units in segments": (pages_kernel, {**pages, "ROUND": FIRST.value, "HAS_EXACT": False}),
        "units in segments, exact": (
            pages_kernel, {**pages, "ROUND": FIRST.value, "HAS_EXACT": True}
        ),
        "units in segments, exact, since": (
            pages_kernel, {**pages, "ROUND": SINCE.value, "HAS_EXACT": True}
        ),
    }  # fmt: skip
    for name, (kernel, values) in uses.items():
        yield Case(
            name, kernel, values, variant, tuned.score_warps, registers=tuned.score_registers
        )


def _others(arch: tuple[int, int], variant: Variant) -> list[Case]:
    page = {"UNITS_PER_PAGE": 64 // variant.unit}
    together = rows_together(256, variant.group, variant.tuning(arch).most_lanes)
    begin = {"UNIT": variant.unit, "BLOCK": BEGIN_UNITS, "ROWS": together, **page}
    return [
        Case("merge", merge_kernel, {"VALUE_DIM": variant.head_dim, "BLOCK": 16}, variant),
        Case("share", share_kernel, _ranks(arch, variant), variant, SELECT_WARPS, True),
        Case("begin", begin_kernel, {**begin, "VIEWS": False, "COVERS": False}, variant),
        Case("begin, views", begin_kernel, {**begin, "VIEWS": True, "COVERS": True}, variant),
        Case("forget", forget_kernel, {"PAGE": 64, "BLOCK": FORGET_SLOTS, **page}, variant),
        Case("seal", seal_kernel, {"BLOCK": SEAL_UNITS}, variant),
        Case(
            "outliers",
            outliers_kernel,
            {"GROUP": variant.group, "CHUNK": SELECT_CHUNK, "EARLY": False},
            variant,
            SELECT_WARPS,
            registers=SELECT_REGISTERS,
        ),
        Case("forget records", forget_records_kernel, {"PAGE": 64, "BLOCK": FORGET_SLOTS}, variant),
        Case("list records", list_records_kernel, {"PAGE": 64, "BLOCK": LIST_BLOCK}, variant),
        Case(
            "reserve records", reserve_records_kernel, {"PAGE": 64, "BLOCK": RESERVE_BLOCK}, variant
        ),
    ]
