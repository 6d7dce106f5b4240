"""A model's tokenizer: the same tokens that its server counts; nothing is downloaded."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

_GENERIC = ("PreTrainedTokenizerFast", "TokenizersBackend")
"""Names of the class that reads `tokenizer.json` and needs no other."""
_MARK = "\ue000"
"""Stands for a user's words in a chat template; a private code point no template holds."""


class Tokens:
    """Text to token ids and back, for one model."""

    def __init__(self, folder: Path) -> None:
        """Read the folder's tokenizer.

        Raises:
            ValueError: transformers cannot read it.
        """
        try:
            self.tokenizer: Any = _reader(folder).from_pretrained(folder, local_files_only=True)
        except (OSError, ValueError) as error:
            reason = str(error).splitlines()[0]
            raise ValueError(
                f"model must have a tokenizer, got {str(folder)!r}: {reason}"
            ) from None
        self._eos = {self.tokenizer.eos_token_id} | _generation_ends(folder)

    def ids(self, text: str) -> list[int]:
        """Token ids, special tokens included, as the server counts a prompt."""
        found: list[int] = self.tokenizer(text, verbose=False).input_ids
        return found

    def text(self, ids: Sequence[int]) -> str:
        """Text of generated tokens, up to the first that ends an answer."""
        end = next((i for i, token in enumerate(ids) if token in self._eos), len(ids))
        said: str = self.tokenizer.decode(list(ids[:end]), skip_special_tokens=True)
        return said

    def pieces(self, ids: Sequence[int]) -> list[str]:
        """What each token spells; of a letter in several tokens, the last spells it."""
        said, found = "", list[str]()
        for end in range(1, len(ids) + 1):
            text: str = self.tokenizer.decode(list(ids[:end]), skip_special_tokens=True)
            whole = text.removesuffix("\ufffd")
            found.append(whole[len(said) :])
            said = whole
        return found

    def spelling(self, text: str, first: int, end: int) -> range:
        """Positions of the tokens of a text that spell its characters from `first` to `end`.

        A token that spells characters beside these is among them.
        """
        whole, before, until = (self.ids(one) for one in (text, text[:first], text[:end]))
        same = shared(until, whole)
        return range(shared(before, whole), same if same == len(until) else same + 1)

    def chat(self) -> tuple[str, str]:
        """Text before and after the words of a user's turn, the answer's turn opened.

        Raises:
            ValueError: the model has no chat template.
        """
        before, after = self._rendered("user")
        return before, after

    def turns(self) -> tuple[str, str, str]:
        """Text before a user's first words, after a user's words, and after an answer's.

        Raises:
            ValueError: the model has no chat template.
        """
        before, after, between, _ = self._rendered("user", "assistant", "user")
        return before, after, between

    def _rendered(self, *roles: str) -> list[str]:
        """What the template puts around the words of such turns, the answer's turn opened."""
        if not getattr(self.tokenizer, "chat_template", None):
            raise ValueError("chat must be left out: the model has no chat template")
        turns = [{"role": role, "content": _MARK} for role in roles]
        whole = self.tokenizer.apply_chat_template(
            turns, tokenize=False, add_generation_prompt=True
        )
        around: list[str] = whole.split(_MARK)
        # The server puts the token that begins a prompt in front by itself.
        begin = self.tokenizer.bos_token or ""
        if self._begins(begin):
            around[0] = around[0].removeprefix(begin)
        return around

    def _begins(self, begin: str) -> bool:
        return bool(begin) and self.ids("")[:1] == self.tokenizer.convert_tokens_to_ids([begin])


def shared(head: Sequence[int], whole: Sequence[int]) -> int:
    """How many tokens two texts begin with alike."""
    pairs = zip(head, whole, strict=False)
    return next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(head), len(whole)))


def _reader(folder: Path) -> Any:
    """The class that transformers reads a folder's tokenizer with, imported alone if it can be.

    Whatever chooses among the classes imports torch, and takes seconds.
    """
    path = folder / "tokenizer_config.json"
    told = json.loads(path.read_text()) if path.is_file() else {}
    if told.get("tokenizer_class") in _GENERIC and "auto_map" not in told:
        from transformers import PreTrainedTokenizerFast

        return PreTrainedTokenizerFast
    from transformers import AutoTokenizer

    return AutoTokenizer


def _generation_ends(folder: Path) -> set[int]:
    """Tokens that end an answer, as `generation_config.json` has them."""
    path = folder / "generation_config.json"
    if not path.is_file():
        return set()
    found = json.loads(path.read_text()).get("eos_token_id")
    return set(found) if isinstance(found, list) else {found}
