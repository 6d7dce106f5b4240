"""The eight needle tasks: magic values hidden in noise, in essays, or among other needles."""

import random
from dataclasses import dataclass

from .haystack import Essays
from .sample import Draw, Sample, cut, fill
from .wording import Wording
from .words import Distinct

DEPTHS = tuple(round(100 * i / 39) for i in range(40))
"""Where a needle may stand in essays: per cent of the sentences before it."""


@dataclass(frozen=True)
class Hidden:
    """What one task hides and where.

    Attributes:
        haystack: noise, essay or needle.
        keys: kind of the keys: words or uuids.
        values: kind of the values: numbers or uuids.
        num_keys: keys with a needle of their own.
        per_key: needles, with different values, of each key.
        asked: keys that the question names.
    """

    haystack: str
    keys: str = "words"
    values: str = "numbers"
    num_keys: int = 1
    per_key: int = 1
    asked: int = 1


TASKS = {
    "niah_single_1": Hidden("noise"),
    "niah_single_2": Hidden("essay"),
    "niah_single_3": Hidden("essay", values="uuids"),
    "niah_multikey_1": Hidden("essay", num_keys=4),
    "niah_multikey_2": Hidden("needle"),
    "niah_multikey_3": Hidden("needle", keys="uuids", values="uuids"),
    "niah_multivalue": Hidden("essay", per_key=4),
    "niah_multiquery": Hidden("essay", num_keys=4, asked=4),
}


class NeedleMaker:
    """Needles in a haystack."""

    new_tokens = 128
    metric = "string_match_all"

    def __init__(self, hidden: Hidden, words: Wording, essays: Essays) -> None:
        self._hidden = hidden
        self._words = words
        self._essays = essays
        # Units are words of the essays, or lines.
        self.scale = 512 if hidden.haystack == "essay" else 32

    def least(self, draw: Draw) -> int:
        """See `Maker`: a haystack where each needle can have a place of its own."""
        needles = self._hidden.num_keys * self._hidden.per_key
        return 64 * needles if self._hidden.haystack == "essay" else needles

    def make(self, draw: Draw, units: int) -> Sample:
        """See `Maker`."""
        hidden, rng = self._hidden, draw.rng("needles")
        keys, values = Distinct(hidden.keys, rng), Distinct(hidden.values, rng)
        pairs = [
            (keys(), [values() for _ in range(hidden.per_key)]) for _ in range(hidden.num_keys)
        ]
        needles = [self._needle(key, value) for key, found in pairs for value in found]
        asked = rng.sample(pairs, hidden.asked)
        rng.shuffle(needles)
        if hidden.haystack == "essay":
            context = self._in_essays(needles, units, draw.rng("places"))
        else:
            context = self._in_lines(needles, units, keys, draw)
        return self._sample(context, asked)

    def _needle(self, key: str, value: str) -> str:
        kind = self._hidden.values
        return fill(self._words.needle, type_needle_v=kind, key=key, value=value)

    def _in_essays(self, needles: list[str], units: int, rng: random.Random) -> str:
        sentences = self._essays.sentences(units)
        ends = sorted(len(sentences) * depth // 100 for depth in rng.sample(DEPTHS, len(needles)))
        pieces, begin = [], 0
        for end, needle in zip(ends, needles, strict=True):
            pieces += [*sentences[begin:end], needle]
            begin = end
        return " ".join(pieces + sentences[begin:])

    def _in_lines(self, needles: list[str], units: int, keys: Distinct, draw: Draw) -> str:
        lines = [self._words.noise] * units
        if self._hidden.haystack == "needle":
            others = Distinct(self._hidden.values, draw.rng("values"))
            lines = [self._needle(keys(), others()) for _ in range(units)]
        places = sorted(draw.rng("places").sample(range(units), len(needles)), reverse=True)
        for place, needle in zip(places, needles, strict=True):
            lines.insert(place, needle)
        return "\n".join(lines)

    def _sample(self, context: str, asked: list[tuple[str, list[str]]]) -> Sample:
        """The prompt; where one value is asked for, its words are in the singular."""
        prompt, start = self._words.niah
        kind = self._hidden.values
        if single := self._hidden.asked * self._hidden.per_key == 1:
            prompt, start, kind = _singular(prompt), _singular(start), kind[:-1]
        names = [key for key, _ in asked]
        query = ", ".join(names[:-1]) + ", and " + names[-1] if names[1:] else names[0]
        head, tail = cut(prompt, type_needle_v=kind, query=query)
        document = head + context
        references = tuple(value for _, values in asked for value in values)
        place = document.index(self._needle(names[0], references[0])) / len(document)
        return Sample(
            document=document,
            question=tail,
            start=fill(start, type_needle_v=kind, query=query),
            references=references,
            place=place if single else None,
        )


def _singular(template: str) -> str:
    return template.replace("Some", "A").replace("are all", "is").replace("are", "is")
