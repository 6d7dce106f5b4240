"""Documents to ask the Llama models about; the same seed gives the same document."""

from __future__ import annotations

import random
from dataclasses import dataclass

from sgl_sparsekv.models import prose, words

NUM_SINK = 16
NUM_WINDOW = 64
CHAIN_PROMPT = ("question", ":", "route", "start", "at")
FACT_PROMPT = ("question", ":")


@dataclass(frozen=True)
class Question:
    """One question over a document.

    `suffix` follows the document's text after a space; greedy decoding must then give `answer`.
    `positions[i]` is the place in the document whose page the i-th answer token needs, and `depth`
    is where the first of them lies, 0 at the start and 1 at the end.
    """

    suffix: str
    answer: str
    answer_tokens: tuple[str, ...]
    depth: float
    positions: tuple[int, ...]


@dataclass(frozen=True)
class Document:
    """A text of `num_tokens` tokens, the leading `<s>` counted, and questions about it."""

    text: str
    num_tokens: int
    questions: tuple[Question, ...]

    def prompt(self, question: Question) -> str:
        """The document and then the question; questions share the document as a prefix."""
        return f"{self.text} {question.suffix}"

    def pages(self, question: Question, page_size: int = 16) -> tuple[int, ...]:
        """The logical page that holds what each answer token needs."""
        return tuple(position // page_size for position in question.positions)


@dataclass(frozen=True)
class _Insert:
    """`words` that must lie wholly from place `first` to before place `last`."""

    first: int
    last: int
    words: tuple[str, ...]


def chain_document(
    num_tokens: int,
    num_questions: int = 16,
    num_hops: int = 16,
    seed: int = 0,
    page_size: int = 16,
    distractors: float = 0.25,
    num_places: int = 1024,
) -> Document:
    """Sign posts ("Ashbank: Oakford") scattered in prose; the analytic model walks them.

    All asked sign posts form one ring, each on a page of its own, clear of the first `NUM_SINK` and
    the last `NUM_WINDOW` tokens; each question starts at another place of the ring. A share of
    about `distractors` of the sign posts forms a second ring that nobody asks about.

    Raises:
        ValueError: if the document has too few pages for `num_hops` different ones, or an argument
            is out of range.
    """
    _check_counts(num_questions, num_hops)
    if not 0.0 <= distractors < 1.0:
        raise ValueError(f"distractors must be from 0 to below 1, got {distractors}")
    if page_size < 4:
        raise ValueError(f"page_size must be at least 4, got {page_size}")
    rng = random.Random(f"chain {num_tokens} {seed}")
    places = words.place_names(num_places)
    first_page = -(-NUM_SINK // page_size)
    pages = list(range(first_page, (num_tokens - NUM_WINDOW) // page_size))
    rng.shuffle(pages)
    total = min(len(pages), len(places))
    ring_size = total - min(int(total * distractors), max(0, total - num_hops))
    if ring_size < max(num_hops, 2):
        raise ValueError(
            f"num_tokens must leave {num_hops} pages of {page_size} free for the sign posts, "
            f"got {num_tokens}"
        )
    rng.shuffle(places)
    links = _ring(places[:ring_size]) + _ring(places[ring_size:total])
    inserts = [
        _Insert(page * page_size, (page + 1) * page_size, (f"{a}:", b, "."))
        for page, (a, b) in zip(pages, links, strict=False)
    ]
    tokens, where = _weave(inserts, num_tokens, rng)
    starts = rng.sample(range(ring_size), min(num_questions, ring_size))
    questions = []
    for k in range(num_questions):
        hops = [(starts[k % len(starts)] + i) % ring_size for i in range(num_hops)]
        # The model reads the place name from its own slot, one after the key.
        spots = tuple(where[hop] + 1 for hop in hops)
        answer = tuple(links[hop][1] for hop in hops)
        prompt = (*CHAIN_PROMPT, links[hops[0]][0])
        questions.append(_question(prompt, answer, spots, num_tokens))
    return Document(" ".join(tokens[1:]), num_tokens, tuple(questions))


def needle_document(
    num_tokens: int, num_questions: int = 16, num_unasked: int | None = None, seed: int = 0
) -> Document:
    """Facts ("Ada Marlow quietly polishes ...") in prose; the trained model finishes them.

    The questions' facts lie one in each of `num_questions` equal stretches of the document, so the
    depths are even; `num_unasked` more (three times as many by default) lie anywhere. No two facts
    share a word, so every question has one answer.

    Raises:
        ValueError: if there are more facts than words for them, or too few tokens to hold them.
    """
    _check_counts(num_questions, 1)
    unasked = 3 * num_questions if num_unasked is None else num_unasked
    limit = len(words.FIRST_NAMES)
    if not 0 <= unasked <= limit - num_questions:
        raise ValueError(f"num_unasked must be from 0 to {limit} - num_questions, got {unasked}")
    rng = random.Random(f"needle {num_tokens} {seed}")
    count = num_questions + unasked
    columns = [rng.sample(column, count) for column in words.FACT_COLUMNS]
    facts = [tuple(column[i] for column in columns) for i in range(count)]
    body = num_tokens - NUM_SINK - NUM_WINDOW
    cell = body // count
    if cell < 12:
        raise ValueError(
            f"num_tokens must be at least {NUM_SINK + NUM_WINDOW + 12 * count} for {count} facts, "
            f"got {num_tokens}"
        )
    cells = list(range(count))
    stretch = count / num_questions
    asked = [int((i + rng.random()) * stretch) for i in range(num_questions)]
    rng.shuffle(asked)
    others = [c for c in cells if c not in set(asked)]
    rng.shuffle(others)
    inserts = []
    for c, fact in zip(asked + others, facts, strict=True):
        low = NUM_SINK + c * cell
        shift = rng.randint(0, max(0, cell - 40))
        inserts.append(_Insert(low + shift, low + cell, (*fact, ".")))
    tokens, where = _weave(inserts, num_tokens, rng)
    questions = []
    for fact, spot in zip(facts[:num_questions], where, strict=False):
        spots = tuple(range(spot + 1, spot + len(fact)))
        questions.append(_question((*FACT_PROMPT, fact[0]), fact[1:], spots, num_tokens))
    return Document(" ".join(tokens[1:]), num_tokens, tuple(questions))


def _check_counts(num_questions: int, num_hops: int) -> None:
    if num_questions < 1:
        raise ValueError(f"num_questions must be at least 1, got {num_questions}")
    if num_hops < 1:
        raise ValueError(f"num_hops must be at least 1, got {num_hops}")


def _question(
    prompt: tuple[str, ...], answer: tuple[str, ...], spots: tuple[int, ...], num_tokens: int
) -> Question:
    return Question(" ".join(prompt), " ".join(answer), answer, spots[0] / num_tokens, spots)


def _ring(places: list[str]) -> list[tuple[str, str]]:
    return list(zip(places, places[1:] + places[:1], strict=True))


def _weave(
    inserts: list[_Insert], num_tokens: int, rng: random.Random
) -> tuple[list[str], list[int]]:
    """Prose of exactly `num_tokens` with the inserts in it, and the place of each insert.

    An insert goes between two sentences where its span has such a place, else it cuts one.
    """
    filler = (word for sentence in prose.sentences(rng) for word in sentence)
    tokens, where = [words.BOS], [0] * len(inserts)
    for i in sorted(range(len(inserts)), key=lambda i: inserts[i].first):
        insert = inserts[i]
        latest = insert.last - len(insert.words)
        while len(tokens) < latest and not (len(tokens) >= insert.first and tokens[-1] == "."):
            tokens.append(next(filler))
        where[i] = len(tokens)
        tokens += insert.words
    while len(tokens) < num_tokens:
        tokens.append(next(filler))
    return tokens, where
