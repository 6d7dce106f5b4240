"""One word, one token: the tokenizer the Llama models are saved with."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from sgl_sparsekv.models.words import BOS, EOS, UNK

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

SPECIALS = (BOS, EOS, UNK)
WORD = r"<[a-z]+>|\w+|[^\w\s]"
# Here "Ashbank:" is one token and "Ashbank" another.
WORD_OR_KEY = r"<[a-z]+>|\w+:|\w+|[^\w\s]"
# Both models continue their prompt, so a chat is its messages in a row with no role words between.
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message['content'] is string %}{{ ' ' + message['content'] }}"
    "{% else %}{% for part in message['content'] %}{{ ' ' + part['text'] }}{% endfor %}{% endif %}"
    "{% endfor %}"
)


def build_tokenizer(
    vocabulary: Sequence[str], max_length: int, pattern: str = WORD
) -> PreTrainedTokenizerFast:
    """A word-level tokenizer; ids are the places in `vocabulary`, which starts with `SPECIALS`.

    Raises:
        ValueError: if `vocabulary` does not start with the specials or repeats a word.
    """
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    if tuple(vocabulary[: len(SPECIALS)]) != SPECIALS or len(set(vocabulary)) != len(vocabulary):
        raise ValueError("vocabulary must be the special tokens and then distinct words")
    ids = {word: i for i, word in enumerate(vocabulary)}
    tokenizer: Any = Tokenizer(models.WordLevel(ids, unk_token=UNK))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(pattern), behavior="removed", invert=True)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A $B", special_tokens=[(BOS, ids[BOS])]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=BOS,
        eos_token=EOS,
        unk_token=UNK,
        pad_token=EOS,
        clean_up_tokenization_spaces=False,
        model_max_length=max_length,
        chat_template=CHAT_TEMPLATE,
    )
