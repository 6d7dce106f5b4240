"""Common and frequent words: a list or a coded text in which some stand more often than others."""

import math
import random

from .sample import Draw, Sample, cut
from .wording import Wording
from .words import Distinct, codes, single_words

COMMON = 10
"""Words of `cwe` that are asked for."""
SHORT = 4096
"""Below so many tokens, words of `cwe` are repeated less."""
ZETA = math.pi**2 / 6
"""Riemann's zeta of 2, the exponent of `fwe`."""
CODE_LETTERS = 6
TOP = 3
"""Words of `fwe` that are asked for, after the dots."""


class CommonWordsMaker:
    """A numbered list of shuffled words, of which ten stand more often; a small one is solved."""

    new_tokens = 120
    metric = "string_match_all"
    scale = 64

    def __init__(self, words: Wording) -> None:
        self._prompt, self._start = words.cwe

    def least(self, draw: Draw) -> int:
        """See `Maker`: one word that is not common."""
        return COMMON + 1

    def make(self, draw: Draw, units: int) -> Sample:
        """See `Maker`."""
        small, often, rare = (20, 3, 1) if draw.length < SHORT else (40, 10, 3)
        shown, common = _numbered(small, often, rare, draw.rng("example"))
        often, rare = (6, 1) if draw.length < SHORT else (30, 3)
        context, asked = _numbered(units, often, rare, draw.rng("list"))
        head, tail = cut(self._prompt)
        solved = " ".join((head + shown + tail + self._start, _list(common)))
        return Sample(f"{solved}\n{head}{context}", tail, self._start, tuple(asked))


def _numbered(count: int, often: int, rare: int, rng: random.Random) -> tuple[str, list[str]]:
    """A shuffled list with so many different words, and the common ones among them."""
    words = list(single_words())
    if count > len(words):
        pair = Distinct("words", rng)
        words = [pair() for _ in range(count)]
    else:
        rng.shuffle(words)
    common, others = words[:COMMON], words[COMMON:count]
    entries = common * often + others * rare
    rng.shuffle(entries)
    return _list(entries), common


def _list(words: list[str]) -> str:
    return " ".join(f"{i}. {word}" for i, word in enumerate(words, 1))


class FrequentWordsMaker:
    """Coded words whose counts fall with the square of their rank; the first rank is dots."""

    new_tokens = 50
    metric = "string_match_all"
    scale = 256

    def __init__(self, words: Wording) -> None:
        self._prompt, self._start = words.fwe

    def least(self, draw: Draw) -> int:
        """See `Maker`: the words asked for stand more often than any other.

        Raises:
            ValueError: the vocabulary of so short a text has no other word.
        """
        if self._vocabulary(draw) <= TOP + 1:
            raise ValueError(f"length must be at least {50 * (TOP + 2) + 50}, got {draw.length}")
        last, following = TOP + 1, TOP + 2
        return math.ceil(ZETA / (last**-2 - following**-2))

    def make(self, draw: Draw, units: int) -> Sample:
        """See `Maker`."""
        vocabulary = codes(self._vocabulary(draw), CODE_LETTERS, draw.rng("codes"))
        vocabulary[0] = "..."
        text = [word for i, word in enumerate(vocabulary, 1) for _ in range(_count(units, i))]
        draw.rng("order").shuffle(text)
        head, tail = cut(self._prompt)
        return Sample(head + " ".join(text), tail, self._start, tuple(vocabulary[1 : TOP + 1]))

    def _vocabulary(self, draw: Draw) -> int:
        """Different words: one for 50 tokens of the prompt."""
        return (draw.length - self.new_tokens) // 50


def _count(units: int, rank: int) -> int:
    """How often the word of a rank stands in a text of `units` words (RULER, section 3)."""
    return int(units * rank**-2.0 / ZETA)
