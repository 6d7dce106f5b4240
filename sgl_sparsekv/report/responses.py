"""Answers of a server as somebody saved them: what each tells of its request's view.

One answer, a list of them or one a line; of `/generate`, of the OpenAI routes or the chunk that
ends a stream, or what stands under `sparsekv` in them.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..views.stretches import kept_in
from .fields import Wanted, check, check_known, numbers
from .kept_map import Kept
from .requests import Units

LONGEST = 1 << 24
"""Tokens of a context; more is no number of tokens."""
_REPORT: Wanted = {"method": str, "view": dict}
_VIEW: Wanted = {"made": int, "since": int, "map": dict, "mass": dict}
NONE = (
    'holds no answer that tells which tokens were kept: ask with {"kept_map": true}, a method that '
    "keeps views, and a prompt longer than its budget"
)


def claims(content: dict[str, Any]) -> bool:
    """Whether JSON is an answer, or what stands under `sparsekv` in one."""
    return bool({"meta_info", "choices"} & content.keys()) or {"view", "rejected"} <= content.keys()


def kept_of(path: Path) -> tuple[list[Kept], int]:
    """Views that the answers of a file tell, and how many answers there are.

    Raises:
        ValueError: what an answer tells is broken, or none tells a view.
    """
    found: list[Kept] = []
    count = 0
    for answer in _answers(path):
        if not isinstance(answer, dict) or not claims(answer):
            raise ValueError(f"answer {count + 1} must be one of a server")
        count += 1
        for report in _reports(answer):
            view = report.get("view") if isinstance(report, dict) else None
            if isinstance(view, dict) and view.get("map"):
                found.append(_kept(report, f"answer {count}"))
    if not found:
        raise ValueError(NONE)
    return found, count


def _answers(path: Path) -> Iterator[Any]:
    if path.suffix == ".json":
        content = json.loads(path.read_bytes())
        yield from content if isinstance(content, list) else [content]
        return
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                try:
                    yield json.loads(line)
                except (ValueError, RecursionError):
                    raise ValueError(f"must be JSON lines, line {number} is not") from None


def _reports(answer: dict[str, Any]) -> list[Any]:
    """What an answer holds under `sparsekv`; a list where it has several choices."""
    if "view" in answer:
        return [answer]
    around = answer.get("meta_info") or answer.get("metadata")
    told = around.get("sparsekv") if isinstance(around, dict) else None
    return told if isinstance(told, list) else [told]


def _kept(report: dict[str, Any], what: str) -> Kept:
    check(report, _REPORT, what)
    view = check(report["view"], _VIEW, f"view of {what}")
    made = int(view["made"])
    if not 0 < made <= LONGEST:
        raise ValueError(f"made of {what} must be from 1 to {LONGEST}, got {made}")
    if view["map"].keys() != view["mass"].keys():
        raise ValueError(f"view of {what} must have a map and a mass of the same layers")
    layers = {
        _layer(name): _heads(heads, made, f"map of {what}") for name, heads in view["map"].items()
    }
    mass = {_layer(name): numbers(own, f"mass of {what}") for name, own in view["mass"].items()}
    if any(len(own) != len(layers[number]) for number, own in mass.items()):
        raise ValueError(f"mass of {what} must be a number per KV head")
    return Kept(
        method=report["method"],
        budget=str(report.get("budget", "")),
        length=made,
        since=int(view["since"]),
        layers=layers,
        mass=mass,
        decoded=_decoded(report),
    )


def _layer(name: str) -> int:
    if not name.isdecimal() or len(name) > 6:
        raise ValueError(f"a layer must be a number, got {name!r:.40}")
    return int(name)


def _heads(heads: Any, made: int, what: str) -> list[Units]:
    """Kept positions of each KV head, from the lengths of stretches."""
    if not isinstance(heads, list) or not heads:
        raise ValueError(f"{what} must be a list per KV head")
    found = []
    for head in heads:
        lengths = numbers(head, what)
        if not all(isinstance(one, int) and one >= 0 for one in lengths) or sum(lengths) != made:
            raise ValueError(f"{what} must be lengths that sum to the {made} tokens of the view")
        found.append(kept_in([int(one) for one in lengths]))
    return found


def _decoded(report: dict[str, Any]) -> float | None:
    """Mean attention mass of decode steps, of a request that asked for telemetry too."""
    told = report.get("telemetry")
    mass = told.get("attention_mass") if isinstance(told, dict) else None
    if not isinstance(mass, dict):
        return None
    mean: float | None = check_known(mass, {"mean": None}, "attention_mass").get("mean")
    return mean
