"""A prompt in chat form begins as the server's own: with one token that begins a text, or none."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from sgl_sparsekv.evaluation.tokens import Tokens
from sgl_sparsekv.models.tokenizer import SPECIALS, build_tokenizer

WORDS = ("user", "model", "question", "words")
TURNS = (
    "{% for m in messages %} user {{ m['content'] }}{% endfor %}"
    "{% if add_generation_prompt %} model{% endif %}"
)
KINDS = {
    "Llama 3, Mistral, Gemma: both put it there": (True, "{{ bos_token }}" + TURNS, 1),
    "Qwen: nobody does": (False, TURNS, 0),
    "the template alone": (False, "{{ bos_token }}" + TURNS, 1),
}


@pytest.mark.parametrize("kind", KINDS)
def test_one_token_begins_a_chat_or_none(tmp_path: Path, kind: str) -> None:
    adds, template, begins = KINDS[kind]
    made = build_tokenizer((*SPECIALS, *WORDS), 512)
    made.chat_template = template
    if not adds:
        from tokenizers import processors

        made.backend_tokenizer.post_processor = processors.TemplateProcessing(single="$A")
    made.save_pretrained(tmp_path)
    tokens = Tokens(tmp_path)
    before, after = tokens.chat()
    # The server renders the template and adds nothing to it.
    turn = [{"role": "user", "content": "question words"}]
    rendered = made.apply_chat_template(turn, tokenize=False, add_generation_prompt=True)
    served = made(rendered, add_special_tokens=False).input_ids
    asked = tokens.ids(f"{before}question words{after}")
    assert asked == served
    assert asked.count(made.bos_token_id) == begins


def test_turns_one_after_the_other_are_what_the_template_makes_of_them(tmp_path: Path) -> None:
    made = build_tokenizer((*SPECIALS, *WORDS), 512)
    made.chat_template = (
        "{{ bos_token }}{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}{% endfor %}"
        "{% if add_generation_prompt %}<assistant>{% endif %}"
    )
    made.save_pretrained(tmp_path)
    tokens = Tokens(tmp_path)
    before, after, between = tokens.turns()
    assert (before, after) == tokens.chat()
    turns = [("user", "words"), ("assistant", "question"), ("user", "model")]
    rendered = made.apply_chat_template(
        [{"role": role, "content": text} for role, text in turns],
        tokenize=False,
        add_generation_prompt=True,
    )
    asked = f"{before}words{after}question{between}model{after}"
    assert rendered == f"{made.bos_token}{asked}"


def test_tokens_that_spell_a_stretch_of_text_are_found(prose_model: Path) -> None:
    """All of them and no others, wherever in a word it begins and ends."""
    tokens = Tokens(prose_model)
    text = "The secret number of Ashbank is 4830275916. The river runs past the old mill."
    ids = tokens.ids(text)
    for first, end in ((0, 10), (4, 43), (21, 28), (23, 25), (44, len(text)), (32, 42)):
        found = tokens.spelling(text, first, end)
        assert text[first:end] in tokens.tokenizer.decode(ids[found.start : found.stop])
        for less in (range(found.start + 1, found.stop), range(found.start, found.stop - 1)):
            shorter = tokens.tokenizer.decode(ids[less.start : less.stop])
            assert text[first:end] not in shorter


@pytest.mark.parametrize(
    "named", ["TokenizersBackend", "PreTrainedTokenizerFast", "LlamaTokenizer"]
)
def test_a_tokenizer_is_the_one_that_transformers_chooses(tmp_path: Path, named: str) -> None:
    """Also where its class is imported without those that it could have been."""
    from transformers import AutoTokenizer

    build_tokenizer((*SPECIALS, *WORDS), 512).save_pretrained(tmp_path)
    path = tmp_path / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"tokenizer_class": named}))
    chosen, ours = AutoTokenizer.from_pretrained(tmp_path), Tokens(tmp_path).tokenizer
    assert type(ours) is type(chosen)
    text = "user question <s> words\u00e9</s>"
    assert ours(text).input_ids == chosen(text).input_ids


def test_a_plain_tokenizer_is_read_without_torch(tmp_path: Path) -> None:
    """Which takes most of the time of a short evaluation."""
    build_tokenizer((*SPECIALS, *WORDS), 512).save_pretrained(tmp_path)
    script = (
        "import sys; from pathlib import Path; from sgl_sparsekv.evaluation.tokens import Tokens;"
        "Tokens(Path(sys.argv[1])); print('torch' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["False"]


def test_a_folder_without_a_tokenizer_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="model must have a tokenizer, got"):
        Tokens(tmp_path)
