"""Results of one model: `bench/results/quality-<model>-<when>.json`."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from datetime import datetime
from pathlib import Path
from typing import Any

SCHEMA = 1
FOLDER = Path(__file__).parents[1] / "results"


@dataclass(frozen=True)
class Header:
    """What was measured, where and with what.

    Attributes:
        model: name of the subject.
        about: model and text in one sentence.
        queries: decode positions of each context.
        heads: KV heads; figures are means over them and over the query heads of each.
        head_dim: channels of a key and of a value.
        accuracy: by context, share of the positions whose next token the dense model foretells.
        device: ops that chose and attended.
        environment: machine, versions, commit and time (`sgl_sparsekv.tooling.environment`).
    """

    model: str
    about: str
    queries: int
    heads: int
    head_dim: int
    accuracy: dict[str, float]
    device: str
    environment: dict[str, Any]


@dataclass(frozen=True)
class Row:
    """One method at one budget; means over layers, positions and heads.

    Attributes:
        context: tokens.
        method: name of the variant.
        equal: "budget": the budget is Quest's; "bytes": the bytes read are Quest's.
        quest_budget: tokens, Quest's budget that this is compared with.
        budget: tokens of this method; None where choosing alone reads more, and all below too.
        metadata_bytes: read to choose, of a step, layer and KV head.
        kv_bytes: K and V attended.
        dense_bytes: K and V of the whole context.
        recall: see `bench.quality.measure.Quality`, as the next three.
        mass: attention weight covered.
        error: relative L2 error of the output.
        error_p90: its worst tenth.
        layers: the four figures of each layer.
    """

    context: int
    method: str
    equal: str
    quest_budget: int
    budget: int | None
    dense_bytes: float
    metadata_bytes: float | None = None
    kv_bytes: float | None = None
    recall: float | None = None
    mass: float | None = None
    error: float | None = None
    error_p90: float | None = None
    layers: tuple[tuple[float, ...], ...] = ()

    @property
    def share(self) -> float | None:
        """Bytes read over those of dense attention."""
        if self.metadata_bytes is None or self.kv_bytes is None:
            return None
        return (self.metadata_bytes + self.kv_bytes) / self.dense_bytes


def save(run: Header, rows: Sequence[Row], folder: Path = FOLDER) -> Path:
    """Write one run and return its path; what is there is never overwritten.

    Raises:
        ValueError: there are no rows.
        FileExistsError: a run of the same second is there.
    """
    if not rows:
        raise ValueError("rows must not be empty")
    stamp = datetime.fromisoformat(run.environment["when"]).strftime("%Y%m%d-%H%M%S")
    path = folder / f"quality-{run.model}-{stamp}.json"
    found = {"schema": SCHEMA, "header": asdict(run), "rows": [asdict(row) for row in rows]}
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("x") as file:
        file.write(_compact(found) + "\n")
    return path


def load(path: Path) -> tuple[Header, list[Row]]:
    """One run as it was saved.

    Raises:
        ValueError: it is not of this schema.
    """
    found = json.loads(path.read_text())
    if found.get("schema") != SCHEMA:
        raise ValueError(f"schema must be {SCHEMA} in {path}, got {found.get('schema')}")
    for kind, one in ((Header, found["header"]), *((Row, row) for row in found["rows"])):
        names = {field.name for field in fields(kind)}
        if set(one) != names:
            wrong = ", ".join(sorted(set(one) ^ names))
            raise ValueError(
                f"{kind.__name__} must have its fields in {path}, got or lacks {wrong}"
            )
    return Header(**found["header"]), [as_row(row) for row in found["rows"]]


def as_row(found: dict[str, Any]) -> Row:
    """A row from what JSON made of it."""
    return Row(**{**found, "layers": tuple(map(tuple, found["layers"]))})


def newest(folder: Path = FOLDER) -> list[tuple[str, Header, list[Row]]]:
    """The newest run of each model, by name: file name, header and rows."""
    found = {}
    for path in sorted(folder.glob("quality-*.json")):
        run, rows = load(path)
        found[run.model] = (path.name, run, rows)
    return [found[model] for model in sorted(found)]


def _compact(found: dict[str, Any]) -> str:
    """JSON with a line for each row, five digits for each figure."""

    def rounded(value: Any) -> Any:
        if isinstance(value, float):
            return float(f"{value:.5g}")
        return [rounded(one) for one in value] if isinstance(value, (list, tuple)) else value

    rows = [json.dumps({k: rounded(v) for k, v in row.items()}) for row in found["rows"]]
    head = json.dumps({"schema": found["schema"], "header": found["header"]}, indent=1)
    return head[:-2] + ',\n "rows": [\n  ' + ",\n  ".join(rows) + "\n ]\n}"
