"""A model that answers RULER's needles: the trained one, reading them as the facts it knows.

It goes on with a fact from its first word, and knows few words. So its tokenizer is replaced: the
keys of the samples are first names to it and their numbers last names, all other words are words of
its prose, and what stands between a key and its number, or behind the key of the question, is not
read. A question's answer is then one look-up in decode, as in any model that can do the task.
"""

import json
import re
from collections.abc import Sequence
from pathlib import Path

from sgl_sparsekv.evaluation.tasks.asking import Question
from sgl_sparsekv.models import save_trained, words

SKIPPED = (
    r"\nWhat is the special magic [^?]*\?",
    r" mentioned in the provided text is",
    r" is(?=: )",
)
"""Of a prompt, not read."""
WORD = r"[\w-]+|\."


def save_ruler_reader(folder: Path, questions: Sequence[Question]) -> None:
    """Write the model to `folder`, for the needles of these questions.

    Args:
        folder: made if it is not there.
        questions: of RULER's tasks with words for keys and numbers for values.
    """
    save_trained(folder)
    path = folder / "tokenizer.json"
    tokenizer = json.loads(path.read_text())
    known = tokenizer["model"]["vocab"]
    texts = [question.document + question.question + question.start for question in questions]
    needles = {pair for text in texts for pair in re.findall(r" for ([\w-]+) is: (\d+)\.", text)}
    keys, values = sorted({key for key, _ in needles}), sorted({value for _, value in needles})
    assert max(len(keys), len(values)) <= len(words.FIRST_NAMES), "it knows no more names"
    ids = {name: known[name] for name in ("<s>", "</s>", "<unk>")}
    ids |= {key: known[name] for key, name in zip(keys, words.FIRST_NAMES, strict=False)}
    ids |= {value: known[name] for value, name in zip(values, words.LAST_NAMES, strict=False)}
    prose = sorted(set(known.values()) - {known[word] for word in words.fact_words()})[3:]
    for text in texts:
        for word in re.findall(WORD, text):
            ids.setdefault(word, prose[len(ids) % len(prose)])
    tokenizer["model"]["vocab"] = ids
    tokenizer["normalizer"] = {
        "type": "Sequence",
        "normalizers": [
            {"type": "Replace", "pattern": {"Regex": pattern}, "content": ""} for pattern in SKIPPED
        ],
    }
    tokenizer["pre_tokenizer"]["pattern"] = {"Regex": WORD}
    path.write_text(json.dumps(tokenizer))
