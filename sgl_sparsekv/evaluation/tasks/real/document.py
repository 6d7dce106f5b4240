"""A document of a given length, and the passages in it that can be asked for."""

import hashlib
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import zip_longest

from .library import Block, chapters, functions, modules

BETWEEN = "\n\n"
STRETCH = 3000
"""Letters of a text in a row, at most; then another text has its turn."""
FUNCTION_LINES = (6, 24)
PARAGRAPH_LETTERS = (240, 900)
OPENING_WORDS = 8
"""Of a paragraph; they name it in a question."""


@dataclass(frozen=True)
class Passage:
    """A part of a document that can be asked for by its opening, which occurs once.

    Attributes:
        opening: its first words.
        rest: what follows them, to its end.
        function: its name, if it is a function.
        place: share of the document before it.
    """

    opening: str
    rest: str
    function: str
    place: float


@dataclass(frozen=True)
class Document:
    """A text, the passages in it in order, and what follows it in its source."""

    text: str
    passages: tuple[Passage, ...]
    goes_on: str


def digest() -> str:
    """A short mark of all that documents are made of; another Python may have another one."""
    texts = [block.text for blocks in (*chapters(), *modules()) for block in blocks]
    return hashlib.sha256(repr((texts, functions())).encode()).hexdigest()[:16]


def real_document(ids: Callable[[str], list[int]], size: int, more: int, seed: int) -> Document:
    """Stretches of chapters and modules by turns, in an order that the seed decides.

    Args:
        ids: text to token ids.
        size: tokens of the document, at most; cut where a paragraph or definition ends.
        more: tokens of what follows it, at least.
        seed: the same gives the same.

    Raises:
        ValueError: there is not as much to read.
    """
    kept, after, length = list[Block](), list[Block](), 0
    for block in _stream(random.Random(f"real {seed}")):
        length += len(ids(block.text + BETWEEN))
        (kept if length <= size and not after else after).append(block)
        if length > size + more and after:
            break
    else:
        raise ValueError(f"length must be below {length - more} tokens of this Python, got {size}")
    # Blocks one by one may be a few tokens less than all of them together.
    while kept and len(ids(_joined(kept))) > size:
        after.insert(0, kept.pop())
    if not kept:
        raise ValueError(f"length must leave room for a paragraph of a document, got {size}")
    text = _joined(kept)
    found = (_passage(block, text) for block in kept)
    passages = tuple(passage for passage in found if passage is not None)
    return Document(text, passages, _joined(after))


def _joined(blocks: Sequence[Block]) -> str:
    return "".join(block.text + BETWEEN for block in blocks)


def _stream(rng: random.Random) -> Iterator[Block]:
    """A stretch of each text by turns, reference and sources; then the next stretch of each."""
    told = [_stretches(blocks) for blocks in chapters()]
    written = [[s for s in _stretches(blocks) if _defines(s)] for blocks in modules()]
    rng.shuffle(told)
    rng.shuffle(written)
    texts = [
        text for both in zip_longest(told, written, fillvalue=list[list[Block]]()) for text in both
    ]
    for nth in range(max(map(len, texts))):
        for text in texts:
            yield from text[nth] if nth < len(text) else ()


def _stretches(blocks: Sequence[Block]) -> list[list[Block]]:
    """Neighbours, so many letters together; a block that is longer by itself is left out."""
    found, length = list[list[Block]](), STRETCH
    for block in blocks:
        if len(block.text) > STRETCH:
            continue
        if length + len(block.text) > STRETCH:
            found.append([])
            length = 0
        found[-1].append(block)
        length += len(block.text)
    return found


def _defines(stretch: Sequence[Block]) -> bool:
    """It has a function that can be asked for."""
    return any(block.function and _function_opening(block) for block in stretch)


def _passage(block: Block, text: str) -> Passage | None:
    """The block, if it can be asked for."""
    opening = _function_opening(block) if block.function else _paragraph_opening(block)
    if not opening or text.count(opening) != 1:
        return None
    place = text.index(opening) / len(text)
    return Passage(opening, block.text.removeprefix(opening), block.function, place)


def _function_opening(block: Block) -> str:
    least, most = FUNCTION_LINES
    fits = least <= block.text.count("\n") + 1 <= most
    return f"def {block.function}(" if fits else ""


def _paragraph_opening(block: Block) -> str:
    """Words of plain prose; lists, tables and examples are indented or begin with a sign."""
    least, most = PARAGRAPH_LETTERS
    plain = block.text[:1].isupper() and "\n " not in block.text
    if not plain or not least <= len(block.text) <= most:
        return ""
    end = -1
    for _ in range(OPENING_WORDS):
        end = next((i for i in range(end + 1, len(block.text)) if block.text[i].isspace()), -1)
        if end < 0:
            return ""
    return block.text[:end]
