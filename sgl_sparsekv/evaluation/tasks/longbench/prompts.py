"""Prompts and answer lengths: the published ones, or the user's in LongBench's own form."""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from .datasets import PUBLISHED

NEEDED = "longbench needs lm_eval 0.4.13: pip install 'sgl-sparsekv[eval]'"
DIGEST = "60129da23876c9a6"
"""Of the published prompts and answer lengths."""
_LINE, _BLANK = "{context}\n{input}", "{context}\n\n{input}"
_LOST = {"passage_count": " ", "passage_retrieval_en": " ", "lcc": "\n", "repobench-p": "\n"}
"""White space at the end of a published prompt that the harness leaves out."""


@dataclass(frozen=True)
class Prompt:
    """How one set asks.

    Attributes:
        template: has the fields context and, mostly, input, in braces.
        new_tokens: of an answer, at most.
    """

    template: str
    new_tokens: int

    def __post_init__(self) -> None:
        fields = set(re.findall(r"{(\w*)}", self.template))
        if not {"context"} <= fields <= {"context", "input"}:
            raise ValueError(f"prompt must have {{context}} and {{input}}, got {self.template!r}")
        if self.new_tokens < 1:
            raise ValueError(f"answer length must be at least 1, got {self.new_tokens}")

    def fill(self, context: str, question: str) -> tuple[str, str]:
        """The prompt up to the end of the context, and what follows."""
        head, _, tail = self.template.partition("{context}")
        return head.replace("{input}", question) + context, tail.replace("{input}", question)


def harness() -> Path:
    """Where the installed harness has LongBench; it is not imported.

    Raises:
        ValueError: it is not installed.
    """
    spec = find_spec("lm_eval")
    if spec is None or spec.origin is None:
        raise ValueError(NEEDED)
    return Path(spec.origin).parent / "tasks" / "longbench"


def published() -> dict[str, Prompt]:
    """LongBench's prompts, from the installed harness, with the white space it leaves out.

    Raises:
        ValueError: the harness is not installed, or has other prompts.
    """
    import yaml

    # Names of functions are passed over.
    loader: Any = type("Loader", (yaml.SafeLoader,), {})
    loader.add_multi_constructor("!function", lambda loader, suffix, node: None)
    folder = harness()
    try:
        found = {}
        for name in PUBLISHED:
            text = (folder / f"{name}.yaml").read_text(encoding="utf-8")
            found[name] = _restored(name, yaml.load(text, loader))
    except (OSError, LookupError, TypeError, ValueError, yaml.YAMLError):
        raise ValueError(NEEDED) from None
    if digest(found) != DIGEST:
        raise ValueError(NEEDED)
    return found


def _restored(name: str, entry: Any) -> Prompt:
    template = str(entry["doc_to_text"]).replace("{{context}}", "{context}")
    template = template.replace("{{question}}", "{input}").replace("{{input}}", "{input}")
    if name in ("triviaqa", "samsum"):
        template = template.replace(_LINE, _BLANK)
    return Prompt(template + _LOST.get(name, ""), int(entry["generation_kwargs"]["max_gen_toks"]))


def read(path: Path, known: Mapping[str, Prompt]) -> dict[str, Prompt]:
    """`known`, changed by a `dataset2prompt.json` and by a `dataset2maxlen.json` beside it.

    Raises:
        ValueError: a file is missing or has another form, or an answer length is missing.
    """
    lengths = {name: prompt.new_tokens for name, prompt in known.items()}
    beside = path.parent / "dataset2maxlen.json"
    if beside.is_file():
        lengths |= _object(beside, int)
    found = {name: Prompt(prompt.template, lengths[name]) for name, prompt in known.items()}
    for name, template in _object(path, str).items():
        if name not in lengths:
            raise ValueError(f"{str(beside)!r} must have the answer length of {name!r}, got none")
        found[name] = Prompt(template, lengths[name])
    return found


def _object(path: Path, kind: type) -> dict[str, Any]:
    """A JSON object whose values are all of one kind."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"prompts must be a file, got {str(path)!r}: {error.strerror}") from None
    except ValueError as error:
        raise ValueError(f"prompts must be JSON, got {str(path)!r}: {error}") from None
    if not isinstance(found, dict) or not all(type(value) is kind for value in found.values()):
        raise ValueError(f"prompts must give {kind.__name__} for each set, got {str(path)!r}")
    return found


def digest(prompts: Mapping[str, Prompt]) -> str:
    """A short mark of all of them."""
    entries = [(name, prompt.template, prompt.new_tokens) for name, prompt in prompts.items()]
    return hashlib.sha256(repr(sorted(entries)).encode()).hexdigest()[:16]
