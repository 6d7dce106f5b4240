"""Generated prose with secret numbers in it, for any model that reads English."""

import random
from collections.abc import Callable, Iterator

from .haystack import Haystack, Needle, spans_of

DIGITS = 10
"""Of a number: several tokens in any tokenizer, as the first of an answer is dense."""
FACT = "The secret number of {place} is {number}."
ONE = "\n\nWhat is the secret number of {places}?\nThe secret number of {places} is"
SEVERAL = "\n\nWhat are the secret numbers of {places}?\nThe secret numbers of {places} are"
SPARE = 16
"""Tokens for what follows a right answer, or comes before it."""


class ProseBuilder:
    """Prose from templates; every depth has needles about other places.

    The needles of the other depths distract from those that are asked for.
    """

    def __init__(self, ids: Callable[[str], list[int]]) -> None:
        """Measure with `ids`: text to token ids, special tokens included."""
        self._ids = ids
        self._sizes: dict[str, int] = {}

    def __call__(self, length: int, depths: int, needles: int, seed: int) -> Haystack:
        """See `Builder`."""
        from ....models import words

        rng = random.Random(f"prose {length} {seed}")
        known = words.place_names(256)
        if depths * needles > len(known):
            raise ValueError(f"depths must be at most {len(known) // needles}, got {depths}")
        places = rng.sample(known, depths * needles)
        numbers = [str(rng.randrange(10 ** (DIGITS - 1), 10**DIGITS)) for _ in places]
        facts = [FACT.format(place=p, number=n) for p, n in zip(places, numbers, strict=True)]
        # The needles of row i start at its depth and go on, evenly spread, round the document.
        groups = [range(i, depths * needles, depths) for i in range(depths)]
        asked = [_question([places[k] for k in group]) for group in groups]
        answer = max(len(self._ids(f" {number}")) for number in numbers) * needles + SPARE * needles
        body = length - answer - max(len(self._ids(question)) for question in asked)
        if body < 3 * sum(map(self._size, facts)):
            raise ValueError(
                f"length must leave room for {len(facts)} needles in prose, got {length}"
            )
        wanted = [
            ((k % depths + 0.5) / depths + k // depths / needles) % 1 for k in range(len(facts))
        ]
        text = self._document(facts, wanted, body, rng)
        return Haystack(
            text,
            tuple(
                Needle(
                    text.index(facts[group[0]]) / len(text),
                    question,
                    tuple(numbers[k] for k in group),
                    answer,
                    False,
                    spans_of(text, [facts[k] for k in group]),
                )
                for group, question in zip(groups, asked, strict=True)
            ),
        )

    def _document(
        self, facts: list[str], wanted: list[float], body: int, rng: random.Random
    ) -> str:
        """At most `body` tokens of sentences and facts; fact k behind a share `wanted[k]`."""
        pieces: list[str] = []
        filler, size = _sentences(rng), 0
        for place, fact in sorted(zip(wanted, facts, strict=True)):
            while size < place * body:
                pieces.append(next(filler))
                size += self._size(pieces[-1])
            pieces.append(fact)
            size += self._size(fact)
        while size < body:
            pieces.append(next(filler))
            size += self._size(pieces[-1])
        kept = set(facts)
        while len(self._ids(" ".join(pieces))) > body:
            pieces.pop(max(i for i, piece in enumerate(pieces) if piece not in kept))
        return " ".join(pieces)

    def _size(self, sentence: str) -> int:
        """Tokens of a sentence within a text."""
        if sentence not in self._sizes:
            both, one = self._ids(f". {sentence}"), self._ids(".")
            self._sizes[sentence] = max(1, len(both) - len(one))
        return self._sizes[sentence]


def _question(places: list[str]) -> str:
    if len(places) == 1:
        return ONE.format(places=places[0])
    return SEVERAL.format(places=f"{', '.join(places[:-1])} and {places[-1]}")


def _sentences(rng: random.Random) -> Iterator[str]:
    from ....models import prose

    for sentence in prose.sentences(rng):
        text = " ".join(sentence).replace(" ,", ",").replace(" .", ".")
        yield text[:1].upper() + text[1:]
