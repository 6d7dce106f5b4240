"""Two sizes of a test, and the last figures of full ones, committed beside the code."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from sgl_sparsekv.tooling.environment import environment

Size = Callable[[int, int], int]
"""From a small and a full size to the one that this run takes: the fixture `size`."""
SEED = 20_406_774
"""Of every test that draws numbers; stateful tests print the fresh seed they add to it."""
FOLDER = Path(__file__).parents[2] / "docs" / "results" / "soak"


def record(name: str, figures: Mapping[str, Any]) -> Path:
    """Write what a full run found to `docs/results/soak/NAME.json`, over the last ones."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    path = FOLDER / f"{name}.json"
    found = {"environment": environment(), **figures}
    path.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n")
    return path
