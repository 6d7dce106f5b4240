"""Formulas by name, as the kernels number them."""

import math

from sgl_sparsekv.geometry import UNIT_SIZE

NOTHING, POSITION, MIN_MAX, MEAN_STD, EXACT, LANDMARK, TWO_LEVEL = range(7)
CLUSTERS, PRODUCTS, TWO_LEVEL_EXACT = range(7, 10)
"""The latter leave final scores of their own; those before them logits, which `select` shares."""
FORMULAS = {
    "nothing": NOTHING,
    "position": POSITION,
    "min_max": MIN_MAX,
    "mean_std": MEAN_STD,
    "exact": EXACT,
    "landmark": LANDMARK,
    "two_level": TWO_LEVEL,
    "clusters": CLUSTERS,
    "products": PRODUCTS,
    "two_level_exact": TWO_LEVEL_EXACT,
}
"""Name of a method's formula (`SelectionMethod.formula`) -> number in the kernels."""
CODED = frozenset({"clusters", "products"})
"""Those that rank tokens by the codes of segment records of that name."""
LEVELS = frozenset({"two_level", "two_level_exact"})
"""Those that look at units in the best segments alone."""
RANKED = CODED | {"two_level_exact"}
"""Those that leave final scores."""
SPREAD = math.sqrt(2 * math.log(UNIT_SIZE))
"""Standard deviations of `mean_std`; see `sgl_sparsekv.selection.mean_std`."""
CHUNK = 8
OUTLIER_SHARE = 384 / 2432
"""Tokens that have a landmark, and part of what is kept that outliers take: see
`sgl_sparsekv.selection.shadowkv`."""
SAMPLE_UNITS, SAMPLE_TOKENS, SAMPLE_POWER, SAMPLE_BLOCK = 16, 128, 1 / 3, 64
"""See `sgl_sparsekv.selection.sampling`, and the reference's `sample`."""
BOX_REACH, SPREAD_REACH = 0.25, 1.5
"""How far scores go where they are to tell shares: see `sgl_sparsekv.selection.quest` and
`mean_std`."""
SEGMENT, OVERSAMPLING, MARGIN = 128, 8, 1e-4
"""See `sgl_sparsekv.selection.two_level`, as is the name of its records."""
SEGMENT_BOUNDS = "min_max_segment"
"""All of them are those of the methods: a test compares."""
