"""Options: what a server is started with and what a request may change. Parsed and checked once.

Every default stands here and nowhere else; `docs/options.md` is checked against this file.
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

from .errors import ConfigError, RequestOptionError
from .geometry import PAGE_SIZES, UNIT_SIZE, ceil_div, ends_a_page
from .ops import DEVICES
from .routes import ROUTES
from .selection import METHODS, IndexOptions, load_method, method_names
from .summaries import ResidualSummary
from .types import Reduction

DEFAULT_PAGE_SIZE = 64
"""Page size of a server whose user names none."""
REQUEST_KEY = "sparsekv"
"""Key of our options inside SGLang's `custom_params`."""
SPLITS = ("even", "heads")
CHECK_MODES = ("off", "log", "raise")
FUSED_DEVICES = ("triton",)
"""Devices that serve whole steps: their selections are made anew in every step."""


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
    telemetry: bool = False
    share_generated: bool = True
    unit_size: int = UNIT_SIZE

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise ValueError(
                f"method must be one of {_listed(method_names())}, got {self.method!r}"
            )
        _check_int("sink", self.sink, 0)
        _check_int("window", self.window, 0)
        _check_int("dense_layers", self.dense_layers, 0, 10_000)
        _check_int("reselect_every", self.reselect_every, 1, 1024)
        if self.estimate is not None:
            _check_bool("estimate", self.estimate)
        _check_bool("telemetry", self.telemetry)
        _check_bool("share_generated", self.share_generated)
        _check_int("unit_size", self.unit_size, min(PAGE_SIZES), max(PAGE_SIZES))
        _check_choice("unit_size", self.unit_size, PAGE_SIZES)
        _check_budget(self.budget)
        _check_coverage(self.coverage)
        _check_choice("budget_split", self.budget_split, SPLITS)
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
        return load_method(self.method).estimates if self.estimate is None else self.estimate

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


@dataclass(frozen=True)
class ServerOptions:
    """What a server is started with.

    Attributes:
        request: options of a request that names none.
        methods: methods a request may choose; each with a page summary costs metadata memory.
        reduction: how the query heads of a KV head share one selection.
        index: how segments are indexed, for methods that read segment records.
        device: kernels to use; "auto" takes the ones of the model's device.
        attend: on a GPU, the kernel that reads the selection: our own, or a stock one.
        dense_below: on a GPU, steps that would save fewer than this many tokens a layer over the
            whole batch run SGLang's own dense decode; "auto" asks what choosing costs.
        check: compare sampled metadata with the keys it summarises: off, log or raise.
        check_interval: steps between two checks.
        validate_requests: refuse what SGLang itself would end on (`serving/fields.py`).
        trace: ZMQ endpoint to publish selections on, or "" for none.
    """

    request: RequestOptions = field(default_factory=RequestOptions)
    methods: tuple[str, ...] = ("full", "oracle", "quest", "streaming")
    reduction: Reduction = Reduction.MAX_SOFTMAX
    index: IndexOptions = field(default_factory=IndexOptions)
    device: str = "auto"
    attend: str = "triton"
    dense_below: int | str = "auto"
    check: str = "off"
    check_interval: int = 50
    validate_requests: bool = True
    trace: str = ""

    def __post_init__(self) -> None:
        for name in self.methods:
            if name not in METHODS:
                raise ValueError(f"methods must be among {_listed(method_names())}, got {name!r}")
        if self.request.method not in self.methods:
            object.__setattr__(self, "methods", tuple(sorted({*self.methods, self.request.method})))
        _check_index(self.index)
        _check_choice("device", self.device, ("auto", *sorted(DEVICES)))
        _check_choice("attend", self.attend, ("triton", *sorted(ROUTES)))
        if self.dense_below != "auto":
            _check_int('dense_below must be "auto", or it', self.dense_below, 0)
        if self.device in FUSED_DEVICES and self.request.reselect_every != 1:
            raise ValueError(_reselects(self.device, self.request.reselect_every))
        if self.device in FUSED_DEVICES and self.request.adaptive:
            raise ValueError(_counts(self.device, self.request))
        if self.device in FUSED_DEVICES and self.reduction is Reduction.MAX:
            raise ValueError(f"reduction max has no kernels on device {self.device}: take another")
        if self.device in FUSED_DEVICES and self.request.estimates:
            raise ValueError(f"estimate must be false on device {self.device}: it has no kernels")
        _check_choice("check", self.check, CHECK_MODES)
        _check_int("check_interval", self.check_interval, 1)
        _check_bool("validate_requests", self.validate_requests)
        if self.trace and "://" not in self.trace:
            raise ValueError(
                f"trace must be a ZMQ endpoint such as tcp://*:5560, got {self.trace!r}"
            )

    @property
    def residuals(self) -> ResidualSummary | None:
        """What estimates read, where the server keeps it."""
        ranks = load_method("residual_pq").segments(self.index)
        kept = "residual_pq" in self.methods or self.request.estimates
        return ranks if kept and isinstance(ranks, ResidualSummary) else None

    def as_dict(self) -> dict[str, Any]:
        """Flat JSON form, as a configuration file would hold it."""
        flat = asdict(self)
        request, index = flat.pop("request"), flat.pop("index")
        return {
            **request,
            **index,
            **flat,
            "methods": list(self.methods),
            "reduction": str(self.reduction),
        }


