"""RULER beside the harness's own generators: the same prompt but for what is drawn at random.

Only generators that need neither essays nor the net are called, and only for one sample each.
"""

import importlib
import random
import re
from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest

from sgl_sparsekv.evaluation.tasks.ruler import niah
from sgl_sparsekv.evaluation.tasks.ruler.counting import CommonWordsMaker, FrequentWordsMaker
from sgl_sparsekv.evaluation.tasks.ruler.sample import Draw
from sgl_sparsekv.evaluation.tasks.ruler.tracking import TrackingMaker
from sgl_sparsekv.evaluation.tasks.ruler.wording import wording

UNITS = 60
MASKS = (
    (r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", "UUID"),
    (r"\b\d{7}\b", "NUMBER"),
    (r"(?<=for )\S.*?(?= (is:|mentioned))", "KEY"),
    (r"\b[A-Z]{5}\b", "NAME"),
    (r"\b\d{5}\b", "VALUE"),
)


@pytest.fixture(scope="module")
def peer():
    """The harness's modules of RULER; none of them may fetch anything."""
    patch = pytest.MonkeyPatch()
    import nltk
    import wonderwords

    few = {
        kind: [kind + chr(97 + i // 9) + chr(97 + i % 9) for i in range(81)]
        for kind in ("noun", "adjective", "verb")
    }
    few |= {"nouns": few["noun"], "adjectives": few["adjective"], "verbs": few["verb"]}
    patch.setattr(nltk.data, "find", lambda name: name)
    patch.setattr(wonderwords, "RandomWord", lambda: SimpleNamespace(_categories=few))
    yield lambda name: importlib.import_module(f"lm_eval.tasks.ruler.{name}")
    patch.undo()


def masked(text):
    for pattern, mark in MASKS:
        text = re.sub(pattern, mark, text)
    return text


def lines(text):
    return Counter(line.strip() for line in masked(text).splitlines())


@pytest.mark.parametrize("name", ["niah_single_1", "niah_multikey_2", "niah_multikey_3"])
def test_needle_prompts_have_the_lines_of_the_peer(peer, name):
    hidden = niah.TASKS[name]
    generator = peer("prepare_niah")
    kind = {"noise": "repeat"}.get(hidden.haystack, hidden.haystack)
    theirs, answers, _ = generator.generate_input_output(
        UNITS,
        generator.get_haystack(type_haystack=kind),
        type_haystack=kind,
        num_needle_k=hidden.num_keys,
        type_needle_k=hidden.keys,
        num_needle_v=hidden.per_key,
        type_needle_v=hidden.values,
        template=peer("niah_utils").TEMPLATE,
    )
    maker = niah.NeedleMaker(hidden, wording(), None)
    ours = maker.make(Draw(name, 4096, 0, 0), UNITS)
    assert len(ours.references) == len(answers)
    assert lines(ours.document + ours.question) == lines(theirs)


def test_a_chain_is_hidden_as_the_peer_hides_it(peer):
    theirs, answers = peer("vt_utils").generate_input_output(UNITS, 1, 4)
    maker = TrackingMaker(wording(), lambda text: len(text.split()))
    ours = maker.make(Draw("vt", 4096, 0, 0), UNITS)
    main = ours.document[ours.document.rindex("\n\n", 0, ours.document.rindex("\n\n")) + 2 :]
    # The peer misspells one word and puts a space before each line; see docs/ruler.md.
    wanted = masked(theirs.replace("assgined", "assigned")).split()
    assert Counter(masked(main + ours.question + ours.start).split()) == Counter(wanted)
    assert len(ours.references) == len(answers)


@pytest.mark.parametrize("length", [2048, 8192])
def test_words_are_as_common_as_the_peer_makes_them(peer, length):
    example, theirs, answers = peer("cwe_utils").generate_input_output(UNITS, length)
    ours = CommonWordsMaker(wording()).make(Draw("cwe", length, 0, 0), UNITS)
    prompt = ours.document + ours.question + ours.start
    shown, main = prompt[: prompt.index("\nBelow", 1)], prompt[prompt.index("\nBelow", 1) + 1 :]
    assert frequencies(shown) == frequencies(example)
    assert frequencies(main) == frequencies(theirs)
    assert outline(main) == outline(theirs)
    assert len(ours.references) == len(answers)


def frequencies(text):
    """How many words of the list stand how often."""
    listed = re.findall(
        r"\d+\. (\D+?)(?= \d+\. |\n)", text.partition("\n")[2].partition("\n")[0] + "\n"
    )
    return Counter(Counter(listed).values())


def outline(text):
    """All but the list."""
    first, _, rest = text.partition("\n")
    return first, rest.partition("\n")[2]


def test_coded_words_are_as_frequent_as_the_peer_makes_them(peer):
    random.seed(0)
    np.random.seed(0)
    tokenizer = lambda text: SimpleNamespace(input_ids=[])  # noqa: E731
    theirs, answers, _ = peer("fwe_utils").generate_input_output(
        10**9, tokenizer, num_words=5000, vocab_size=100
    )
    ours = FrequentWordsMaker(wording()).make(Draw("fwe", 100 * 50 + 50, 0, 0), 5000)
    prompt = ours.document + ours.question + ours.start
    assert coded(prompt) == coded(theirs)
    assert len(ours.references) == len(answers)
    assert prompt.partition("coded words. ")[0] == theirs.partition("coded words. ")[0]
    assert prompt.partition("\n")[2] == theirs.partition("\n")[2]


def coded(text):
    """How often each word stands, the words left out."""
    listed = text.partition("coded words. ")[2].partition("\n")[0].split()
    return sorted(Counter(listed).values())
