"""The built kernels as ctypes functions; arguments mirror `args.h` field by field."""

import ctypes
import struct
import threading
from pathlib import Path

import torch

from sgl_sparsekv.errors import UnsupportedSetup

from .levels import built_library, runnable_levels

BUILD = "run `python -m sgl_sparsekv.kernels.cpu.build`"


_CODES = (
    "q codebooks codes centroids scales labels places ends records slots begin end "
    "rows heads group dim width segments segment subspaces entries dtype threads "
    "q_row q_head q_group r_row s_row scale keys reach known out k_slot k_head reduction"
)
_SAMPLE = (
    "q keys scores table begin end known coverage lowest rows heads group dim width unit size "
    "dtype threads q_row q_head q_group k_slot k_head t_row scale"
)
_ATTEND = (
    "q keys values table counts tails lists out lse rows heads group dim vdim width unit dtype "
    "threads q_row q_head q_group k_slot k_head v_slot v_head t_row t_head c_row c_head scale"
)
FIELDS = {
    "attend": _ATTEND,
    "attend_all": f"{_ATTEND} weights values scales records segments subspaces r_row",
    "score": "q data table begin end known out "
    "rows heads group dim width unit dtype threads formula reduction "
    "q_row q_head q_group d_item d_head d_plane t_row scale spread",
    "score_codes": _CODES,
    "score_clusters": _CODES,
    "choose": f"{_CODES} num_units counts logical physical weights n by_code by_centroid",
    "weigh": f"{_CODES} logical counts weights n unit c_row c_head by_code by_centroid",
    "estimate": "weights values scales records read read_lse out lse "
    "rows heads group vdim segments subspaces dtype threads r_row",
    "select_units": "scores table begin end num_units counts logical physical "
    "rows heads width n threads t_row c_row c_head",
    "allot": "scores begin end num_units counts pooled lowest out rows heads width threads least",
    "sample": _SAMPLE,
    "cover": f"{_SAMPLE} num_units ceilings pooled counts units least",
    "known": "q keys table counts tails lse rows heads group dim unit dtype threads "
    "q_row q_head q_group k_slot k_head t_row scale",
    "summarise": "keys fields units count heads dim unit dtype threads planes "
    "k_slot k_head f_unit f_head f_plane",
    "index_segments": "keys slots skips records codes codebooks "
    "count heads dim segment subspaces entries cosine iterations capacity "
    "dtype threads k_slot k_head",
    "linear": "x weight bias out rows inputs outputs dtype threads x_row w_row",
    "norm": "x residual weight out sum rows dim dtype threads x_row r_row epsilon",
    "gate": "x out rows dim dtype threads x_row",
    "rotate": "q k table positions q_out k_out rows q_heads k_heads dim half dtype threads "
    "q_row k_row t_row",
}
"""Kernel -> fields of its arguments in args.h, behind `Memory`."""
REAL = frozenset({"scale", "spread", "least", "by_code", "by_centroid", "epsilon"})
"""Fields that are doubles; the others are whole numbers or addresses, 0 for none."""


class Scratch(threading.local):
    """Float32 working memory of one thread, kept between calls: fresh pages cost a fault each."""

    def __init__(self) -> None:
        self._buffer = torch.empty(0)
        self.memory = (0, 0)
        """`Memory` of args.h."""

    def grow(self, floats: int) -> None:
        """Make room for at least `floats` elements."""
        self._buffer = torch.empty(floats + floats // 4)
        self.memory = (self._buffer.data_ptr(), self._buffer.numel())


class Kernel:
    """A function of the library.

    Its arguments are packed in one go. A ctypes structure finds every field by its name, which
    takes longer than a small kernel where a model's weights have just gone through the caches.
    """

    def __init__(self, library: ctypes.CDLL, name: str, scratch: Scratch) -> None:
        kinds = ("d" if field in REAL else "q" for field in FIELDS[name].split())
        self._pack = struct.Struct("qq" + "".join(kinds)).pack
        self._function = getattr(library, name)
        self._function.argtypes = [ctypes.c_char_p]
        self._function.restype = ctypes.c_int64
        self._scratch = scratch

    def __call__(self, *values: float) -> None:
        """Run on the fields' values, in their order."""
        scratch = self._scratch
        while floats := self._function(self._pack(*scratch.memory, *values)):
            scratch.grow(floats)


class Library:
    """The kernels of one build; threads that call them have scratch of their own."""

    def __init__(self, path: Path) -> None:
        library, scratch = ctypes.CDLL(str(path)), Scratch()
        library.set_parallel_region(ctypes.cast(openmp_library().GOMP_parallel, ctypes.c_void_p))
        self.attend = Kernel(library, "attend", scratch)
        self.attend_all = Kernel(library, "attend_all", scratch)
        self.score = Kernel(library, "score", scratch)
        self.score_codes = Kernel(library, "score_codes", scratch)
        self.score_clusters = Kernel(library, "score_clusters", scratch)
        self.choose = Kernel(library, "choose", scratch)
        self.weigh = Kernel(library, "weigh", scratch)
        self.estimate = Kernel(library, "estimate", scratch)
        self.select_units = Kernel(library, "select_units", scratch)
        self.allot = Kernel(library, "allot", scratch)
        self.sample = Kernel(library, "sample", scratch)
        self.cover = Kernel(library, "cover", scratch)
        self.known = Kernel(library, "known", scratch)
        self.summarise = Kernel(library, "summarise", scratch)
        self.index_segments = Kernel(library, "index_segments", scratch)
        self.linear = Kernel(library, "linear", scratch)
        self.norm = Kernel(library, "norm", scratch)
        self.gate = Kernel(library, "gate", scratch)
        self.rotate = Kernel(library, "rotate", scratch)


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


def load_library(level_name: str | None = None) -> Library:
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
    return Library(path)
