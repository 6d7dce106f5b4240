"""What a server is started with."""

from dataclasses import asdict, dataclass, field, fields
from typing import Any

from ..geometry import PAGE_SIZES
from ..ops import DEVICES
from ..routes import ROUTES
from ..selection import METHODS, IndexOptions, load_method, method_names
from ..summaries import ResidualSummary
from ..types import Reduction
from .checks import check_bool, check_choice, check_int, listed
from .request import SERVER_ONLY, RequestOptions

CHECK_MODES = ("off", "log", "raise")
BREAK_EVENS = ("auto", "predicted")
FUSED_DEVICES = ("triton",)
"""Devices that serve whole steps: their selections are made anew in every step."""


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
            whole batch run SGLang's own dense decode; "auto" measures at start what choosing costs,
            "predicted" takes it from instruction counts.
        pack_views: where KV memory is short, give back what views do not read.
        admit_packed: admit requests counting on that.
        check: compare sampled metadata with the keys it summarises: off, log or raise.
        check_interval: steps between two checks.
        measure: on a GPU, capture a third graph of each batch size, which measures what requests
            that ask for telemetry are told.
        serve_coverage: on a GPU, have kernels for requests that ask for a `coverage`.
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
    pack_views: bool = True
    admit_packed: bool = False
    check: str = "off"
    check_interval: int = 50
    measure: bool = False
    serve_coverage: bool = False
    validate_requests: bool = True
    trace: str = ""

    def __post_init__(self) -> None:
        for name in self.methods:
            if name not in METHODS:
                raise ValueError(f"methods must be among {listed(method_names())}, got {name!r}")
        if self.request.method not in self.methods:
            object.__setattr__(self, "methods", tuple(sorted({*self.methods, self.request.method})))
        _check_index(self.index)
        check_choice("device", self.device, ("auto", *sorted(DEVICES)))
        check_choice("attend", self.attend, ("triton", *sorted(ROUTES)))
        if self.dense_below not in BREAK_EVENS:
            check_int('dense_below must be "auto" or "predicted", or it', self.dense_below, 0)
        refusal = unfused(self.device, self.request, self.covers)
        if refusal:
            raise ValueError(refusal)
        if self.device in FUSED_DEVICES and self.reduction is Reduction.MAX:
            raise ValueError(f"reduction max has no kernels on device {self.device}: take another")
        if self.device in FUSED_DEVICES and self.request.estimates:
            raise ValueError(f"estimate must be false on device {self.device}: it has no kernels")
        if self.device in FUSED_DEVICES:
            self._check_fused()
        check_bool("pack_views", self.pack_views)
        check_bool("admit_packed", self.admit_packed)
        if self.admit_packed and not self.pack_views:
            raise ValueError("admit_packed must be false where pack_views is: it counts on that")
        check_choice("check", self.check, CHECK_MODES)
        check_int("check_interval", self.check_interval, 1)
        check_bool("measure", self.measure)
        check_bool("serve_coverage", self.serve_coverage)
        check_bool("validate_requests", self.validate_requests)
        if self.trace and "://" not in self.trace:
            raise ValueError(
                f"trace must be a ZMQ endpoint such as tcp://*:5560, got {self.trace!r}"
            )

    def _check_fused(self) -> None:
        methods = {name: load_method(name) for name in self.methods}
        whole = self.request.unit_size
        finer = [name for name, method in methods.items() if method.ranked_unit(whole) < whole]
        if finer and self.attend != "triton":
            raise ValueError(
                f"attend must be triton with method {finer[0]}, which selects less than whole "
                f"units, got {self.attend}"
            )
        keeping = [name for name, method in methods.items() if method.narrows]
        if keeping and self.attend != "triton":
            raise ValueError(
                f"attend must be triton with method {keeping[0]}, whose KV heads read different "
                f"numbers of tokens, got {self.attend}"
            )
        if self.measures and self.attend != "triton":
            raise ValueError(
                "measure and telemetry must be false with a stock kernel, which does not tell what "
                f"a selection covers: got attend {self.attend}"
            )
        if self.covers and self.attend != "triton":
            raise ValueError(
                "serve_coverage and coverage must be left out with a stock kernel, which reads as "
                f"much for every KV head: got attend {self.attend}"
            )
        if self.admit_packed is True:
            raise ValueError(
                f"admit_packed must be false on device {self.device}: rows are packed on a CPU only"
            )

    @property
    def measures(self) -> bool:
        """Whether steps of a GPU can measure: it was asked for, or every request asks."""
        return self.measure or self.request.telemetry

    @property
    def covers(self) -> bool:
        """Whether steps of a GPU serve `coverage`: it was asked for, or every request asks."""
        return self.serve_coverage or self.request.coverage is not None

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


def _check_index(index: IndexOptions) -> None:
    for name in ("cluster_segment", "pq_segment", "residual_segment"):
        size = getattr(index, name)
        check_int(name, size, max(PAGE_SIZES), 16384)
        if size % max(PAGE_SIZES):
            raise ValueError(f"{name} must be a multiple of {max(PAGE_SIZES)} tokens, got {size}")
    check_int("tokens_per_centroid", index.tokens_per_centroid, 1, index.cluster_segment)
    check_int("pq_bits", index.pq_bits, 1, 8)
    for name in ("pq_subspaces", "residual_subspaces"):
        check_choice(name, getattr(index, name), (1, 2, 4, 8, 16))
    load_method("clusterkv").segments(index)  # refuses more clusters than codes


def unfused(device: str, options: RequestOptions, covers: bool) -> str:
    """Why a device cannot read as a request asks; "" if it can.

    Args:
        device: of the kernels.
        options: of the request.
        covers: it was started for requests that ask for a coverage.
    """
    if device not in FUSED_DEVICES:
        return ""
    every = options.reselect_every
    if every != 1:
        return (
            f"reselect_every must be 1 on device {device}, which selects in every step, got {every}"
        )
    if options.budget_split != "even":
        return (
            f'budget_split must be "even" on device {device}, where KV heads share no budget, got '
            f"{options.budget_split!r}"
        )
    if options.coverage is not None and not covers:
        return "coverage must be null on this server: start it with --sparsekv-serve-coverage true"
    return ""
