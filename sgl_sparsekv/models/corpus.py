"""Real text that every machine has: the sources of Python's standard library, and samples of it."""

from __future__ import annotations

import json
import random
import sysconfig
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from sgl_sparsekv.models.words import BOS, EOS

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

HELD_OUT = 16
"""Every so many-th file is never trained on."""
OTHERS = ("site-packages", "test", "tests", "idle_test", "lib2to3", "__pycache__")
"""Folders left out: not of the library, or hardly text."""


def library(held_out: bool) -> list[str]:
    """Texts of the library's modules by path, those that are trained on or those that are not."""
    root = Path(sysconfig.get_path("stdlib"))
    paths = sorted(root.rglob("*.py"), key=lambda path: path.relative_to(root).as_posix())
    paths = [p for p in paths if not {*OTHERS} & {*p.relative_to(root).parts}]
    chosen = [p for i, p in enumerate(paths) if (i % HELD_OUT == 0) == held_out]
    return [path.read_text(encoding="utf-8", errors="replace") for path in chosen]


def learn_merges(texts: Iterable[str], size: int) -> list[tuple[str, str]]:
    """Merges of byte-level BPE for a vocabulary of `size` tokens."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    tokenizer: Any = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer: Any = trainers.BpeTrainer(  # type: ignore[no-untyped-call]
        vocab_size=size,
        special_tokens=[BOS, EOS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return [(a, b) for a, b in json.loads(tokenizer.to_str())["model"]["merges"]]


def bpe_tokenizer(merges: Sequence[Sequence[str]], max_length: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer; ids are specials, bytes, then merges in order."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    words = [BOS, EOS, *sorted(pre_tokenizers.ByteLevel.alphabet()), *(a + b for a, b in merges)]
    ids = {word: i for i, word in enumerate(words)}
    tokenizer: Any = Tokenizer(models.BPE(ids, [(a, b) for a, b in merges]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A $B", special_tokens=[(BOS, 0)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=BOS,
        eos_token=EOS,
        pad_token=EOS,
        clean_up_tokenization_spaces=False,
        model_max_length=max_length,
    )


@dataclass(frozen=True)
class TextBatch:
    """Samples of text.

    Attributes:
        ids: int64 `[bs, n]`.
        positions: int64 `[bs, n]`, increasing.
        quoted: bool `[bs, n]`, tokens that repeat an earlier span and can be foretold from it.
    """

    ids: torch.Tensor
    positions: torch.Tensor
    quoted: torch.Tensor


class TextSampler:
    """Draws running text in which earlier spans are quoted again; every draw comes from `seed`.

    The text goes on after a quote where it left off. Half the samples have jumps in position, only
    where running text and quotes meet, so that far distances are trained too.
    """

    def __init__(self, texts: Sequence[list[int]], seed: int, max_position: int) -> None:
        self.tokens = [token for text in texts for token in (0, *text)]
        self.rng = random.Random(seed)
        self.max_position = max_position

    def batch(self, count: int, length: int) -> TextBatch:
        """`count` samples of `length` tokens."""
        rows = [self.sample(length) for _ in range(count)]
        ids, positions, quoted = (torch.tensor(column) for column in zip(*rows, strict=True))
        return TextBatch(ids, positions, quoted)

    def sample(self, length: int) -> tuple[list[int], list[int], list[bool]]:
        """Ids, positions, and what is quoted, of one sample."""
        rng, ids, quoted, joints = self.rng, [0], [False], [0]
        place = rng.randrange(len(self.tokens) - length)
        while len(ids) < length:
            run = rng.randint(32, 160)
            ids += self.tokens[place : place + run]
            quoted += [False] * run
            place += run
            joints.append(len(ids))
            span = rng.randint(12, 48)
            first = rng.randrange(max(1, len(ids) - span))
            ids += ids[first : first + span]
            quoted += [False] * 2 + [True] * (span - 2)
            joints.append(len(ids))
        return ids[:length], self._positions(length, joints), quoted[: len(ids)][:length]

    def _positions(self, length: int, joints: list[int]) -> list[int]:
        rng = self.rng
        if rng.random() < 0.5:
            return list(range(length))
        inside = [joint for joint in joints if 0 < joint < length]
        jumps = dict.fromkeys(sorted(rng.sample(inside, min(4, len(inside)))), 0)
        top = int((self.max_position - length) * rng.random() ** 2)
        sizes = sorted(rng.randint(0, top) for _ in jumps)
        jumps = dict(zip(jumps, sizes, strict=True))
        out, offset = [], 0
        for i in range(length):
            offset = jumps.get(i, offset)
            out.append(i + offset)
        return out
