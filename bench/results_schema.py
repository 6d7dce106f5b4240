"""Results of a GPU run, one file per run: `bench/results/<gpu>/<when>.json`.

Written with `bench.record`, read by `bench.report`.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from datetime import datetime
from pathlib import Path
from typing import Any

from bench.model import GPUS, MODELS, Gpu, Workload, find

SCHEMA = 1
FOLDER = Path(__file__).parent / "results"


@dataclass(frozen=True)
class Header:
    """Where and with what a run was done.

    Attributes:
        gpu: key of `bench.model.GPUS`.
        model: key of `bench.model.MODELS`.
        tb_per_s: read bandwidth that the floors are counted with, in 1e12 bytes per second.
        bandwidth_measured: whether that was measured in this run.
        commit: commit of the checkout, `+` if it was changed; None if not known.
        when: ISO 8601, UTC.
        device: what the driver says of the GPU, by `nvidia-smi`'s names; empty without one.
        versions: package -> version; packages that are not installed are left out.
    """

    gpu: str
    model: str
    tb_per_s: float
    bandwidth_measured: bool
    commit: str | None
    when: str
    device: dict[str, str]
    versions: dict[str, str]

    @property
    def machine(self) -> Gpu:
        """The GPU at this run's bandwidth."""
        return replace(GPUS[self.gpu], tb_per_s=self.tb_per_s)


@dataclass(frozen=True)
class Row:
    """One measurement; microseconds.

    Attributes:
        name: a key of `bench.targets.NAMES`.
        context: tokens per request.
        batch: requests.
        page: slots per page of the pool.
        unit: tokens per unit that is scored.
        budget: tokens read per request and KV head.
        method: selection method.
        measured_us: least of the repeats.
        median_us: median of the repeats; None if not kept.
        floor_us: bytes that must be read over the header's bandwidth.
        of_floor: measured over floor; None where nothing must be read.
        peer: what it is compared with, measured in the same run; None: nothing.
        peer_us: the peer's least.
        gain: peer over measured.
        targets: keys of the targets that this row is judged by.
        note: what a reader must know.
    """

    name: str
    context: int
    batch: int
    page: int
    unit: int
    budget: int
    method: str
    measured_us: float
    median_us: float | None
    floor_us: float
    of_floor: float | None
    peer: str | None
    peer_us: float | None
    gain: float | None
    targets: tuple[str, ...]
    note: str = ""

    @property
    def work(self) -> Workload:
        """Shape as the model has it."""
        return Workload(self.context, self.batch, self.unit, self.budget, self.method)


def save(run: Header, rows: Sequence[Row], folder: Path = FOLDER) -> Path:
    """Write one run and return its path; what is there is never overwritten.

    Raises:
        ValueError: there are no rows.
        FileExistsError: a run of the same second is there.
    """
    if not rows:
        raise ValueError("rows must not be empty")
    stamp = datetime.fromisoformat(run.when).strftime("%Y%m%d-%H%M%S")
    path = folder / run.gpu / f"{stamp}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    found = {"schema": SCHEMA, "header": asdict(run), "rows": [asdict(one) for one in rows]}
    with path.open("x") as file:
        file.write(json.dumps(found, indent=1) + "\n")
    return path


def load(path: Path) -> tuple[Header, list[Row]]:
    """One run as it was saved.

    Raises:
        ValueError: it is not of this schema, or lies in another GPU's folder.
    """
    found = json.loads(path.read_text())
    if found.get("schema") != SCHEMA:
        raise ValueError(f"schema must be {SCHEMA} in {path}, got {found.get('schema')}")
    run = Header(**_exactly(Header, found["header"], path))
    find(GPUS, "gpu", run.gpu)
    find(MODELS, "model", run.model)
    if path.parent.name != run.gpu:
        raise ValueError(f"gpu must be {path.parent.name} in {path}, got {run.gpu}")
    rows = [_exactly(Row, one, path) for one in found["rows"]]
    return run, [Row(**{**one, "targets": tuple(one["targets"])}) for one in rows]


def _exactly(kind: type[Header] | type[Row], found: dict[str, Any], path: Path) -> dict[str, Any]:
    names = {field.name for field in fields(kind)}
    if set(found) != names:
        wrong = ", ".join(sorted(set(found) ^ names))
        raise ValueError(
            f"{kind.__name__} must have its own fields in {path}, got or lacks {wrong}"
        )
    return found
