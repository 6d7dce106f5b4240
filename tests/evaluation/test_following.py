"""Forced decode: what is sent, what comes back, and the arithmetic of both evaluations."""

import math
from types import SimpleNamespace

import pytest
import torch

from sgl_sparsekv.evaluation.client import EvaluationStopped, Reply
from sgl_sparsekv.evaluation.forced import FORCED, NOTES, WATCHED, ForcedTokens
from sgl_sparsekv.evaluation.settings import Reading
from sgl_sparsekv.evaluation.tasks.asking import Asking, Question
from sgl_sparsekv.evaluation.tasks.comparing import divergence
from sgl_sparsekv.evaluation.tasks.fidelity import FidelityTask
from sgl_sparsekv.evaluation.tasks.following import Note, follow
from sgl_sparsekv.evaluation.tasks.needle.task import Grid, NeedleTask
from sgl_sparsekv.evaluation.tasks.perplexity import PerplexityTask
from sgl_sparsekv.evaluation.tasks.texts import Text, read_texts

VOCABULARY = 7
FULL, SPARSE = Reading("full", 256), Reading("streaming", 256)
TOKENS = SimpleNamespace(ids=lambda text: [ord(letter) % VOCABULARY for letter in text])


class Decoder:
    """A server of a model whose logits depend on the last token and on who reads."""

    def __init__(self, shift=1.0):
        self.bodies, self.shift = [], shift

    def logits(self, token, method):
        generator = torch.Generator().manual_seed(token)
        logits = torch.randn(VOCABULARY, generator=generator)
        return logits + (torch.arange(VOCABULARY) * self.shift if method != "full" else 0)

    def generate(self, body):
        self.bodies.append(body)
        sampling, ids = body["sampling_params"], list(body["input_ids"])
        params = {**sampling["custom_params"]}
        request = SimpleNamespace(extend_end=None, origin_input_ids=ids, customized_info=None)
        params["__req__"] = request
        said = []
        for _ in range(sampling["max_new_tokens"]):
            last = said[-1] if said else ids[-1]
            logits = self.logits(last, params["sparsekv"]["method"])[None]
            if "custom_logit_processor" in body:
                ForcedTokens()(logits, [params])
            said.append(int(logits.argmax()))
        notes = (request.customized_info or {}).get(NOTES, [])
        return Reply("", said, len(ids), 0, {**params["sparsekv"]}, notes)


def test_every_forced_token_but_the_first_has_a_note_of_the_untouched_distribution():
    decoder = Decoder()
    notes, _ = follow(decoder, FULL, [1, 2], [3, 5, 4], 2)
    assert len(notes) == 2
    for note, past, token in zip(notes, (3, 5), (5, 4), strict=True):
        logs = decoder.logits(past, "full").log_softmax(-1)
        assert note.best == int(logs.argmax()) == note.ids[0]
        assert note.log == pytest.approx(float(logs[token]))
        assert note.logs == pytest.approx(logs.topk(2).values.tolist())
    custom = decoder.bodies[0]["sampling_params"]["custom_params"]
    assert custom[FORCED] == [3, 5, 4] and custom[WATCHED] == 2
    assert custom["sparsekv"]["method"] == "full"


def test_a_server_that_says_something_else_is_not_believed():
    decoder = Decoder()
    decoder.generate = lambda body: Reply("", [1, 1, 1], 2, 0, {}, [[0, 0.0, [], []]] * 3)
    with pytest.raises(EvaluationStopped, match="did not follow"):
        follow(decoder, FULL, [1], [1, 2, 1], 1)


def test_perplexity_of_a_folder_in_pg19s_form_is_that_of_the_last_tokens_of_each_text(tmp_path):
    (tmp_path / "10762.txt").write_text("the quick brown fox jumps over the lazy dog")
    (tmp_path / "short.txt").write_text("abc")
    texts = read_texts(tmp_path, "text")
    text = texts[0]
    task = PerplexityTask(TOKENS, dict.fromkeys((20, 30), texts), scored=8)
    parts, decoder = task.parts(), Decoder()
    assert [(part.length, part.sample) for part in parts] == [(20, 0), (30, 0)]
    passages = [task.build(part)[0] for part in parts]
    ids = TOKENS.ids(text.text)
    assert [passage.text for passage in passages] == [ids[-8:]] * 2
    assert [len(passage.context) for passage in passages] == [12, 22]
    outcome = task.ask(passages[0], FULL, decoder)
    logs = [
        float(decoder.logits(a, "full").log_softmax(-1)[b])
        for a, b in zip(ids[-8:], ids[-7:], strict=False)
    ]
    assert outcome.value == pytest.approx(-sum(logs) / 7) and outcome.detail["tokens"] == 7


