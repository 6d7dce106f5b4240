"""What one evaluation run asks, checked before any server is started."""

import math
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from ..config import RequestOptions
from ..selection import method_names

PROTOCOLS = ("prefilled", "decoded")
BUDGET_COUNTS = "tokens read per KV head and decode step; sinks, window and partial tail included"
MAX_DEPTHS = 100


@dataclass(frozen=True)
class Settings:
    """One needle run.

    Attributes:
        model: folder of the model.
        documents: which kind fit it: chain, facts or prose.
        lengths: tokens of prompt and answer together, per column of the map.
        depths: rows of the map; row i asks for a needle in part i of so many of the document.
        methods: how decode reads, one map each.
        budget: of each method; see `RequestOptions`.
        dense_layers: first layers that read everything; None leaves it to the server.
        protocol: `prefilled`: the question ends the prompt; `decoded`: it is fed in decode.
        samples: questions per cell, each about another document.
        seed: of the first sample's documents.
    """

    model: str
    documents: str
    lengths: tuple[int, ...]
    depths: int
    methods: tuple[str, ...]
    budget: int | float
    dense_layers: int | None
    protocol: str
    samples: int
    seed: int

    def __post_init__(self) -> None:
        if self.protocol not in PROTOCOLS:
            raise ValueError(f"protocol must be prefilled or decoded, got {self.protocol!r}")
        if not 1 <= self.depths <= MAX_DEPTHS:
            raise ValueError(f"depths must be from 1 to {MAX_DEPTHS}, got {self.depths}")
        if self.samples < 1:
            raise ValueError(f"samples must be at least 1, got {self.samples}")
        for method in self.methods:
            self.options(method)

    def options(self, method: str) -> dict[str, Any]:
        """Request options of a method's cells.

        Raises:
            ValueError: an option is wrong.
        """
        options: dict[str, Any] = {"method": method, "budget": self.budget}
        if self.dense_layers is not None:
            options["dense_layers"] = self.dense_layers
        RequestOptions(**options)
        return options

    def as_dict(self) -> dict[str, Any]:
        """For the header of the results."""
        return {**asdict(self), "budget_counts": BUDGET_COUNTS}


def parse_lengths(text: str) -> tuple[int, ...]:
    """`4k,8k,1000` as tokens, ascending; k is 1024.

    Raises:
        ValueError: an entry is not a number of tokens.
    """
    lengths = set()
    for entry in text.split(","):
        found = re.fullmatch(r"([1-9]\d*)(k?)", entry.strip().lower())
        if found is None:
            raise ValueError(f"lengths must be tokens such as 4k,8192, got {entry.strip()!r}")
        lengths.add(int(found[1]) * (1024 if found[2] else 1))
    return tuple(sorted(lengths))


def parse_methods(text: str, offered: Sequence[str]) -> tuple[str, ...]:
    """`all`, or a list separated by commas; `full` first, as all others are compared with it.

    Raises:
        ValueError: a method is unknown, or the server does not offer it.
    """
    names = list(offered) if text == "all" else [entry.strip() for entry in text.split(",")]
    for name in names:
        known = method_names() if name not in method_names() else offered
        if name not in known:
            raise ValueError(f"method must be one of {', '.join(sorted(known))}, got {name!r}")
    return tuple(sorted(set(names), key=lambda name: (name != "full", name)))


def parse_budget(text: str) -> int | float:
    """Whole tokens, or a share of the context written with a point.

    Raises:
        ValueError: it is neither.
    """
    try:
        value = float(text) if "." in text else int(text)
    except ValueError:
        value = math.nan
    if math.isnan(value):
        raise ValueError(f"budget must be tokens or a share such as 0.05, got {text!r}")
    return value
