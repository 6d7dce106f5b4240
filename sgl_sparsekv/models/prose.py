"""Plain English filler: short sentences from templates, no two documents alike, no fact in them."""

from __future__ import annotations

import random
from collections.abc import Iterator

from sgl_sparsekv.models import words

_SUBJECTS = ("{d} {a} {n}", "{d} {n}", "{p}", "{d} {n} {l} {d} {n}")
_PREDICATES = (
    "{v} {d} {a} {n}",
    "{v} {d} {n} {b}",
    "{b} {v} {d} {n} {l} {d} {n}",
    "{v} {d} {n} {l} {d} {a} {n}",
)
_COLUMNS = {
    "d": words.DETERMINERS,
    "a": words.PLAIN_ADJECTIVES,
    "n": words.PLAIN_NOUNS,
    "v": words.PLAIN_VERBS,
    "b": words.PLAIN_ADVERBS,
    "l": words.LINKS,
    "p": words.PRONOUNS,
}


def _clause(rng: random.Random) -> list[str]:
    pattern = f"{rng.choice(_SUBJECTS)} {rng.choice(_PREDICATES)}"
    return [rng.choice(_COLUMNS[slot[1]]) for slot in pattern.split()]


def sentences(rng: random.Random) -> Iterator[list[str]]:
    """Endless sentences, each a list of words that ends with a full stop."""
    while True:
        sentence = [rng.choice(words.OPENERS), ","] if rng.random() < 0.25 else []
        sentence += _clause(rng)
        if rng.random() < 0.3:
            sentence += [rng.choice(words.CONNECTORS), *_clause(rng)]
        yield [*sentence, "."]


def stream(rng: random.Random, count: int) -> list[str]:
    """The first `count` words of endless prose."""
    out: list[str] = []
    for sentence in sentences(rng):
        out += sentence
        if len(out) >= count:
            break
    return out[:count]