def test_fidelity_of_reading_everything_is_perfect_and_of_another_is_its_divergence():
    task, decoder = FidelityTask(TOKENS, [Text("p", "once upon a time")], followed=12), Decoder()
    (prompt,) = task.build(task.parts()[0])
    full = task.ask(prompt, FULL, decoder)
    assert full.value == 0 and full.detail["top-1"] == 1 and full.detail["diverged at"] == 12
    other = task.ask(prompt, SPARSE, decoder)
    said = decoder.bodies[-1]["sampling_params"]["custom_params"][FORCED]
    steps = []
    for token in said[:-1]:
        p = decoder.logits(token, "full").double().softmax(-1)
        q = decoder.logits(token, "streaming").double().softmax(-1)
        steps.append(float((p * (p / q).log()).sum()))
    assert other.value == pytest.approx(sum(steps) / len(steps), rel=1e-5)
    assert other.detail["worst"] == pytest.approx(max(steps), rel=1e-5)
    assert other.detail["top-1"] < 1


def test_a_continuation_is_followed_as_it_is():
    task, decoder = FidelityTask(TOKENS, [Text("p", "once upon", " a time")], followed=4), Decoder()
    (prompt,) = task.build(task.parts()[0])
    task.ask(prompt, SPARSE, decoder)
    assert prompt.text == TOKENS.ids(" a t")
    forced = [body["sampling_params"]["custom_params"][FORCED] for body in decoder.bodies]
    assert forced == [prompt.text] * 2


def test_what_is_not_watched_is_one_bucket_and_lowers_the_divergence():
    p, q = [0.5, 0.2, 0.2, 0.1], [0.25, 0.25, 0.3, 0.2]
    whole = sum(a * math.log(a / b) for a, b in zip(p, q, strict=False))
    two = 0.5 * math.log(0.5 / 0.25) + 0.5 * math.log(0.5 / 0.75)
    logs = lambda values: [math.log(value) for value in values]  # noqa: E731
    assert divergence(Note(0, 0, [0], logs(p[:1])), Note(0, 0, [0], logs(q[:1]))) == pytest.approx(
        two
    )
    ids = [0, 1, 2, 3]
    assert divergence(Note(0, 0, ids, logs(p)), Note(0, 0, ids, logs(q))) == pytest.approx(whole)
    assert two < whole


def test_texts_of_every_published_form(tmp_path):
    lines = tmp_path / "prompts.jsonl"
    lines.write_text('{"prompt": "a", "continuation": "b"}\n\n{"prompt": "c"}\n')
    assert [(t.text, t.continuation) for t in read_texts(lines, "prompt")] == [
        ("a", "b"),
        ("c", ""),
    ]
    book = tmp_path / "pg19"
    book.mkdir()
    (book / "10.txt").write_text("ten")
    (book / "1.txt").write_text("one")
    assert [text.text for text in read_texts(book, "text")] == ["one", "ten"]
    assert read_texts(book / "1.txt", "text") == [Text("1.txt", "one")]


@pytest.mark.parametrize("content", ["no json\n", '{"text": 1}\n', "[]\n", ""])
def test_files_of_another_form_are_refused_in_a_sentence(tmp_path, content):
    path = tmp_path / "x.jsonl"
    path.write_text(content)
    with pytest.raises(ValueError, match="must"):
        read_texts(path, "text")
    with pytest.raises(ValueError, match="must"):
        read_texts(tmp_path / "nowhere", "text")


@pytest.mark.parametrize(
    "make",
    [
        lambda: PerplexityTask(TOKENS, {20: [Text("t", "abc")]}, scored=8),
        lambda: PerplexityTask(TOKENS, {3: [Text("t", "abc")]}, scored=3),
        lambda: PerplexityTask(TOKENS, {3: [Text("t", "abc")]}, scored=1),
        lambda: FidelityTask(TOKENS, [Text("t", "abc")], followed=1),
    ],
)
def test_what_cannot_be_measured_is_refused(make):
    with pytest.raises(ValueError, match="must"):
        make()


class Echo:
    """A server that says what it must, and then two tokens of its own."""

    def generate(self, body):
        self.body = body
        said = [*body["sampling_params"]["custom_params"][FORCED], 71, 72]
        return Reply("", said, 1, 0, {}, [])


def joined(text):
    """A tokenizer to which a full stop and a line break are one token."""
    return [ord(letter) if letter != "#" else 5 for letter in text.replace(".\n", "#")]


def test_a_token_that_joins_document_and_question_is_fed_with_the_question():
    tokens = SimpleNamespace(ids=joined, text=lambda ids: "".join(map(chr, ids)))
    task = NeedleTask(Asking(tokens, "decoded"), Grid("chain", (9,), 1))
    server = Echo()
    question = Question("Ada.", "\nWho?", ("GH",), "words right", 2)
    outcome = task.ask(question, FULL, server)
    custom = server.body["sampling_params"]["custom_params"]
    assert server.body["input_ids"] + custom[FORCED] == joined("Ada.\nWho?")
    assert server.body["input_ids"] == joined("Ada") and outcome.said == "GH"
    assert outcome.value == 1 and server.body["sampling_params"]["max_new_tokens"] == 7
