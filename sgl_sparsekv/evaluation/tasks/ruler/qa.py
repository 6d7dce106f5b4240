"""Questions about passages, hidden among passages of other questions."""

from .passages import Passages
from .sample import Draw, Sample, cut, fill
from .wording import Wording


class PassagesMaker:
    """The n-th question of a set, in every seed; the seed decides what surrounds its passages."""

    new_tokens = 32
    metric = "string_match_part"
    scale = 8

    def __init__(self, words: Wording, passages: Passages) -> None:
        self._words = words
        self._passages = passages

    def least(self, draw: Draw) -> int:
        """See `Maker`: the passages that belong to the question.

        Raises:
            ValueError: the set has fewer questions than samples are asked for.
        """
        if draw.sample >= (count := len(self._passages.questions)):
            raise ValueError(f"samples must be at most {count} for {draw.task}, got more")
        return len(self._passages.questions[draw.sample].gold)

    def make(self, draw: Draw, units: int) -> Sample:
        """See `Maker`: passages of the same article come before those of others."""
        asked = self._passages.questions[draw.sample]
        rng = draw.rng("passages")
        more = [i for i in asked.more if i not in asked.gold]
        near = {*asked.gold, *more}
        others = [i for i in range(len(self._passages.texts)) if i not in near]
        rng.shuffle(more)
        rng.shuffle(others)
        order = [*asked.gold, *more, *others]
        chosen = (order * -(-units // len(order)))[:units]
        draw.rng("order").shuffle(chosen)
        texts = [self._passages.texts[i] for i in chosen]
        numbered = (
            fill(self._words.document, i=str(i), document=text) for i, text in enumerate(texts, 1)
        )
        prompt, start = self._words.qa
        head, tail = cut(prompt, query=asked.text)
        document = head + "\n\n".join(numbered)
        place = None
        if len(asked.gold) == 1:
            place = document.index(self._passages.texts[asked.gold[0]]) / len(document)
        return Sample(document, tail, start, asked.answers, place)