INDEX_FIELDS = tuple(f.name for f in fields(IndexOptions))
SERVER_FIELDS = (
    *SERVER_ONLY,
    *(f.name for f in fields(ServerOptions) if f.name not in ("request", "index")),
    *INDEX_FIELDS,
)


def parse_server_options(values: Mapping[str, Any]) -> ServerOptions:
    """Server options from flat values; what is absent keeps its default.

    Raises:
        ConfigError: an unknown name, or a wrong type or value.
    """
    unknown = sorted(set(values) - set(REQUEST_FIELDS) - set(SERVER_FIELDS))
    if unknown:
        known = _listed((*REQUEST_FIELDS, *SERVER_FIELDS))
        raise ConfigError(f"unknown option {_shown(unknown[0])}; known options are {known}")
    try:
        own = (*REQUEST_FIELDS, *SERVER_ONLY)
        request = RequestOptions(**{k: v for k, v in values.items() if k in own})
        index = IndexOptions(**{k: v for k, v in values.items() if k in INDEX_FIELDS})
        server = {k: v for k, v in values.items() if k not in (*own, *INDEX_FIELDS)}
        if "methods" in server:
            server["methods"] = _method_list(server["methods"])
        if "reduction" in server:
            _check_choice("reduction", server["reduction"], tuple(Reduction))
            server["reduction"] = Reduction(server["reduction"])
        return ServerOptions(request=request, index=index, **server)
    except ValueError as error:
        raise ConfigError(str(error)) from None


def parse_request_options(raw: object, server: ServerOptions) -> RequestOptions:
    """Options of one request, on top of the server's.

    Args:
        raw: the value of `custom_params["sparsekv"]`.
        server: supplies what the request does not name, and which methods are served.

    Raises:
        RequestOptionError: names the field, the rule and the value.
    """
    if not isinstance(raw, Mapping):
        raise RequestOptionError(f"sparsekv must be an object of options, got {_shown(raw)}")
    for name in raw:
        if name not in REQUEST_FIELDS:
            raise RequestOptionError(
                f"sparsekv.{_shown(name, quote=False)} is not an option; "
                f"options are {_listed(REQUEST_FIELDS)}"
            )
    method = raw.get("method", server.request.method)
    if not isinstance(method, str) or method not in server.methods:
        raise RequestOptionError(
            f"sparsekv.method must be one of {_listed(server.methods)} on this server, "
            f"got {_shown(method)}"
        )
    try:
        options = replace(server.request, **raw)
    except ValueError as error:
        raise RequestOptionError(f"sparsekv.{error}") from None
    if server.device in FUSED_DEVICES and options.reselect_every != 1:
        raise RequestOptionError(f"sparsekv.{_reselects(server.device, options.reselect_every)}")
    if server.device in FUSED_DEVICES and options.adaptive:
        raise RequestOptionError(f"sparsekv.{_counts(server.device, options)}")
    if options.estimates and server.residuals is None:
        remedy = "keeps no clusters: start it with --sparsekv-estimate true"
        if server.device in FUSED_DEVICES:
            remedy = f"has no kernels for it on device {server.device}"
        raise RequestOptionError(f"sparsekv.estimate must be false on this server, which {remedy}")
    if options.share_generated and not server.request.share_generated:
        raise RequestOptionError(
            "sparsekv.share_generated must be false on a server that was started with it off, "
            "got true"
        )
    if server.attend != "triton" and options.dense_layers > server.request.dense_layers:
        raise RequestOptionError(
            f"sparsekv.dense_layers must be at most {server.request.dense_layers} on a server "
            f"with attend {server.attend}, got {options.dense_layers}"
        )
    return options


def check_page_size(page_size: int, unit_size: int = UNIT_SIZE, named: bool = True) -> None:
    """Refuse page sizes the package does not serve, or that the unit does not divide.

    Args:
        page_size: of the server.
        unit_size: of its metadata.
        named: the user chose it, and not SGLang.

    Raises:
        ConfigError: with the remedy.
    """
    if page_size not in PAGE_SIZES:
        rule = f"--page-size must be one of {_listed(PAGE_SIZES)} for the sparsekv backend, got"
        if named:
            raise ConfigError(f"{rule} {page_size}; leave the flag out to get {DEFAULT_PAGE_SIZE}")
        raise ConfigError(
            f"{rule} {page_size} from SGLang for another flag or this model; add --page-size "
            f"{DEFAULT_PAGE_SIZE}"
        )
    if page_size % unit_size:
        raise ConfigError(
            f"--sparsekv-unit-size {unit_size} must divide --page-size, got {page_size}"
        )


