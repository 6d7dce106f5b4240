"""Variable tracking: one chain of assignments hidden in noise, after a small solved example."""

import random
from collections.abc import Callable
from functools import lru_cache

from .fitting import largest
from .sample import Draw, Sample, cut, fill
from .wording import Wording
from .words import codes

HOPS = 4
EXAMPLE_TOKENS = 500
"""Of the solved example without its answer, unless the smallest one has more."""


class TrackingMaker:
    """Five variables, each assigned from the one before, have one value."""

    new_tokens = 30
    metric = "string_match_all"
    scale = 32

    def __init__(self, words: Wording, count: Callable[[str], int]) -> None:
        """`count` gives the tokens of a text; the example fills `EXAMPLE_TOKENS`."""
        self._words = words
        self._count = count
        self._example_of = lru_cache(maxsize=1)(self._example)

    def least(self, draw: Draw) -> int:
        """See `Maker`: every assignment has a sentence to stand before."""
        return HOPS + 1

    def make(self, draw: Draw, units: int) -> Sample:
        """See `Maker`."""
        names = codes(HOPS + 1, 5, draw.rng("names"), upper=True)
        main = self._problem(names, self._values(draw)[0], units, draw.rng("places"))
        document = self._example_of(draw) + main.document
        return Sample(document, main.question, main.start, main.references)

    def _values(self, draw: Draw) -> list[str]:
        """Two numbers of five digits: of the question and of the example."""
        return [str(value) for value in draw.rng("values").sample(range(10_000, 99_999), 2)]

    def _example(self, draw: Draw) -> str:
        names = codes(HOPS + 1, 3, draw.rng("example names"), upper=True)

        def text(units: int) -> str:
            rng = draw.rng("example places")
            solved = self._problem(names, self._values(draw)[1], units, rng)
            return solved.document + solved.question + solved.start

        least = HOPS + 1
        units = largest(lambda n: self._count(text(n)), EXAMPLE_TOKENS, least, 2) or least
        return f"{text(units)} {' '.join(names)}\n\n"

    def _problem(self, names: list[str], value: str, units: int, rng: random.Random) -> Sample:
        """Assignments in order, each before another sentence of noise, and the question."""
        lines = [self._words.noise] * units
        sources = [value, *(f"VAR {name} " for name in names)]
        places = sorted(rng.sample(range(units), len(names)))
        for i, (place, name) in enumerate(zip(places, names, strict=True)):
            lines.insert(place + i, f"VAR {name} = {sources[i]}")
        prompt, start = self._words.vt
        head, tail = cut(prompt, query=value)
        return Sample(
            document=head + "\n".join(lines),
            question=tail,
            start=fill(start, num_v=str(len(names)), query=value),
            references=tuple(names),
        )
