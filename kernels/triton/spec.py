"""Formulas by name, as the kernels number them."""

import math

from sgl_sparsekv.geometry import UNIT_SIZE
from sgl_sparsekv.summaries import ResidualSummary

NOTHING, POSITION, MIN_MAX, MEAN_STD, EXACT, LANDMARK, OWN, TWO_LEVEL = range(8)
CLUSTERS, PRODUCTS, TWO_LEVEL_EXACT, RESIDUALS = range(8, 12)
"""The latter leave final scores of their own; those before them logits, which `select` shares."""
FORMULAS = {
    "nothing": NOTHING,
    "position": POSITION,
    "min_max": MIN_MAX,
    "mean_std": MEAN_STD,
    "exact": EXACT,
    "landmark": LANDMARK,
    "own": OWN,
    "two_level": TWO_LEVEL,
    "clusters": CLUSTERS,
    "products": PRODUCTS,
    "two_level_exact": TWO_LEVEL_EXACT,
    "residuals": RESIDUALS,
}
"""Name of a method's formula (`SelectionMethod.formula`) -> number in the kernels."""
CODED = frozenset({"clusters", "products"})
"""Those that rank tokens by the codes of segment records of that name."""
SINGLE = CODED | {"residuals"}
"""Those that choose among single tokens."""
LEVELS = frozenset({"two_level", "two_level_exact"})
"""Those that look at units in the best segments alone."""
RANKED = CODED | {"two_level_exact", "residuals"}
"""Those that leave final scores."""
ORDINARY, HOLDS, USES = range(3)
"""What a row does in a step: it chooses for this one, for a period of steps, or from what it holds.
"""
MOST_EVERY = 1024
"""Steps that a selection may serve: see `RequestOptions.reselect_every`."""
SPREAD = math.sqrt(2 * math.log(UNIT_SIZE))
"""Standard deviations of `mean_std`; see `sgl_sparsekv.selection.mean_std`."""
REACH = ResidualSummary.REACH
"""Candidates that open clusters hold, for each that is read."""
CHUNK = 8
OUTLIER_SHARE = 384 / 2432
"""Tokens that have a landmark, and part of what is kept that outliers take: see
`sgl_sparsekv.selection.shadowkv`."""
SAMPLE_UNITS, SAMPLE_TOKENS, SAMPLE_POWER, SAMPLE_BLOCK = 16, 128, 1 / 3, 64
"""See `sgl_sparsekv.selection.sampling`, and the reference's `sample`."""
BOX_REACH, SPREAD_REACH = 0.25, 1.5
"""How far scores go where they are to tell shares: see `sgl_sparsekv.selection.quest` and
`mean_std`."""
INT8_MOST, INT8_INVERSE, INT8_LEAST_EXPONENT, INT8_SPARE = 127, (1 / 127) * (1 + 2.0**-21), -120, 16
"""See `sgl_sparsekv.selection.quest_int8`."""
SEGMENT, OVERSAMPLING, MARGIN = 128, 8, 1e-4
"""See `sgl_sparsekv.selection.two_level`, as is the name of its records."""
SEGMENT_BOUNDS = "min_max_segment"
"""All of them are those of the methods: a test compares."""
