"""Text of a given number of tokens, for the tools that take no ids."""

import random
from pathlib import Path
from typing import Any


class Documents:
    """Random words of one tokenizer."""

    def __init__(self, tokenizer: Path, seed: int) -> None:
        """Load the tokenizer.

        Args:
            tokenizer: folder with its files.
            seed: of the words.
        """
        from transformers import AutoTokenizer

        self._tokenizer: Any = AutoTokenizer.from_pretrained(tokenizer)
        special = set(self._tokenizer.all_special_ids)
        self._ids = sorted(set(self._tokenizer.get_vocab().values()) - special)
        self._seed = seed

    def text(self, tokens: int, salt: str = "") -> str:
        """Words that encode to about `tokens` tokens, exactly so where each word is a token.

        Args:
            tokens: how many, without those that a tokenizer puts before every text.
            salt: another gives another text.
        """
        # Text as a seed: Python hashes it alike in every process.
        draw = random.Random(f"{self._seed} {tokens} {salt}")
        drawn = self._tokenizer.decode(draw.choices(self._ids, k=tokens))
        ids = self._tokenizer(drawn, add_special_tokens=False)["input_ids"][:tokens]
        return str(self._tokenizer.decode(ids))
