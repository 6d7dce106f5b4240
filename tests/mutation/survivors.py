"""What a sweep found: mutants by file, and what each that lives has changed."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from difflib import ndiff
from pathlib import Path

import libcst as cst
from mutmut.mutation.data import SourceFileMutationData
from mutmut.mutation.diff_apply import read_mutant_function, read_original_function
from mutmut.stats import status_by_exit_code
from mutmut.utils.file_utils import walk_mutatable_files
from mutmut.utils.format_utils import orig_function_and_class_names_from_key

KILLED = ("killed", "timeout", "segfault")
LIVES = ("survived", "no tests")


@dataclass(frozen=True)
class Survivor:
    """A mutant that no unit test sees.

    Attributes:
        name: mutmut's.
        file: below the package.
        function: with its class.
        old: the lines that it changes, joined.
        new: what they become.
        reached: whether a test runs the function at all.
    """

    name: str
    file: str
    function: str
    old: str
    new: str
    reached: bool


@dataclass(frozen=True)
class Swept:
    """One file.

    Attributes:
        file: below the package.
        counts: mutants by mutmut's status.
        survivors: those that live.
    """

    file: str
    counts: Counter[str]
    survivors: tuple[Survivor, ...]

    @property
    def killed(self) -> int:
        """Mutants that a test fails for, or never ends for."""
        return sum(self.counts[status] for status in KILLED)

    @property
    def total(self) -> int:
        """Mutants, tried or not."""
        return sum(self.counts.values())

    @property
    def tried(self) -> int:
        """Mutants with a verdict."""
        return self.killed + sum(self.counts[status] for status in LIVES)


def swept_files() -> Iterator[Swept]:
    """Files of which a mutant was tried; call it where mutmut runs."""
    for path in sorted(walk_mutatable_files()):
        data = SourceFileMutationData(path=path)
        data.load()
        states = {name: status_by_exit_code[code] for name, code in data.exit_code_by_key.items()}
        lives = {name: state for name, state in states.items() if state in LIVES}
        module = cst.parse_module((Path("mutants") / path).read_text()) if lives else None
        file = "/".join(path.parts[1:])
        survivors = tuple(
            _survivor(module, name, file, state == "survived")
            for name, state in lives.items()
            if module is not None
        )
        found = Swept(file, Counter(states.values()), survivors)
        if found.tried:
            yield found


def _survivor(module: cst.Module, name: str, file: str, reached: bool) -> Survivor:
    versions = (read_original_function(module, name), read_mutant_function(module, name))
    before, after = (cst.Module([version]).code.splitlines() for version in versions)
    changed = [line for line in ndiff(before, after) if line[:2] in ("- ", "+ ")]
    old, new = (
        " ".join(line[2:].strip() for line in changed if line[0] == sign) for sign in ("-", "+")
    )
    function, owner = orig_function_and_class_names_from_key(name)
    where = f"{owner}.{function}" if owner else function
    return Survivor(name, file, where, old, new, reached)
