"""Word lists and the random keys, values and names that are hidden in documents."""

import random
import string
import uuid
from functools import cache
from importlib.util import find_spec
from pathlib import Path

ROOM = 1000
"""Draws after which a set of distinct texts is given up."""


@cache
def parts_of_speech() -> dict[str, tuple[str, ...]]:
    """Nouns, adjectives and verbs of the `wonderwords` package, read as data and sorted.

    Raises:
        ValueError: it is not installed.
    """
    spec = find_spec("wonderwords")
    if spec is None or spec.origin is None:
        raise ValueError("ruler needs wonderwords: pip install 'sgl-sparsekv[eval]'")
    folder = Path(spec.origin).parent / "assets"
    kinds = ("noun", "adjective", "verb")
    lists = {kind: (folder / f"{kind}list.txt").read_text(encoding="utf-8") for kind in kinds}
    return {kind: tuple(sorted(set(text.splitlines()))) for kind, text in lists.items()}


@cache
def single_words() -> tuple[str, ...]:
    """Every listed word once, in order of the alphabet."""
    return tuple(sorted({word for words in parts_of_speech().values() for word in words}))


class Distinct:
    """Random texts of one kind, none given twice: a repeated key would have two answers."""

    def __init__(self, kind: str, rng: random.Random) -> None:
        """`kind` is words (an adjective and a noun), numbers (seven digits) or uuids."""
        self._kind = kind
        self._rng = rng
        self._given: set[str] = set()

    def __call__(self) -> str:
        """The next one."""
        for _ in range(ROOM):
            if (text := self._draw()) not in self._given:
                self._given.add(text)
                return text
        raise AssertionError(f"no {self._kind} left")

    def _draw(self) -> str:
        if self._kind == "words":
            lists = parts_of_speech()
            return f"{self._rng.choice(lists['adjective'])}-{self._rng.choice(lists['noun'])}"
        if self._kind == "numbers":
            return str(self._rng.randint(1_000_000, 9_999_999))
        return str(uuid.UUID(int=self._rng.getrandbits(128), version=4))


def codes(count: int, letters: int, rng: random.Random, upper: bool = False) -> list[str]:
    """Distinct random words of so many letters, none of them `VAR`."""
    alphabet = string.ascii_uppercase if upper else string.ascii_lowercase
    found: dict[str, None] = {}
    while len(found) < count:
        code = "".join(rng.choices(alphabet, k=letters))
        if code != "VAR":
            found[code] = None
    return list(found)
