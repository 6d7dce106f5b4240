"""What one evaluation run asks, checked before any server is started."""

import math
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from ..config import RequestOptions

BUDGET_COUNTS = "tokens read per KV head and decode step; sinks, window and partial tail included"


@dataclass(frozen=True)
class Reading:
    """One way in which decode reads.

    Attributes:
        method: selection method.
        budget: see `RequestOptions`.
        dense_layers: first layers that read everything; None leaves it to the server.
        keeps: what it generates stays its own, see `RequestOptions.share_generated`; False leaves
            that to the server.
    """

    method: str
    budget: int | float
    dense_layers: int | None = None
    keeps: bool = False

    def __post_init__(self) -> None:
        # Whether the server has the method, it has said; another package may bring it there.
        RequestOptions(**{**self.options(), "method": "full"})

    def options(self) -> dict[str, Any]:
        """Request options, as `custom_params["sparsekv"]` takes them."""
        options: dict[str, Any] = {"method": self.method, "budget": self.budget}
        if self.dense_layers is not None:
            options["dense_layers"] = self.dense_layers
        if self.keeps:
            options["share_generated"] = False
        return options


@dataclass(frozen=True)
class Settings:
    """What a run has in common, whatever it asks.

    Attributes:
        model: folder of the model.
        methods: how decode reads; `full` first, as the others are compared with it.
        budgets: of each method; see `RequestOptions`.
        dense_layers: first layers that read everything; None leaves it to the server.
        concurrency: questions of one document that are asked at the same time.
    """

    model: str
    methods: tuple[str, ...]
    budgets: tuple[int | float, ...]
    dense_layers: int | None
    concurrency: int = 1

    def __post_init__(self) -> None:
        if not 1 <= self.concurrency <= 256:
            raise ValueError(f"concurrency must be from 1 to 256, got {self.concurrency}")
        self.readings()

    def readings(self) -> list[Reading]:
        """Every method at every budget; `full` reads everything, so it is asked once.

        Raises:
            ValueError: an option is wrong.
        """
        return [
            Reading(method, budget, self.dense_layers)
            for method in self.methods
            for budget in (self.budgets[:1] if method == "full" else self.budgets)
        ]

    def as_dict(self) -> dict[str, Any]:
        """For the header of the results."""
        return {**asdict(self), "budget_counts": BUDGET_COUNTS}


def parse_lengths(text: str) -> tuple[int, ...]:
    """`4k,8k,1000` as tokens, ascending; `4k..32k` doubles from one to the other; k is 1024.

    Raises:
        ValueError: an entry is not a number of tokens.
    """
    lengths = set()
    for entry in text.split(","):
        first, dots, last = entry.strip().partition("..")
        start = length = _tokens(first, entry)
        end = _tokens(last, entry) if dots else start
        if end < start:
            raise ValueError(f"lengths must rise, got {entry.strip()!r}")
        while length <= end:
            lengths.add(length)
            length *= 2
    return tuple(sorted(lengths))


def _tokens(text: str, entry: str) -> int:
    found = re.fullmatch(r"([1-9]\d*)(k?)", text.strip().lower())
    if found is None:
        raise ValueError(f"lengths must be tokens such as 4k,8192 or 4k..32k, got {entry!r}")
    return int(found[1]) * (1024 if found[2] else 1)


def parse_methods(text: str, offered: Sequence[str]) -> tuple[str, ...]:
    """`all`, or a list separated by commas; `full` first, as all others are compared with it.

    Raises:
        ValueError: the server does not offer a method.
    """
    names = list(offered) if text == "all" else [entry.strip() for entry in text.split(",")]
    for name in names:
        if name not in offered:
            raise ValueError(f"method must be one of {', '.join(sorted(offered))}, got {name!r}")
    return tuple(sorted(set(names), key=lambda name: (name != "full", name)))


def parse_budgets(text: str) -> tuple[int | float, ...]:
    """`512,0.05`: whole tokens, or shares of the context written with a point; ascending.

    Raises:
        ValueError: an entry is neither.
    """
    found = {_budget(entry.strip()) for entry in text.split(",")}
    return tuple(sorted(found, key=lambda budget: (isinstance(budget, int), budget)))


def _budget(text: str) -> int | float:
    try:
        value = float(text) if "." in text else int(text)
    except ValueError:
        value = math.nan
    if math.isnan(value):
        raise ValueError(f"budget must be tokens or a share such as 0.05, got {text!r}")
    return value
