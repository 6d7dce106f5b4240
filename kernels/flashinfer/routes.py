"""Which stock kernel serves which case, and why; the server's default is none of them.

Nothing here has been timed on a GPU: a reason is what the kernels' sources say.
"""

from dataclasses import dataclass

from sgl_sparsekv.errors import UnsupportedSetup
from sgl_sparsekv.types import AttendShape

from .fa2 import Fa2Route
from .fa3 import Fa3Route
from .xqa import XqaRoute

NOT_MEASURED = "not measured yet"
Route = Fa2Route | Fa3Route | XqaRoute
ROUTES: dict[str, Route] = {route.name: route for route in (Fa3Route(), Fa2Route(), XqaRoute())}
"""Route name -> route, in the order in which `choose` asks them."""


@dataclass(frozen=True)
class Case:
    """One row of the table.

    Attributes:
        route: its name.
        serves: the shapes and GPUs.
        reason: why one would take it, from its source.
        measured: what was measured on a GPU, and where.
    """

    route: str
    serves: str
    reason: str
    measured: str = NOT_MEASURED


CASES = (
    Case(
        "fa3",
        "Hopper; head_dim 8 to 256, V of 104 to 128 with K of 136 to 192; any group",
        "SGLang's own kernel for dense decode there; lengths and pages are read on the device; lse",
    ),
    Case(
        "fa2",
        "SM80 and later; head_dim 64, 128, 256, V alike; any group",
        "runs everywhere and gives lse; costs a host plan each step and, for lse, a multiplication",
    ),
    Case(
        "xqa",
        "SM90, SM100, SM120; head_dim 16 to 512, V alike; groups to 128, 64, 32, 16 "
        "at head_dim 64, 128, 256, 512",
        "no plan, one launch; gives no lse, and 16-bit caches run its generic kernel also on "
        "Hopper",
    ),
)


def load(name: str) -> Route:
    """Return a route.

    Raises:
        ValueError: the name is unknown.
    """
    if name not in ROUTES:
        raise ValueError(f"route must be one of {sorted(ROUTES)}, got {name!r}")
    return ROUTES[name]


def choose(shape: AttendShape, capability: tuple[int, int], name: str | None = None) -> Route:
    """Return the named route if it serves a shape, or the first that does.

    Args:
        shape: what is to be served.
        capability: compute capability of the GPU.
        name: route to use and no other; None asks them in the order of `ROUTES`.

    Raises:
        ValueError: the name is unknown.
        UnsupportedSetup: the named route does not serve the shape, or none does; says why.
    """
    asked = [load(name)] if name is not None else list(ROUTES.values())
    reasons = []
    for route in asked:
        reason = route.unsupported(shape, capability)
        if reason is None:
            return route
        reasons.append(reason)
    raise UnsupportedSetup("; ".join(reasons))


def table() -> str:
    """The cases as the Markdown table of `docs/attend_routes.md`."""
    lines = ["| Route | Serves | Reason | Measured on a GPU |", "|---|---|---|---|"]
    lines += [f"| `{c.route}` | {c.serves} | {c.reason} | {c.measured} |" for c in CASES]
    return "\n".join(lines)
