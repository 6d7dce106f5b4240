"""Questions about a document, put to a server and judged by what it says."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ..client import Client, Reply
from ..forced import FORCED, processor
from ..kept import KEPT, share_kept
from ..settings import Reading
from ..tokens import Tokens, shared
from .base import Outcome, Part

PROTOCOLS = ("prefilled", "decoded")


@dataclass(frozen=True)
class Question:
    """One question about a document.

    The prompt is document, question and start, one after the other with nothing between.

    Attributes:
        document: text that is read first; questions of one part share it as a prefix.
        question: text that follows it.
        references: the answers that are right.
        metric: name of the judgement.
        max_new_tokens: asked for after the start.
        start: how the answer begins, given to the model; "" for nothing.
        stop: texts that end the answer.
        place: share of the document before what is looked for, 0 to 1; None if there is no such.
        classes: all labels of a classification.
        chat: it is a user's turn where the model has a chat template; else text to go on with.
        spans: where in the document what is looked for stands, of which it is told whether a view
            kept it: first character, and one past the last.
    """

    document: str
    question: str
    references: tuple[str, ...]
    metric: str
    max_new_tokens: int
    start: str = ""
    stop: tuple[str, ...] = ()
    place: float | None = None
    classes: tuple[str, ...] = ()
    chat: bool = True
    spans: tuple[tuple[int, int], ...] = ()


@dataclass(frozen=True)
class Asking:
    """How questions are put.

    Attributes:
        tokens: the tokenizer of the model.
        protocol: `prefilled`: the question ends the prompt; `decoded`: it is fed in decode.
        chat: text before and after a user's turn; empty texts for a model without a template.
    """

    tokens: Tokens
    protocol: str = "prefilled"
    chat: tuple[str, str] = ("", "")

    def __post_init__(self) -> None:
        if self.protocol not in PROTOCOLS:
            raise ValueError(f"protocol must be prefilled or decoded, got {self.protocol!r}")


class QuestionTask(ABC):
    """A task whose questions are answered in words; says how its answers are judged."""

    name: str
    apart = False

    def __init__(self, asking: Asking) -> None:
        self.asking = asking

    @property
    def forces(self) -> bool:
        """See `Task`."""
        return self.asking.protocol == "decoded"

    @property
    def longest(self) -> int:
        """See `Task`; of tasks whose data decides, they say."""
        return max(part.length for part in self.parts())

    @abstractmethod
    def settings(self) -> dict[str, Any]:
        """See `Task`."""

    @abstractmethod
    def parts(self) -> Sequence[Part]:
        """See `Task`."""

    @abstractmethod
    def build(self, part: Part) -> Sequence[Question]:
        """See `Task`."""

    @abstractmethod
    def judge(self, question: Question, said: str) -> float:
        """How right `said` is, 0 to 1."""

    def ask(self, question: Question, reading: Reading, client: Client) -> Outcome:
        """See `Task`."""
        body, forced = self._body(question, reading)
        said = self._said(question, forced, reply := client.generate(body))
        return Outcome(
            metric=question.metric,
            value=self.judge(question, said),
            expected=question.references,
            said=said,
            prompt_tokens=reply.prompt_tokens,
            cached_tokens=reply.cached_tokens,
            report=reply.report,
            place=None if question.place is None else round(question.place, 4),
            detail=self._kept(question, reply),
        )

    def _kept(self, question: Question, reply: Reply) -> dict[str, Any]:
        """How much of what is looked for a view kept, where the answer tells."""
        view = reply.report.get("view")
        if not question.spans or view is None:
            return {}
        before, rest = self._around(question)
        tokens, text = self.asking.tokens, before + question.document + rest
        wanted = [
            token
            for first, end in question.spans
            for token in tokens.spelling(text, len(before) + first, len(before) + end)
        ]
        return {KEPT: round(share_kept(view, wanted), 4)}

    def _around(self, question: Question) -> tuple[str, str]:
        """Text of a prompt before and behind the document."""
        before, after = self.asking.chat if question.chat else ("", "")
        return before, question.question + after + question.start

    def _body(self, question: Question, reading: Reading) -> tuple[dict[str, Any], int]:
        """A request, and how many tokens of its answer are not the model's own."""
        before, rest = self._around(question)
        document = before + question.document
        told = {"kept_map": True} if question.spans else {}
        custom: dict[str, Any] = {"sparsekv": {**reading.options(), **told}}
        sampling: dict[str, Any] = {"temperature": 0, "custom_params": custom}
        body: dict[str, Any] = {"sampling_params": sampling}
        if not self.forces:
            sampling["max_new_tokens"] = question.max_new_tokens
            if question.stop:
                sampling["stop"] = list(question.stop)
            return {**body, "text": document + rest}, 0
        # A tokenizer may join the document's last letters and the question's first: then that token
        # is fed in decode.
        head, whole = self.asking.tokens.ids(document), self.asking.tokens.ids(document + rest)
        kept = shared(head, whole)
        head, forced = whole[:kept], whole[kept:]
        custom[FORCED] = forced
        sampling["max_new_tokens"] = len(forced) + question.max_new_tokens
        # What would end an answer may stand in the question, too; the answer is cut here instead.
        sampling["ignore_eos"] = True
        body |= {"input_ids": head, "custom_logit_processor": processor()}
        return body, len(forced)

    def _said(self, question: Question, forced: int, reply: Reply) -> str:
        """The answer, without a question that was fed in decode and what follows its end."""
        if not forced:
            return reply.text
        said = self.asking.tokens.text(reply.output_ids[forced:])
        ends = [said.find(stop) for stop in question.stop if stop in said]
        return said[: min(ends)] if ends else said
