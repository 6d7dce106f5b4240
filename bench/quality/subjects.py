"""Models and texts to measure on, each cut to a context."""

import random
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from bench.quality.dump import Dump, dump
from sgl_sparsekv.models import (
    build_text_tokenizer,
    build_trained_tokenizer,
    load_text,
    load_trained,
    needle_document,
    prose,
)
from sgl_sparsekv.models.corpus import library

QUERIES = 32
"""Decode positions of a context."""
SPAN = 4096
"""They lie in the last so many tokens, or in the last quarter: every length of tail occurs."""


@dataclass(frozen=True)
class Subject:
    """A model and how to fill a context for it.

    Attributes:
        name: as tables call it.
        about: model and text in one sentence.
        load: the model.
        text: context -> token ids, one more than the context, and the positions to look at.
    """

    name: str
    about: str
    load: Callable[[], Any]
    text: Callable[[int], tuple[list[int], list[int]]]

    def dump(self, context: int) -> Dump:
        """Keys, values and queries at one context, in tokens."""
        ids, positions = self.text(context)
        return dump(self.load(), ids[: context + 1], positions)


def spread(context: int, count: int, rng: random.Random) -> list[int]:
    """`count` positions in the last part of a context, one anywhere in each equal stretch."""
    span = min(SPAN, context // 4)
    edges = [context - span + i * span // count for i in range(count + 1)]
    return [rng.randrange(a, b) for a, b in pairwise(edges)]


def facts(context: int) -> tuple[list[int], list[int]]:
    """A needle document whose last part asks 16 facts, with prose between; two words of each."""
    rng = random.Random(context)
    span = min(SPAN, context // 4)
    document = needle_document(context - span)
    tokenizer = build_trained_tokenizer()
    ids = list(tokenizer(document.text)["input_ids"])
    positions = []
    for i, question in enumerate(document.questions):
        words = [*question.suffix.split(), *question.answer_tokens, ".", "</s>"]
        end = context - span + (i + 1) * span // len(document.questions)
        filler = prose.stream(rng, end - len(ids) - len(words))
        ids += tokenizer.convert_tokens_to_ids([*filler, *words])
        first = end - len(question.answer_tokens) - 3
        positions += [first + nth for nth in rng.sample(range(len(question.answer_tokens)), 2)]
    return [*ids, 0], positions


def sources(context: int) -> tuple[list[int], list[int]]:
    """Python that the model never saw; the last part quotes earlier spans between running text.

    Half the positions lie in running text, half behind the eighth token of a quote of 32.
    """
    if context < SPAN:
        raise ValueError(f"context must be at least {SPAN} tokens here, got {context}")
    rng, tokenizer = random.Random(context), build_text_tokenizer()
    written = library(held_out=True)
    parts = (tokenizer(text, verbose=False).input_ids for text in written)
    stream = [token for ids in parts for token in ids]
    if len(stream) < context:
        raise ValueError(f"context must be at most {len(stream)} tokens here, got {context}")
    span, quote, blocks = min(SPAN, context // 4), 32, QUERIES // 2
    ids, place, positions = stream[: context - span], context - span, []
    for i in range(blocks):
        run = context - span + (i + 1) * span // blocks - len(ids) - quote
        positions += [len(ids) + rng.randrange(run), len(ids) + run + rng.randrange(8, quote)]
        ids += stream[place : place + run]
        first = rng.randrange(context - span - quote)
        ids += ids[first : first + quote]
        place += run
    return [*ids, stream[place]], positions


def trained() -> Subject:
    """The shipped Llama model on facts in prose."""
    about = "the trained Llama model, finishing facts in generated prose"
    return Subject("trained", about, load_trained, facts)


def text() -> Subject:
    """The shipped Qwen3 model on Python."""
    about = "the Qwen3 model of Python sources, on modules it never saw and quotes of them"
    return Subject("text", about, load_text, sources)


def folder(path: Path, file: Path | None) -> Subject:
    """Any model of transformers, on a text file or the sources of Python's library.

    Raises:
        ValueError: it is no model folder, or the text is shorter than the context.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    if not (path / "config.json").is_file():
        raise ValueError(f"MODEL must be a folder with a config.json, got {path}")
    tokenizer = AutoTokenizer.from_pretrained(path)

    def fill(context: int) -> tuple[list[int], list[int]]:
        written = file.read_text() if file else "\n".join(library(held_out=True))[: 16 * context]
        ids = tokenizer(written)["input_ids"][: context + 1]
        if len(ids) <= context:
            raise ValueError(f"the text must have more than {context} tokens, got {len(ids)}")
        return ids, spread(context, QUERIES, random.Random(context))

    def load() -> Any:
        return AutoModelForCausalLM.from_pretrained(path, dtype="auto")

    about = f"{path.name} on {file.name if file else 'sources of the Python library'}"
    return Subject(path.name, about, load, fill)


SHIPPED: dict[str, Callable[[], Subject]] = {"text": text, "trained": trained}
"""Models that come with the package."""
