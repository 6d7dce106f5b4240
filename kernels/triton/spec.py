"""Formulas by name, as the kernels number them."""

import math

from sgl_sparsekv.geometry import UNIT_SIZE

NOTHING, POSITION, MIN_MAX, MEAN_STD, EXACT, LANDMARK, CLUSTERS, PRODUCTS = range(8)
FORMULAS = {
    "nothing": NOTHING,
    "position": POSITION,
    "min_max": MIN_MAX,
    "mean_std": MEAN_STD,
    "exact": EXACT,
    "landmark": LANDMARK,
    "clusters": CLUSTERS,
    "products": PRODUCTS,
}
"""Name of a method's formula (`SelectionMethod.formula`) -> number in the kernels."""
CODED = frozenset({"clusters", "products"})
"""Those that rank tokens by the codes of segment records of that name."""
SPREAD = math.sqrt(2 * math.log(UNIT_SIZE))
"""Standard deviations of `mean_std`; see `sgl_sparsekv.selection.mean_std`."""
