"""What each target's row is expected to take before a GPU has been asked."""

from itertools import product

from bench.model import GPUS, KERNELS, LLAMA_3_1_8B, READINGS, Workload, predict
from bench.model.kernels import COPY_TB_PER_S, DELEGATED_US, Kernels
from bench.model.methods import beside, choosing, layer
from bench.tables import number, table, tokens
from bench.targets import BUDGET, JUDGED, PAGE, TARGETS, Target

INTRO = """\
### Expected

From the bytes, the compiler's figures and the price of a launch, by `bench/model/kernels.py`: 35 %
either way. The launches as first written, and as they are meant to become; a run of
`bench.gpu.harvest` says what they are. In bold what misses its bound."""


DENSE = """\
### Dense layers

What a layer takes in which every row reads everything (`dense_layers`, none by default), by our own
`attend`, as restructured, and by SGLang's dense kernel on an NVIDIA H200; and what handing two such
layers over would save of a step. Their page table would have to be laid out in every sparse step,
for {once:g} us. Predicted as above."""
LAYERS = 2
METHODS = """\
### Methods

A layer by each method that a GPU serves, with its default options and a budget of {budget} tokens,
on an NVIDIA H200: choosing (every launch but `attend`), `attend` over what was chosen, both, and
what must be read of metadata, K and V over the bandwidth. Predicted as above
(`bench/model/methods.py`). `attend` reads single tokens with {finer:.1%} more bytes than units of
16. Choosing among the single tokens of a long row takes two launches more than among units. Of
`residual_pq` every segment is looked into, and what the rest weighs is part of choosing; one
program of each row and KV head opens the clusters, which is most of it at 128k."""
BESIDE = """\
What requests may ask for beside that: telemetry, in the steps that it samples; a coverage, in five
launches more, most of whose time is theirs; and choosing in all, in the mean over four steps, where
`reselect_every` is 4: where a selection is held only reading is saved, launches stay."""
CONTEXTS, BATCHES = (32_768, 131_072), (1, 8)


def expected_part(units: tuple[int, ...]) -> str:
    """A table for each GPU that is judged, one of methods, and one of dense layers."""
    judged = (_of(gpu, units) for gpu in JUDGED)
    return "\n\n".join([INTRO, *judged, _methods(), _dense(units[0])])


def _methods() -> str:
    """Each method at each size, beside its byte floor."""
    rows, finer = [], layer("h200", "pqcache", CONTEXTS[0], 1, BUDGET).bytes_over_pages - 1
    for name in choosing(LLAMA_3_1_8B):
        for context, batch in product(CONTEXTS, BATCHES):
            found = layer("h200", name, context, batch, BUDGET)
            both = found.choose + found.attend
            times = (found.choose, found.attend, both, found.floor)
            cells = [f"{number(us)} us" for us in times]
            rows.append([name, tokens(context), batch, *cells, f"{number(found.dense / both)}x"])
    head = ["method", "context", "batch", "choosing", "attend", "both", "floor", "dense over both"]
    methods = f"{METHODS.format(budget=BUDGET, finer=finer)}\n\n{table(head, rows)}"
    return f"{methods}\n\n{_beside()}"


def _beside() -> str:
    """Telemetry, coverage and held selections."""
    rows = []
    for name, (context, batch) in product(("quest", "clusterkv"), product(CONTEXTS, BATCHES)):
        found = beside("h200", name, context, batch, BUDGET)
        choose = layer("h200", name, context, batch, BUDGET).choose
        times = (choose, found.held, found.coverage, found.telemetry)
        rows.append([name, tokens(context), batch, *(f"{number(us)} us" for us in times)])
    head = ["method", "context", "batch", "choosing", "held", "coverage", "telemetry"]
    return f"{BESIDE}\n\n{table(head, rows)}"


def _dense(unit: int) -> str:
    """Dense layers by our own kernel against delegating them."""
    rows = []
    for context, batch in TARGETS["selection"].shapes:
        found = predict("h200", KERNELS[-1], Workload(context, batch, unit, BUDGET))
        gain = LAYERS * (found.own_dense - found.dense) - DELEGATED_US
        step = found.step + LAYERS * (found.own_dense - found.sparse)
        mine, other = (f"{number(us)} us" for us in (found.own_dense, found.dense))
        rows.append([tokens(context), batch, mine, other, f"{number(gain)} us, {gain / step:.1%}"])
    head = ["context", "batch", "our attend", "SGLang's", "two of them handed over save"]
    return f"{DENSE.format(once=DELEGATED_US)}\n\n{table(head, rows)}"


def _of(gpu: str, units: tuple[int, ...]) -> str:
    """Every listed shape of every target, by each way of building the kernels and unit size."""
    head = ["row", "context", "batch"]
    head += [f"{kernels.name}, units of {unit}" for kernels in KERNELS for unit in units]
    rows = [
        [target.name, tokens(context), batch, *_cells(gpu, target, context, batch, units)]
        for target in TARGETS.values()
        for context, batch in target.shapes
    ]
    return f"{GPUS[gpu].name}, copying at {COPY_TB_PER_S[gpu]:g} TB/s:\n\n{table(head, rows)}"


def _cells(gpu: str, target: Target, context: int, batch: int, units: tuple[int, ...]) -> list[str]:
    works = [Workload(context, batch, unit, BUDGET) for unit in units]
    return [_cell(gpu, target, kernels, work) for kernels in KERNELS for work in works]


def _cell(gpu: str, target: Target, kernels: Kernels, work: Workload) -> str:
    found = predict(gpu, kernels, work, shared=target.name == "shared_prefix")
    us, gain = READINGS[target.name](found)
    text = f"{number(us)} us" if gain is None else f"{number(gain)}x at {number(us)} us"
    judged = target.applies(target.name, work, PAGE)
    missed = judged and not target.bound(gpu, work).met(us, gain)
    return f"**{text}**" if missed else text
