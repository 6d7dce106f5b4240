"""Training samples for the trained model: facts in prose, asked again at the end."""

from __future__ import annotations

import random
from dataclasses import dataclass, replace

import torch

from sgl_sparsekv.models import prose, words
from sgl_sparsekv.models.tokenizer import SPECIALS

FACT_LEN = len(words.FACT_COLUMNS)


@dataclass(frozen=True)
class Batch:
    """`ids`, `positions` `[bs, n]`; the last `tail` places ask; `targets`, `sources` `[bs, tail]`.

    `targets` is -100 where no answer is due; `sources` is the place whose page holds the answer,
    -1 where there is none.
    """

    ids: torch.Tensor
    positions: torch.Tensor
    targets: torch.Tensor
    sources: torch.Tensor
    tail: int


@dataclass(frozen=True)
class Stage:
    """One rung of the ladder: length, batch, learning rate, and when it may be left."""

    length: int
    batch: int
    lr: float
    goal: float
    min_steps: int
    max_steps: int
    max_facts: int = 12
    max_unasked: int = 12
    page_weight: float = 0.0


def vocabulary() -> list[str]:
    """The 1,024 words: specials and filler in the lower half, fact words in the upper."""
    return [*SPECIALS, *words.filler_words(), *words.fact_words()]


class Sampler:
    """Draws batches; every number in them comes from `seed`."""

    def __init__(self, seed: int, max_position: int) -> None:
        self.rng = random.Random(seed)
        self.max_position = max_position
        vocab = vocabulary()
        index = {word: i for i, word in enumerate(vocab)}
        text = prose.stream(self.rng, 200_000)
        self.filler = [index[word] for word in text]
        self.first_fact = len(vocab) - len(words.fact_words())
        self.stop, self.eos = index["."], index[words.EOS]
        self.ask = [index["question"], index[":"]]

    def _facts(self, count: int) -> list[list[int]]:
        """`count` facts that share no word; half the time their words keep to no column."""
        width = len(words.FACT_COLUMNS[0])
        if self.rng.random() < 0.5:
            pool = self.rng.sample(range(width * FACT_LEN), width * FACT_LEN)
            rows = [pool[i * FACT_LEN : (i + 1) * FACT_LEN] for i in range(count)]
        else:
            columns = [self.rng.sample(range(width), count) for _ in range(FACT_LEN)]
            rows = [[c * width + columns[c][i] for c in range(FACT_LEN)] for i in range(count)]
        return [[self.first_fact + word for word in row] for row in rows]

    def _positions(self, ids: list[int]) -> list[int]:
        """Increasing positions with up to four random jumps, so far positions are trained too.

        No jump falls between a fact's word and what follows it: that would unlearn "one back".
        """
        after_filler = [i for i in range(1, len(ids)) if ids[i - 1] < self.first_fact]
        jumps = sorted(self.rng.sample(after_filler, min(4, len(after_filler))))
        top = int((self.max_position - len(ids)) * self.rng.random() ** 2)
        sizes = sorted(self.rng.randint(0, top) for _ in jumps)
        out, offset, j = [], 0, 0
        for i in range(len(ids)):
            while j < len(jumps) and i >= jumps[j]:
                offset, j = sizes[j], j + 1
            out.append(i + offset)
        return out

    def _sample(self, stage: Stage, asked: int) -> tuple[list[int], list[int], list[int]]:
        """Ids, targets and sources of one sample, targets and sources for the whole length."""
        facts = self._facts(asked + self.rng.randint(0, stage.max_unasked))
        tail = asked * (FACT_LEN + 4)
        body = stage.length - tail - 1
        room = body - len(facts) * (FACT_LEN + 1)
        start = self.rng.randrange(len(self.filler) - body)
        cuts = sorted(self.rng.randint(0, room) for _ in facts)
        ids, place, used = [0], {}, 0
        order = self.rng.sample(range(len(facts)), len(facts))
        for fact, cut in zip(order, cuts, strict=True):
            ids += self.filler[start + used : start + cut]
            used = cut
            place[fact] = len(ids)
            ids += [*facts[fact], self.stop]
        ids += self.filler[start + used : start + room]
        targets, sources = [-100] * len(ids), [-1] * len(ids)
        for fact in self.rng.sample(range(asked), asked):
            ids += [*self.ask, *facts[fact], self.stop, self.eos]
            answers = [*facts[fact][1:], self.stop]
            targets += [-100, -100, *answers, self.eos, -100]
            sources += [-1, -1, *(place[fact] + 1 + i for i in range(FACT_LEN)), -1, -1]
        return ids, targets, sources

    def batch(self, stage: Stage) -> Batch:
        """One batch of `stage`; all its samples ask the same number of facts."""
        most = max(1, min(stage.max_facts, stage.length // 32))
        asked = self.rng.randint(1, most)
        room = (stage.length - asked * (FACT_LEN + 4) - 16) // (FACT_LEN + 1) - asked
        unasked = max(0, min(stage.max_unasked, room, 64 - asked))
        stage = replace(stage, max_unasked=unasked)
        rows = [self._sample(stage, asked) for _ in range(stage.batch)]
        tail = asked * (FACT_LEN + 4)
        return Batch(
            torch.tensor([row[0] for row in rows]),
            torch.tensor([self._positions(row[0]) for row in rows]),
            torch.tensor([row[1][-tail:] for row in rows]),
            torch.tensor([row[2][-tail:] for row in rows]),
            tail,
        )
