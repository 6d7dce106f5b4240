"""Results of one model: `bench/results/defaults-<model>-<when>.json`."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from bench.defaults.answers import Answered
from bench.defaults.errors import Finding
from bench.quality.results import FOLDER

SCHEMA = 1


@dataclass(frozen=True)
class Run:
    """What was found of one model.

    Attributes:
        model: name of the subject.
        about: model and text in one sentence.
        environment: machine, versions, commit and time.
        findings: errors of outputs.
        answers: of a server; empty where none was asked.
    """

    model: str
    about: str
    environment: dict[str, Any]
    findings: Sequence[Finding]
    answers: Sequence[Answered]


def save(run: Run, folder: Path = FOLDER) -> Path:
    """Write one run and return its path; what is there is never overwritten.

    Raises:
        FileExistsError: a run of the same second is there.
    """
    stamp = datetime.fromisoformat(run.environment["when"]).strftime("%Y%m%d-%H%M%S")
    path = folder / f"defaults-{run.model}-{stamp}.json"
    head = {"schema": SCHEMA, "about": run.about, "environment": run.environment}
    text = json.dumps({"model": run.model, **head})[:-1]
    for name in ("findings", "answers"):
        rows = (json.dumps(_rounded(asdict(row))) for row in getattr(run, name))
        text += f', "{name}": [\n' + ",\n".join(rows) + "\n]"
    folder.mkdir(parents=True, exist_ok=True)
    with path.open("x") as file:
        file.write(text + "}\n")
    return path


def load(path: Path) -> Run:
    """One run as it was saved.

    Raises:
        ValueError: it is not of this schema.
    """
    found = json.loads(path.read_text())
    if found.pop("schema", None) != SCHEMA:
        raise ValueError(f"schema must be {SCHEMA} in {path}")
    findings = [Finding(**row) for row in found.pop("findings")]
    return Run(
        **found | {"findings": findings, "answers": [Answered(**r) for r in found["answers"]]}
    )


def newest(folder: Path = FOLDER) -> list[tuple[str, Run]]:
    """The newest run of each model, by name."""
    found = {}
    for path in sorted(folder.glob("defaults-*.json")):
        run = load(path)
        found[run.model] = (path.name, run)
    return [found[model] for model in sorted(found)]


def _rounded(row: dict[str, Any]) -> dict[str, Any]:
    return {k: float(f"{v:.4g}") if isinstance(v, float) else v for k, v in row.items()}
