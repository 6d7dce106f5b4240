"""Small sets in the place of SQuAD and HotpotQA: written from templates, with one answer each."""

import random
from collections.abc import Iterator
from functools import cache

from .haystack import prose_sentences
from .passages import Asked, Passages

ARTICLES = 256
"""One for a place, in the first set; each has as many passages as there are trades."""
PAIRS = 512
"""Questions of the second set."""
BESIDE = 8
"""Passages that a question of the second set brings along beside its two own ones."""
TRADES = ("baker", "miller", "teacher", "judge", "doctor", "ferry master")


@cache
def single_passages() -> Passages:
    """Questions whose answer stands in one passage; an article tells of one place."""
    from ....models import words

    rng = random.Random("single passages")
    filler = prose_sentences(rng)
    texts, questions = [], []
    for i, place in enumerate(words.place_names(ARTICLES)):
        article = tuple(range(i * len(TRADES), (i + 1) * len(TRADES)))
        for number, trade in zip(article, TRADES, strict=True):
            name = f"{rng.choice(words.FIRST_NAMES)} {rng.choice(words.LAST_NAMES)}"
            fact = f"The {trade} of {place} is called {name}."
            texts.append(_passage(fact, 6, filler, rng))
            more = tuple(other for other in article if other != number)
            question = f"What is the {trade} of {place} called?"
            questions.append(Asked(question, (name,), (number,), more))
    rng.shuffle(questions)
    return Passages("generated passages, not SQuAD", tuple(texts), tuple(questions))


@cache
def linked_passages() -> Passages:
    """Questions that take two passages: who built something, and where that person lives."""
    from ....models import words

    rng = random.Random("linked passages")
    filler = prose_sentences(rng)
    people = [f"{first} {last}" for first in words.FIRST_NAMES for last in words.LAST_NAMES]
    texts, questions = [], []
    for place, person in zip(words.place_names(PAIRS), rng.sample(people, PAIRS), strict=True):
        home = rng.choice(words.FACT_PLACES)
        built = f"The old bridge of {place} was built by {person}."
        texts += [
            f"{place}\n{_passage(built, 9, filler, rng)}",
            f"{person}\n{_passage(f'{person} lives in {home}.', 9, filler, rng)}",
        ]
        first = len(texts) - 2
        text = f"Where does the builder of the old bridge of {place} live?"
        questions.append(Asked(text, (home,), (first, first + 1)))
    asked = []
    for question in questions:
        others = rng.sample([i for i in range(len(texts)) if i not in question.gold], BESIDE)
        asked.append(Asked(question.text, question.answers, (*question.gold, *others)))
    return Passages("generated pairs of passages, not HotpotQA", tuple(texts), tuple(asked))


def _passage(fact: str, sentences: int, filler: Iterator[str], rng: random.Random) -> str:
    """A fact among so many sentences of prose."""
    lines = [next(filler) for _ in range(sentences)]
    lines.insert(rng.randint(0, sentences), fact)
    return " ".join(lines)
