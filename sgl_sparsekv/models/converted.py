"""A folder made from a GGUF file: written whole or not at all, and known again."""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path

from sgl_sparsekv.models.digest import sha256
from sgl_sparsekv.models.gguf import save_gguf

_SOURCE = "source.json"
"""Says which file the folder was made from, and what was made: digests by name."""


def save_converted(file: Path, folder: Path) -> None:
    """Writes the model of a GGUF file to `folder`.

    Raises:
        ValueError: see `save_gguf`; nothing is left behind then.
    """
    folder = folder.absolute()
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as temporary:
        made = Path(temporary)
        save_gguf(file, made)
        digests = {"gguf": sha256(file), **_weights(made)}
        folder.mkdir(exist_ok=True)
        for path in made.iterdir():
            os.replace(path, folder / path.name)
    # Last, so that a folder that was cut off is not taken for whole.
    (folder / _SOURCE).write_text(json.dumps(digests, indent=1) + "\n")


def holds(folder: Path, source: str) -> bool:
    """Whether a folder was made from the GGUF file of sha256 `source`, and is unchanged."""
    note = folder / _SOURCE
    if not note.is_file():
        return False
    made = _weights(folder)
    return bool(made) and json.loads(note.read_text()) == {"gguf": source, **made}


def _weights(folder: Path) -> dict[str, str]:
    return {path.name: sha256(path) for path in sorted(folder.glob("*.safetensors"))}
