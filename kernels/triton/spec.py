"""Formulas by name, as the kernels number them."""

import math

from sgl_sparsekv.geometry import UNIT_SIZE

NOTHING, POSITION, MIN_MAX, MEAN_STD, EXACT, LANDMARK = range(6)
FORMULAS = {
    "nothing": NOTHING,
    "position": POSITION,
    "min_max": MIN_MAX,
    "mean_std": MEAN_STD,
    "exact": EXACT,
    "landmark": LANDMARK,
}
"""Name of a method's formula (`SelectionMethod.formula`) -> number in the kernels."""
SPREAD = math.sqrt(2 * math.log(UNIT_SIZE))
"""Standard deviations of `mean_std`; see `sgl_sparsekv.selection.mean_std`."""
