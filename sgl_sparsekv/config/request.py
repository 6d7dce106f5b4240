"""What one request asks for."""

import math
from dataclasses import dataclass, fields

from ..geometry import PAGE_SIZES, UNIT_SIZE, ceil_div
from ..selection import METHODS, load_method, method_names
from .checks import check_bool, check_choice, check_int, listed, shown

SPLITS = ("even", "heads")


@dataclass(frozen=True)
class RequestOptions:
    """How one request reads its KV cache in decode.

    Attributes:
        method: selection method.
        budget: kept per KV head and step: tokens (int), or a share of the context (float, 0..1].
            Sinks and window are counted in it; whole units are kept.
        sink: first tokens, always kept.
        window: newest tokens, always kept.
        coverage: share of attention that every KV head of every layer reads, by the method's
            estimate; the budget is a ceiling then. None: as much as the budget allows.
        budget_split: the budget is each KV head's ("even"), or a mean over the KV heads of a layer
            that share it by estimated attention ("heads").
        dense_layers: first layers that read everything.
        reselect_every: steps for which a selection is used; 1 selects anew in every step.
        estimate: what is not read enters with the weights that codes give it and the mean values of
            its clusters; None: as the method does by itself.
        observation_window: last queries by which a method that keeps a view chooses.
        pooling: tokens over which such a method spreads a score, the largest counting; odd.
        renew_every: tokens of the answer after which a view is made anew; 0: never.
        pyramid_beta: how steeply the budget of `pyramidkv` falls from layer to layer.
        head_floor: part of its even share that every KV head keeps in `adakv`.
        kept_map: tell which tokens a view keeps, and what attention they held.
        telemetry: measure what decode covered and cost, and report it.
        share_generated: offer to the radix cache what sparse decode generated.
        unit_size: tokens per unit; the server's, no request can change it.
    """

    method: str = "quest"
    budget: int | float = 2048
    sink: int = 16
    window: int = 64
    coverage: float | None = None
    budget_split: str = "even"
    dense_layers: int = 0
    reselect_every: int = 1
    estimate: bool | None = None
    observation_window: int = 32
    pooling: int = 7
    renew_every: int = 128
    pyramid_beta: int = 20
    head_floor: float = 0.2
    kept_map: bool = False
    telemetry: bool = False
    share_generated: bool = True
    unit_size: int = UNIT_SIZE

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise ValueError(f"method must be one of {listed(method_names())}, got {self.method!r}")
        check_int("sink", self.sink, 0)
        check_int("window", self.window, 0)
        check_int("dense_layers", self.dense_layers, 0, 10_000)
        check_int("reselect_every", self.reselect_every, 1, 1024)
        if self.estimate is not None:
            check_bool("estimate", self.estimate)
        _check_view(self)
        check_bool("telemetry", self.telemetry)
        check_bool("share_generated", self.share_generated)
        check_int("unit_size", self.unit_size, min(PAGE_SIZES), max(PAGE_SIZES))
        check_choice("unit_size", self.unit_size, PAGE_SIZES)
        _check_budget(self.budget)
        _check_coverage(self.coverage)
        check_choice("budget_split", self.budget_split, SPLITS)
        if self.adaptive and not (load_method(self.method).dense or _tells_shares(self.method)):
            raise ValueError(_no_shares(self))
        if isinstance(self.budget, int) and self.budget < self.minimum_budget:
            raise ValueError(
                f"budget must be at least {self.minimum_budget} tokens (sink {self.sink} + window "
                f"{self.window} in whole units of {self.unit_size}, and one for the partial tail), "
                f"got {self.budget}"
            )

    @property
    def adaptive(self) -> bool:
        """Whether what is read depends on the keys, and not on lengths alone."""
        return self.coverage is not None or self.budget_split != "even"

    @property
    def estimates(self) -> bool:
        """Whether what is not read is estimated."""
        method = load_method(self.method)
        if method.narrows:
            return False
        return method.estimates if self.estimate is None else self.estimate

    @property
    def minimum_budget(self) -> int:
        """Tokens that sinks, window and the partial tail take, in whole units."""
        units = ceil_div(self.sink, self.unit_size) + ceil_div(self.window, self.unit_size) + 1
        return units * self.unit_size

    def budget_tokens(self, length: int) -> int:
        """Budget in tokens for a context of `length` tokens."""
        if isinstance(self.budget, int):
            return self.budget
        return max(self.minimum_budget, math.floor(self.budget * length))


SERVER_ONLY = ("unit_size",)
"""Fields of `RequestOptions` that only a server sets."""
REQUEST_FIELDS = tuple(f.name for f in fields(RequestOptions) if f.name not in SERVER_ONLY)


def _check_view(options: RequestOptions) -> None:
    check_int("observation_window", options.observation_window, 1, 1024)
    check_int("pooling", options.pooling, 1, 63)
    if options.pooling % 2 == 0:
        raise ValueError(f"pooling must be odd, got {options.pooling}")
    check_int("renew_every", options.renew_every, 0, 1024)
    check_int("pyramid_beta", options.pyramid_beta, 1, 1000)
    check_bool("kept_map", options.kept_map)
    floor = options.head_floor
    if not (isinstance(floor, float) and 0.0 <= floor <= 1.0):
        raise ValueError(
            "head_floor must be a part of the even share (fraction in [0, 1], written with a "
            f"point), got {shown(floor)}"
        )
    if options.estimate and load_method(options.method).narrows:
        raise ValueError(
            f"estimate must be false with method {options.method}, which keeps a view, got true"
        )


def _check_budget(value: object) -> None:
    tokens = isinstance(value, int) and not isinstance(value, bool) and 0 < value < 2**31
    ratio = isinstance(value, float) and 0.0 < value <= 1.0
    if not (tokens or ratio):
        raise ValueError(
            "budget must be a number of tokens (integer > 0) or a share of the context "
            f"(fraction in (0, 1], written with a point), got {shown(value)}"
        )


def _check_coverage(value: object) -> None:
    if value is not None and not (isinstance(value, float) and 0.0 < value < 1.0):
        raise ValueError(
            "coverage must be a share of attention (fraction in (0, 1), written with a point) or "
            f"null, got {shown(value)}"
        )


def _tells_shares(method: str) -> bool:
    return load_method(method).tells_shares


def _no_shares(options: RequestOptions) -> str:
    able = filter(_tells_shares, method_names())
    rule = "null" if options.coverage is not None else '"even"'
    return (
        f"{adaptive_option(options)} must be {rule} with method {options.method}, whose scores "
        f"say nothing about shares of attention: take {listed(able)}"
    )


def adaptive_option(options: RequestOptions) -> str:
    return "coverage" if options.coverage is not None else "budget_split"
