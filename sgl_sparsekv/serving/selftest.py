"""Every available device against the readable reference, on one small random case.

`python -m sgl_sparsekv.serving.selftest` prints the result as one line of JSON; `sparsekv doctor`
runs it in a process of its own.
"""

import json
import math
from dataclasses import asdict, dataclass, field

import torch

from ..config import ServerOptions
from ..errors import UnsupportedSetup
from ..geometry import UNIT_SIZE, Geometry
from ..ops import DEVICES, Ops, load_ops
from ..segment_records import ResidualIndex, SegmentIndex
from ..segments.index import clusters
from ..segments.residual import residuals
from ..selection import load_method, method_names
from ..types import Candidates, Reduction, ScoreInputs

TOLERANCE = 2e-4
"""float32 arithmetic in another order, on sums of a few hundred terms of size one."""
ROWS, HEADS, GROUP, DIM = 3, 2, 4, 64
LENGTHS = (301, 160, 47)
POOL_UNITS = 64
SEGMENT = 32
"""Tokens of the one segment that is indexed of every row."""


@dataclass
class DeviceReport:
    """How one device did.

    Attributes:
        device: its name.
        available: whether it could be loaded.
        problem: why not, or which op differs from the reference; "" when all is well.
        methods: methods it can serve.
        worst: largest deviation from the reference, by op.
    """

    device: str
    available: bool = True
    problem: str = ""
    methods: list[str] = field(default_factory=list)
    worst: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Case:
    """Tensors of a small decode step; shapes as in `sgl_sparsekv.types`."""

    q: torch.Tensor
    keys: torch.Tensor
    values: torch.Tensor
    candidates: Candidates
    num_units: torch.Tensor
    tails: torch.Tensor

    def to(self, where: torch.device) -> "Case":
        """The same somewhere else."""
        at = self.candidates
        spans = (span.to(where) for span in (at.unit_table, at.begin, at.end))
        tensors = (self.q, self.keys, self.values, self.num_units, self.tails)
        q, keys, values, num_units, tails = (tensor.to(where) for tensor in tensors)
        return Case(q, keys, values, Candidates(*spans), num_units, tails)

    @property
    def scale(self) -> float:
        """Softmax scale."""
        return 1 / math.sqrt(DIM)

    @property
    def counts(self) -> torch.Tensor:
        """Units to select, int32 `[rows]`: half of a row, so reading all of it is no pass."""
        return (self.num_units // 2).clamp(min=3).minimum(self.num_units)


def home(device: str) -> torch.device:
    """Where the tensors of a device's ops lie: compiled kernels read no memory of the host."""
    compiled = device == "triton" and torch.cuda.is_available()
    return torch.device("cuda" if compiled else "cpu")


def make_case() -> Case:
    """The case: ragged rows whose units lie scattered in the pool."""
    generator = torch.Generator().manual_seed(0)
    geometry = Geometry(UNIT_SIZE)
    units = [geometry.num_units(length) for length in LENGTHS]
    order = torch.randperm(POOL_UNITS - 1, generator=generator) + 1  # unit 0 is never a request's
    table = torch.zeros(ROWS, max(units), dtype=torch.int32)
    taken = 0
    for row, count in enumerate(units):
        table[row, :count] = order[taken : taken + count].int()
        taken += count
    num_units = torch.tensor(units, dtype=torch.int32)
    shape = (POOL_UNITS * UNIT_SIZE, HEADS, DIM)
    return Case(
        q=torch.randn(ROWS, HEADS, GROUP, DIM, generator=generator),
        keys=torch.randn(shape, generator=generator),
        values=torch.randn(shape, generator=generator),
        candidates=Candidates(table, torch.ones_like(num_units), num_units - 1),
        num_units=num_units,
        tails=torch.tensor([geometry.tail_length(n) for n in LENGTHS], dtype=torch.int32),
    )


def test_device(device: str) -> DeviceReport:
    """Load a device and compare every op with the reference and with plain attention."""
    report = DeviceReport(device)
    try:
        ops = load_ops(device)
    except (UnsupportedSetup, ImportError, OSError) as error:
        return DeviceReport(device, available=False, problem=str(error))
    report.methods = [name for name in method_names() if load_method(name).missing_op(ops) is None]
    where = home(device)
    case = make_case().to(where)
    with where:
        _test_scores(ops, case, report)
        _test_attend(ops, case, report)
    bad = [f"{op} is off by {gap:.2g}" for op, gap in report.worst.items() if not gap <= TOLERANCE]
    report.problem = "; ".join(bad)
    return report


def _test_scores(ops: Ops, case: Case, report: DeviceReport) -> None:
    """`summarise`, `score`, `score_exact` and `select` for every method of the device."""
    reference = load_ops("reference")
    reduction = Reduction.MAX_SOFTMAX
    for summary in {s: None for name in report.methods for s in load_method(name).summaries}:
        finer = UNIT_SIZE // (summary.tokens or UNIT_SIZE)
        shape = (POOL_UNITS * finer, HEADS, *summary.shape(DIM))
        fields = torch.zeros(shape, dtype=summary.dtype or torch.float32)
        expected = fields.clone()
        units = torch.arange(finer, POOL_UNITS * finer)
        ops.summarise(summary, case.keys, fields, units)
        reference.summarise(summary, case.keys, expected, units)
        report.worst[f"summarise[{summary.name}]"] = _gap(fields, expected)
        if summary.score is not None:
            inputs = (summary, case.q, expected, case.candidates, case.scale, reduction)
            scores = reference.score(*inputs)
            report.worst[f"score[{summary.name}]"] = _gap(ops.score(*inputs), scores)
    if ops.has_segments:
        _test_codes(ops, case, report)
    exact = (case.q, case.keys, case.candidates, case.scale, reduction, UNIT_SIZE)
    scores = reference.score_exact(*exact)
    report.worst["score_exact"] = _gap(ops.score_exact(*exact), scores)
    counts = case.counts
    chosen = ops.select(scores, case.candidates, case.num_units, counts)
    wanted = reference.select(scores, case.candidates, case.num_units, counts)
    report.worst["select"] = _gap(chosen.logical.float(), wanted.logical.float())


def _test_codes(ops: Ops, case: Case, report: DeviceReport) -> None:
    """`index_segments` and `score_codes` with clusters of the first segment of every row."""
    summary = clusters(SEGMENT, SEGMENT // 8)
    starts = case.candidates.unit_table.long() * UNIT_SIZE
    slots = (starts[..., None] + torch.arange(UNIT_SIZE)).flatten(1)
    index = SegmentIndex(
        torch.zeros(ROWS, HEADS, 1, SEGMENT, dtype=torch.uint8),
        torch.zeros(ROWS, HEADS, 1, summary.codes, DIM),
        torch.arange(ROWS, dtype=torch.int32)[:, None],
    )
    skips, records = torch.zeros(ROWS, dtype=torch.int64), torch.arange(ROWS)
    ops.index_segments(summary, case.keys, slots[:, :SEGMENT], skips, index, records)
    keys = case.keys[slots[:, :SEGMENT]].movedim(2, 1)  # [rows, H, S, D]
    member = torch.nn.functional.one_hot(index.codes[:, :, 0].long(), summary.codes).float()
    means = member.mT @ keys / member.sum(2)[..., None].clamp(min=1)
    report.worst["index_segments"] = _gap(index.codebooks[:, :, 0], means)
    tokens = Candidates(
        slots.int(), case.candidates.begin * UNIT_SIZE, case.candidates.end * UNIT_SIZE
    )
    inputs = (case.q, case.keys, index, tokens, case.scale, Reduction.MAX_SOFTMAX)
    wanted = load_ops("reference").score_codes(*inputs)
    report.worst["score_codes"] = _gap(ops.score_codes(*inputs), wanted)
    _test_residuals(ops, case, slots[:, :SEGMENT], tokens, report)


def _test_residuals(
    ops: Ops, case: Case, slots: torch.Tensor, tokens: Candidates, report: DeviceReport
) -> None:
    """Residual codes of the first segment of every row, and what the rest of it is worth."""
    reference = load_ops("reference")
    arrays = residuals(SEGMENT, 4).build(
        reference.index_segments,
        *(case.keys[slots], case.values[slots], torch.zeros(ROWS, dtype=torch.int64)),
    )
    table = torch.arange(ROWS, dtype=torch.int32)[:, None]
    index = ResidualIndex(**{name: a.contiguous() for name, a in arrays.items()}, table=table)
    lengths = torch.tensor(LENGTHS, dtype=torch.int32)
    always = tokens.begin + lengths - tokens.end
    inputs = ScoreInputs(
        *(case.q, case.keys, {}, index, tokens, lengths, always, case.scale),
        *(Reduction.MAX_SOFTMAX, 1),
    )
    scores = [
        o.score_codes(case.q, case.keys, index, tokens, case.scale, Reduction.MAX_SOFTMAX)
        for o in (ops, reference)
    ]
    report.worst["score_codes, residual"] = _gap(*scores)
    weights = [o.choose(inputs, 2)[1] for o in (ops, reference)]
    report.worst["choose"] = _gap(*(one.clamp(min=-1e4) for one in weights))
    nothing = case.q.new_zeros(*case.q.shape[:3], case.values.shape[-1])
    state = (nothing, torch.full(case.q.shape[:3], -torch.inf))
    pairs = zip(*(o.estimate(weights[0], index, *state) for o in (ops, reference)), strict=True)
    report.worst["estimate"] = max(_gap(*pair) for pair in pairs)


def _test_attend(ops: Ops, case: Case, report: DeviceReport) -> None:
    """A budget as large as the context must give plain attention."""
    table = case.candidates.unit_table[:, None, :].expand(-1, HEADS, -1).contiguous()
    out, _ = ops.attend(
        case.q, case.keys, case.values, table, case.num_units, case.tails, case.scale, UNIT_SIZE
    )
    for row, length in enumerate(LENGTHS):
        starts = case.candidates.unit_table[row, : case.num_units[row]].long() * UNIT_SIZE
        slots = (starts[:, None] + torch.arange(UNIT_SIZE)).reshape(-1)[:length]
        k, v = case.keys[slots].double().movedim(1, 0), case.values[slots].double().movedim(1, 0)
        dense = (case.q[row].double() @ k.mT * case.scale).softmax(-1) @ v
        gap = _gap(out[row].double(), dense)
        report.worst["attend, all units"] = max(report.worst.get("attend, all units", 0.0), gap)


def _gap(got: torch.Tensor, wanted: torch.Tensor) -> float:
    """Largest difference; infinite where only one side is finite or shapes differ."""
    if got.shape != wanted.shape:
        return float("inf")
    both = got.isfinite() & wanted.isfinite()
    if not torch.equal(got.isfinite(), wanted.isfinite()) or not torch.equal(
        got[~both], wanted[~both]
    ):
        return float("inf")
    return float((got[both] - wanted[both]).abs().max()) if bool(both.any()) else 0.0


def main() -> None:
    """Print the report."""
    options = ServerOptions()
    summaries = dict.fromkeys(s for name in options.methods for s in load_method(name).summaries)
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    print(
        json.dumps(
            {
                "torch_threads": torch.get_num_threads(),
                "gpus": gpus,
                "devices": [asdict(test_device(device)) for device in DEVICES],
                "default_methods": list(options.methods),
                "default_planes": sum(len(s.planes) for s in summaries),
                "unit_size": UNIT_SIZE,
            }
        )
    )


if __name__ == "__main__":
    main()
