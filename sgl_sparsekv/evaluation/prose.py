"""Generated prose with secret numbers in it, for any model that reads English."""

import random
from collections.abc import Callable, Iterator

from .needles import Haystack, Needle

DIGITS = 10
"""Of a number: several tokens in any tokenizer, as the first of an answer is dense."""
FACT = "The secret number of {place} is {number}."
QUESTION = "\n\nWhat is the secret number of {place}?\nThe secret number of {place} is"
SPARE = 16
"""Tokens for what follows a right answer, or comes before it."""


class ProseBuilder:
    """Prose from templates; every depth has a needle about another place.

    The needles of the other depths distract from the one that is asked for.
    """

    def __init__(self, ids: Callable[[str], list[int]]) -> None:
        """Measure with `ids`: text to token ids, special tokens included."""
        self._ids = ids
        self._sizes: dict[str, int] = {}

    def __call__(self, length: int, depths: int, seed: int) -> Haystack:
        """See `Builder`."""
        from ..models import words

        rng = random.Random(f"prose {length} {seed}")
        places = rng.sample(words.place_names(256), depths)
        numbers = [str(rng.randrange(10 ** (DIGITS - 1), 10**DIGITS)) for _ in places]
        facts = [FACT.format(place=p, number=n) for p, n in zip(places, numbers, strict=True)]
        asked = [QUESTION.format(place=place) for place in places]
        answer = max(len(self._ids(f" {number}")) for number in numbers) + SPARE
        body = length - answer - max(len(self._ids(question)) for question in asked)
        if body < 3 * sum(map(self._size, facts)):
            raise ValueError(f"length must leave room for {depths} needles in prose, got {length}")
        pieces = self._weave(facts, body, rng)
        while len(self._ids(" ".join(pieces))) > body:
            pieces.pop(max(i for i, piece in enumerate(pieces) if piece not in facts))
        text = " ".join(pieces)
        needles = tuple(
            Needle(i, text.index(fact) / len(text), question, number, answer, False)
            for i, (fact, question, number) in enumerate(zip(facts, asked, numbers, strict=True))
        )
        return Haystack(text, needles)

    def _weave(self, facts: list[str], body: int, rng: random.Random) -> list[str]:
        """Sentences and facts of about `body` tokens, each fact at its depth."""
        pieces: list[str] = []
        filler, size = _sentences(rng), 0
        for i, fact in enumerate(facts):
            while size < (i + 0.5) / len(facts) * body:
                pieces.append(next(filler))
                size += self._size(pieces[-1])
            pieces.append(fact)
            size += self._size(fact)
        while size < body:
            pieces.append(next(filler))
            size += self._size(pieces[-1])
        return pieces

    def _size(self, sentence: str) -> int:
        """Tokens of a sentence within a text."""
        if sentence not in self._sizes:
            both, one = self._ids(f". {sentence}"), self._ids(".")
            self._sizes[sentence] = max(1, len(both) - len(one))
        return self._sizes[sentence]


def _sentences(rng: random.Random) -> Iterator[str]:
    from ..models import prose

    for sentence in prose.sentences(rng):
        text = " ".join(sentence).replace(" ,", ",").replace(" .", ".")
        yield text[:1].upper() + text[1:]
