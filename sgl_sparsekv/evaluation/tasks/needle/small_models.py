"""Haystacks for the models that this package brings; they read their own vocabulary alone."""

from itertools import pairwise

from ...tokens import Tokens
from ..texts import Text
from .haystack import Haystack, Needle, spans_of

WORD_ROOM = 32
"""Tokens kept free for question and answer of a document of words."""
CHAIN_PLACES = 1024


def chain_haystack(length: int, depths: int, needles: int, seed: int) -> Haystack:
    """For the analytic model: sign posts to follow, the second one at the wanted depth.

    The first is found by dense prefill when the question is part of the prompt, so only the
    `needles` after it tell how decode reads. Depths are met as closely as the sign posts allow.
    """
    from ....models import chain_document

    document = chain_document(length - WORD_ROOM, CHAIN_PLACES, needles + 1, seed)
    found = []
    for i in range(depths):
        wanted = (i + 0.5) / depths * document.num_tokens
        nearest = min(document.questions, key=lambda q: abs(q.positions[1] - wanted))
        place = nearest.positions[1] / document.num_tokens
        parts = tuple(nearest.answer.split())
        posts = [f"{a}: {b}" for a, b in pairwise(parts)]
        spans = spans_of(document.text, posts)
        found.append(Needle(place, f" {nearest.suffix}", parts, needles + 1, True, spans))
    return Haystack(document.text, tuple(found))


def facts_haystack(length: int, depths: int, needles: int, seed: int) -> Haystack:
    """For the trained model: facts of eight words, one asked per depth, and three unasked ones.

    Raises:
        ValueError: it knows no question whose answer takes several facts.
    """
    from ....models import needle_document

    if needles != 1:
        raise ValueError(f"needles must be 1 for the trained model, got {needles}")
    document = needle_document(length - WORD_ROOM, depths, seed=seed)
    questions = sorted(document.questions, key=lambda question: question.depth)
    return Haystack(
        document.text,
        tuple(
            Needle(
                q.depth,
                f" {q.suffix}",
                (q.answer,),
                len(q.answer_tokens),
                True,
                spans_of(document.text, [f"{q.suffix.split()[-1]} {q.answer}"]),
            )
            for q in questions
        ),
    )


def kind_of(tokens: Tokens) -> str:
    """Which documents a model can read: `chain`, `facts` or, for any other model, `prose`."""
    from ....models import LOST, words

    vocabulary = tokens.tokenizer.get_vocab()
    if LOST in vocabulary:
        return "chain"
    return "facts" if all(name in vocabulary for name in words.FIRST_NAMES) else "prose"


def written_text(kind: str, length: int, seed: int) -> Text:
    """A document of `length` tokens, and words that who has read it can foretell.

    `chain`: a walk along its sign posts; `facts`: its asked facts, in another order.

    Args:
        kind: chain or facts.
        length: tokens of the document.
        seed: the same gives the same.
    """
    from ....models import chain_document, needle_document

    if kind == "chain":
        document = chain_document(length, 1, 96, seed)
        (walk,) = document.questions
        return Text(f"chain {length} {seed}", document.text, f" {walk.suffix} {walk.answer}")
    document = needle_document(length, 16, seed=seed)
    retold = " ".join(f"{q.suffix.split()[-1]} {q.answer}" for q in document.questions)
    return Text(f"facts {length} {seed}", document.text, f" {retold}")
