"""The built kernels as ctypes functions; argument structs mirror `args.h` field by field."""

import ctypes
from pathlib import Path

import torch

from sgl_sparsekv.errors import UnsupportedSetup

from .levels import built_library, runnable_levels

BUILD = "run `python -m sgl_sparsekv.kernels.cpu.build`"


def _fields(names: str, kind: type = ctypes.c_int64) -> list[tuple[str, type]]:
    return [(name, kind) for name in names.split()]


class AttendArgs(ctypes.Structure):
    """`AttendArgs` of args.h."""

    _fields_ = [
        *_fields("q keys values table counts tails out lse scratch", ctypes.c_void_p),
        *_fields("rows heads group dim vdim width unit dtype threads"),
        *_fields("q_row q_head q_group k_slot k_head v_slot v_head t_row t_head c_row c_head"),
        *_fields("scale", ctypes.c_double),
    ]


class ScoreArgs(ctypes.Structure):
    """`ScoreArgs` of args.h."""

    _fields_ = [
        *_fields("q data table begin end known out scratch", ctypes.c_void_p),
        *_fields("rows heads group dim width unit dtype threads formula reduction"),
        *_fields("q_row q_head q_group d_item d_head d_plane t_row"),
        *_fields("scale spread", ctypes.c_double),
    ]


class CodeArgs(ctypes.Structure):
    """`CodeArgs` of args.h."""

    _fields_ = [
        *_fields("q keys codebooks codes centroids scales labels places ends", ctypes.c_void_p),
        *_fields("reach records slots begin end known out scratch", ctypes.c_void_p),
        *_fields("rows heads group dim width segments segment subspaces entries dtype threads"),
        *_fields("reduction q_row q_head q_group k_slot k_head r_row s_row"),
        *_fields("scale", ctypes.c_double),
    ]


class ChooseArgs(ctypes.Structure):
    """`ChooseArgs` of args.h."""

    _fields_ = [
        ("codes", CodeArgs),
        *_fields("num_units counts logical physical weights", ctypes.c_void_p),
        *_fields("n"),
        *_fields("by_code by_centroid", ctypes.c_double),
    ]


class WeighArgs(ctypes.Structure):
    """`WeighArgs` of args.h."""

    _fields_ = [
        ("codes", CodeArgs),
        *_fields("logical counts weights", ctypes.c_void_p),
        *_fields("n unit c_row c_head"),
        *_fields("by_code by_centroid", ctypes.c_double),
    ]


class EstimateArgs(ctypes.Structure):
    """`EstimateArgs` of args.h."""

    _fields_ = [
        *_fields("weights values scales records read read_lse out lse scratch", ctypes.c_void_p),
        *_fields("rows heads group vdim segments subspaces dtype threads r_row"),
    ]


class SelectArgs(ctypes.Structure):
    """`SelectArgs` of args.h."""

    _fields_ = [
        *_fields("scores table begin end num_units counts", ctypes.c_void_p),
        *_fields("logical physical scratch", ctypes.c_void_p),
        *_fields("rows heads width n threads t_row c_row c_head"),
    ]


class AllotArgs(ctypes.Structure):
    """`AllotArgs` of args.h."""

    _fields_ = [
        *_fields("scores begin end num_units counts pooled", ctypes.c_void_p),
        *_fields("lowest out scratch", ctypes.c_void_p),
        *_fields("rows heads width threads"),
        *_fields("least", ctypes.c_double),
    ]


class SampleArgs(ctypes.Structure):
    """`SampleArgs` of args.h."""

    _fields_ = [
        *_fields("q keys scores table begin end known coverage lowest scratch", ctypes.c_void_p),
        *_fields("rows heads group dim width unit size dtype threads"),
        *_fields("q_row q_head q_group k_slot k_head t_row"),
        *_fields("scale", ctypes.c_double),
    ]


class SummariseArgs(ctypes.Structure):
    """`SummariseArgs` of args.h."""

    _fields_ = [
        *_fields("keys fields units", ctypes.c_void_p),
        *_fields("count heads dim unit dtype threads planes"),
        *_fields("k_slot k_head f_unit f_head f_plane"),
    ]


class IndexArgs(ctypes.Structure):
    """`IndexArgs` of args.h."""

    _fields_ = [
        *_fields("keys slots skips records codes codebooks scratch", ctypes.c_void_p),
        *_fields("count heads dim segment subspaces entries cosine iterations capacity"),
        *_fields("dtype threads k_slot k_head"),
    ]


DTYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
"""Element type -> `DType` of simd.h."""


def openmp_library() -> ctypes.CDLL:
    """The OpenMP runtime that torch runs on: the kernels use its threads, never a second pool.

    Raises:
        UnsupportedSetup: torch runs on no OpenMP runtime with GOMP_parallel.
    """
    torch.ones(1).add_(1)
    loaded = {line.split()[-1] for line in Path("/proc/self/maps").read_text().splitlines()}
    own = Path(torch.__file__).parent / "lib"
    bundled = sorted(str(path) for path in own.glob("lib*omp*.so*"))
    # Other packages bring runtimes of their own (scikit-learn does), so torch's comes first.
    for path in (*bundled, *sorted(loaded)):
        name = Path(path).name
        if name.startswith(("libgomp", "libiomp5", "libomp")):
            library = ctypes.CDLL(path)
            if hasattr(library, "GOMP_parallel"):
                return library
    raise UnsupportedSetup("the CPU kernels need a torch that runs on OpenMP: install a PyPI torch")


def load_library(level_name: str | None = None) -> ctypes.CDLL:
    """Load the best level that is built and runs here, or the named one.

    Raises:
        UnsupportedSetup: there is none.
    """
    levels = [level for level in runnable_levels() if level_name in (None, level.name)]
    if not levels:
        raise UnsupportedSetup(f"this CPU cannot run the CPU kernels (level {level_name or 'any'})")
    path = built_library(levels[0])
    if path is None:
        raise UnsupportedSetup(f"the CPU kernels are not built for {levels[0].name}: {BUILD}")
    library = ctypes.CDLL(str(path))
    region = ctypes.cast(openmp_library().GOMP_parallel, ctypes.c_void_p)
    library.set_parallel_region(region)
    for name, args in (
        ("allot", AllotArgs),
        ("sample", SampleArgs),
        ("attend", AttendArgs),
        ("score", ScoreArgs),
        ("score_codes", CodeArgs),
        ("score_clusters", CodeArgs),
        ("choose", ChooseArgs),
        ("weigh", WeighArgs),
        ("estimate", EstimateArgs),
        ("select_units", SelectArgs),
        ("summarise", SummariseArgs),
        ("index_segments", IndexArgs),
    ):
        getattr(library, name).argtypes = [ctypes.POINTER(args)]
        getattr(library, name).restype = None
    for name, args in (
        ("attend_scratch", AttendArgs),
        ("sample_scratch", SampleArgs),
        ("score_scratch", ScoreArgs),
        ("score_codes_scratch", CodeArgs),
        ("score_clusters_scratch", CodeArgs),
        ("choose_scratch", ChooseArgs),
        ("weigh_scratch", WeighArgs),
        ("estimate_scratch", EstimateArgs),
        ("index_segments_scratch", IndexArgs),
    ):
        getattr(library, name).argtypes = [ctypes.POINTER(args)]
        getattr(library, name).restype = ctypes.c_int64
    return library
