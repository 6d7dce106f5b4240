"""Verdicts of the sweep by line, each on disk as soon as it is there; judges chosen lines."""

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

from tests.helpers.launcher import Launcher
from tests.helpers.soak import FOLDER, record

from .asking import SAYS_NOTHING
from .families import Family, families, write_family
from .flags import Case, cases
from .page import NOT_TRIED, name_of, told, verdict_of, write_page
from .resolving import resolve_line, write_config
from .sweep import Sweep, Verdict, refusal_in
from .tiny import write_llama

NAME = "start"
FLAGS, FAMILIES = "flags", "families"
Chosen = Callable[[str, str], bool]
"""Whether a line of a section is to be judged."""


class Figures:
    """How each flag and each family ended, by its name."""

    def __init__(self, anew: bool = False) -> None:
        """Those of the last run, or none."""
        self.found: dict[str, dict[str, str]] = {FLAGS: {}, FAMILIES: {}}
        self._path = FOLDER / f"{NAME}.json"
        if anew:
            self._path.unlink(missing_ok=True)
        self._read()

    def _read(self) -> None:
        if self._path.exists():
            kept = json.loads(self._path.read_text())
            self.found = {section: dict(kept[section]) for section in self.found}

    def add(self, section: str, verdict: Verdict) -> None:
        """Keep a verdict beside those that another process may have written meanwhile."""
        self._read()
        self.found[section][name_of(verdict.name)] = told(verdict)
        record(NAME, self.found)

    def verdicts(self, section: str, names: list[str]) -> list[Verdict]:
        """Those of these lines, in this order."""
        kept, left = self.found[section], f"{NOT_TRIED}: no sweep has come to it yet"
        return [verdict_of(name, kept.get(name, left)) for name in names]

    def write_page(self) -> list[Verdict]:
        """Write the page, drop what SGLang no longer knows, and return all verdicts."""
        order = {
            FLAGS: [name_of(case.shown) for case in cases(Path("/a/model"), Path("/a/folder"))],
            FAMILIES: [family.architecture for family in families()],
        }
        self._read()
        for section, names in order.items():
            kept = self.found[section]
            self.found[section] = {name: kept[name] for name in names if name in kept}
        record(NAME, self.found)
        flags, models = (self.verdicts(section, names) for section, names in order.items())
        write_page(version("sglang"), flags, models)
        return [*flags, *models]


def judge(launcher: Launcher, figures: Figures, chosen: Chosen) -> Iterator[Verdict]:
    """Judge chosen lines, keep and return each verdict."""
    model = write_llama(launcher.folder / "model", num_hidden_layers=4)
    folder = launcher.folder / "folder"
    folder.mkdir(exist_ok=True)
    found = [case for case in cases(model, folder) if chosen(FLAGS, name_of(case.shown))]
    for _, verdict in judge_flags(launcher, model, found):
        figures.add(FLAGS, verdict)
        yield verdict
    for family in families():
        if chosen(FAMILIES, family.architecture):
            verdict = family_verdict(launcher, family)
            figures.add(FAMILIES, verdict)
            yield verdict


def judge_flags(
    launcher: Launcher, model: Path, found: list[Case]
) -> Iterator[tuple[Case, Verdict]]:
    """Every case: what does not resolve is not started."""
    bare, left = write_config(launcher.folder / "bare"), []
    for case in found:
        words = resolve_line(case, bare)
        if words is None:
            left.append(case)
        else:
            yield case, Verdict(case.shown, *refusal_in(words), 0.0)
    yield from Sweep(launcher, model).judge_all(left)


def family_verdict(launcher: Launcher, family: Family) -> Verdict:
    """One family, or why it was not tried."""
    name = family.architecture
    if family.untried:
        return Verdict(name, NOT_TRIED, family.untried, 0.0)
    try:
        model = write_family(family, launcher.folder / name)
    except Exception as error:  # transformers raises whatever it likes
        words = " ".join(str(error).split())[:100]
        return Verdict(name, NOT_TRIED, f"no small model of it could be built: {words}", 0.0)
    found = Sweep(launcher, model, family.flags).judge_family(name)
    if found.words.startswith(SAYS_NOTHING):
        return replace(found, how=NOT_TRIED)
    return found