def check_chunks(tokens: int | None, page_size: int) -> None:
    """Refuse chunks of prefill that end inside a page, which SGLang does not serve.

    Raises:
        ConfigError: with the page size, which may be ours.
    """
    if tokens is not None and tokens > 0 and not ends_a_page(tokens, page_size):
        raise ConfigError(
            f"--chunked-prefill-size must be a multiple of the page size {page_size}, got {tokens}"
        )


def _check_index(index: IndexOptions) -> None:
    for name in ("cluster_segment", "pq_segment", "residual_segment"):
        size = getattr(index, name)
        _check_int(name, size, max(PAGE_SIZES), 16384)
        if size % max(PAGE_SIZES):
            raise ValueError(f"{name} must be a multiple of {max(PAGE_SIZES)} tokens, got {size}")
    _check_int("tokens_per_centroid", index.tokens_per_centroid, 1, index.cluster_segment)
    _check_int("pq_bits", index.pq_bits, 1, 8)
    for name in ("pq_subspaces", "residual_subspaces"):
        _check_choice(name, getattr(index, name), (1, 2, 4, 8, 16))
    load_method("clusterkv").segments(index)  # refuses more clusters than codes


def _method_list(value: object) -> tuple[str, ...]:
    names = value.split(",") if isinstance(value, str) else value
    if not isinstance(names, (list, tuple)) or not all(isinstance(name, str) for name in names):
        raise ValueError(f"methods must be a list of method names, got {_shown(value)}")
    return tuple(name.strip() for name in names)


def _check_int(name: str, value: object, low: int, high: int = 2**31 - 1) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise ValueError(f"{name} must be an integer in [{low}, {high}], got {_shown(value)}")


def _check_bool(name: str, value: object) -> None:
    if not isinstance(value, bool):
        raise ValueError(f"{name} must be true or false, got {_shown(value)}")


def _check_choice(name: str, value: object, choices: tuple[object, ...]) -> None:
    if value not in choices:
        raise ValueError(f"{name} must be one of {_listed(choices)}, got {_shown(value)}")


def _check_budget(value: object) -> None:
    tokens = isinstance(value, int) and not isinstance(value, bool) and 0 < value < 2**31
    ratio = isinstance(value, float) and 0.0 < value <= 1.0
    if not (tokens or ratio):
        raise ValueError(
            "budget must be a number of tokens (integer > 0) or a share of the context "
            f"(fraction in (0, 1], written with a point), got {_shown(value)}"
        )


def _check_coverage(value: object) -> None:
    if value is not None and not (isinstance(value, float) and 0.0 < value < 1.0):
        raise ValueError(
            "coverage must be a share of attention (fraction in (0, 1), written with a point) or "
            f"null, got {_shown(value)}"
        )


def _tells_shares(method: str) -> bool:
    return load_method(method).tells_shares


def _no_shares(options: RequestOptions) -> str:
    able = filter(_tells_shares, method_names())
    rule = "null" if options.coverage is not None else '"even"'
    return (
        f"{_adaptive_option(options)} must be {rule} with method {options.method}, whose scores "
        f"say nothing about shares of attention: take {_listed(able)}"
    )


def _counts(device: str, options: RequestOptions) -> str:
    rule = "null" if options.coverage is not None else '"even"'
    return (
        f"{_adaptive_option(options)} must be {rule} on device {device}, where every KV head of a "
        "row reads as much"
    )


def _adaptive_option(options: RequestOptions) -> str:
    return "coverage" if options.coverage is not None else "budget_split"


def _reselects(device: str, value: int) -> str:
    return f"reselect_every must be 1 on device {device}, which selects in every step, got {value}"


def _listed(names: Any) -> str:
    return ", ".join(str(name) for name in names)


def _shown(value: object, limit: int = 60, quote: bool = True) -> str:
    """A value as it may stand in an error message: short, on one line."""
    # A huge string or list is cut before it is formatted.
    if isinstance(value, (str, list, dict)) and len(value) > limit:
        head = value[:limit] if isinstance(value, str) else type(value).__name__
        return f"{head!r}... ({len(value)} long)"
    bare = isinstance(value, str) and not quote and value.isprintable()
    text = str(value) if bare else repr(value)
    return text if len(text) <= 2 * limit else text[: 2 * limit] + "..."
