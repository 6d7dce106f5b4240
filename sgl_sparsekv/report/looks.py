"""One colour per method, the same wherever it appears on the page."""

from collections.abc import Iterable

from ..tooling.charts import Look

KNOWN = {
    "quest": "#3f7fe8",
    "quest_int8": "#86aef2",
    "residual_pq": "#7cb518",
    "quest_two_level": "#14a3b8",
    "quest_two_level_exact": "#5bb8c9",
    "streaming": "#d94f70",
    "snapkv": "#2f9e8f",
    "adakv": "#c9a227",
    "kvcompress": "#8a63d2",
    "pyramidkv": "#d9822b",
    "h2o": "#c2548f",
    "clusterkv": "#9366dd",
    "pqcache": "#e08a2e",
    "shadowkv": "#c2379b",
    "mean_std": "#a07c3c",
    "oracle": "#22a062",
    "full": "#7d8695",
    "dense": "#7d8695",
    "torch_native": "#a3a34a",
}
OTHERS = ("#4d9d6b", "#b0713c", "#6d8f8f", "#7b5ea7", "#c96a6a", "#5f86b3")
DASHES = ("", "7 4", "2 4", "9 3 2 3", "5 2", "1 3")


def looks_of(names: Iterable[str]) -> dict[str, Look]:
    """How each method is drawn, by its name; those that read everything come last."""
    found, others = {}, 0
    for name in sorted(dict.fromkeys(names), key=_order):
        colour = KNOWN.get(name)
        if colour is None:
            colour, others = OTHERS[others % len(OTHERS)], others + 1
        found[name] = Look(colour)
    return found


def variants(names: Iterable[tuple[str, str]]) -> dict[str, Look]:
    """Looks of variants: the method's colour, the dash by their order in it.

    Args:
        names: (method, variant).
    """
    pairs = list(dict.fromkeys(names))
    methods = looks_of(method for method, _ in pairs)
    count: dict[str, int] = {}
    found = {}
    for method, variant in sorted(pairs, key=lambda pair: list(methods).index(pair[0])):
        nth = count.get(method, 0)
        count[method] = nth + 1
        found[variant] = Look(methods[method].colour, DASHES[nth % len(DASHES)])
    return found


def _order(name: str) -> tuple[bool, int, str]:
    places = list(KNOWN)
    return (name not in KNOWN, places.index(name) if name in KNOWN else 0, name)
