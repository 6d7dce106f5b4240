"""What is asked for: to go on with a text, to write about it, to quote it, to call a tool."""

from collections.abc import Callable
from functools import lru_cache
from typing import Any

from ...tokens import Tokens
from ..real.document import Document, digest, real_document
from ..real.wording import ask_for, spread
from ..texts import Text
from .judging import Anything, Quotation, ToolCall
from .tools import QUESTION, call, toolbox
from .wanted import Wanted

TASKS = ("continue", "write", "copy", "call")
ROOM = 384
"""Tokens kept free beside document and output: a question, how its answer begins, a template."""
BLANK = "\n\n"
"""Before an answer, where no chat template opens it."""
WRITE = (
    "Write a long tutorial for beginners about the subjects of the text above. Explain each of "
    "them in paragraphs of your own, give an example of each, and do not stop early."
)


class RealPrompts:
    """Prompts out of real documents; `continue`, `write` and `copy` share theirs."""

    tasks: tuple[str, ...] = TASKS

    def __init__(self, tokens: Tokens, chat: tuple[str, str], new_tokens: int) -> None:
        """Prepare.

        Args:
            tokens: tokenizer of the model.
            chat: text before and after a user's turn.
            new_tokens: of an output, at most.
        """
        self._tokens, (self._before, self._after) = tokens, chat
        self._new = new_tokens
        self._document = lru_cache(2)(self._read)

    def settings(self) -> dict[str, Any]:
        """See `Prompts`."""
        return {"documents": digest(), "chat": bool(self._after)}

    def make(self, task: str, length: int, seed: int, count: int) -> list[Wanted]:
        """See `Prompts`."""
        size = self._document_size(length)
        if task == "call":
            return self._calls(size, seed, count)
        document = self._document(size, seed)
        made: dict[str, Callable[[Document, int], list[Wanted]]] = {
            "continue": self._continue,
            "write": self._write,
            "copy": self._copy,
        }
        return made[task](document, count)

    def texts(self, length: int, seed: int, samples: int) -> list[Text]:
        """Prompts of so many tokens at most, each of another document, and what is to follow them.

        A quotation (the longest that can be asked for), an essay and a text to go on with, by
        turns.

        Raises:
            ValueError: there are to be none, or a document would have no room.
        """
        if samples < 1:
            raise ValueError(f"samples must be at least 1, got {samples}")
        found = []
        for nth in range(samples):
            kind = ("copy", "write", "continue")[nth % 3]
            name = f"{kind} {length} {seed + nth}"
            if kind == "copy":
                document = self._document(self._document_size(length + self._new), seed + nth)
                one = ask_for(max(document.passages, key=lambda passage: len(passage.rest)))
                prompt = self._prompt(document.text, one.question) + one.start
                found.append(Text(name, prompt, one.answer))
            else:
                (wanted,) = self.make(kind, length + self._new, seed + nth, 1)
                found.append(Text(name, wanted.prompt, wanted.follow))
        return found

    def _document_size(self, length: int) -> int:
        size = length - self._new - ROOM
        if size < 1:
            raise ValueError(
                f"lengths must be above {self._new + ROOM} for outputs of {self._new} tokens, "
                f"got {length}"
            )
        return size

    def _read(self, size: int, seed: int) -> Document:
        return real_document(self._tokens.ids, size, self._new, seed)

    def _continue(self, document: Document, _: int) -> list[Wanted]:
        ids = self._tokens.ids(document.goes_on)[: self._new]
        goes_on = str(self._tokens.tokenizer.decode(ids, skip_special_tokens=True))
        return [Wanted(self._before + document.text, goes_on, Anything())]

    def _write(self, document: Document, _: int) -> list[Wanted]:
        return [Wanted(self._prompt(document.text, WRITE), "", Anything())]

    def _copy(self, document: Document, count: int) -> list[Wanted]:
        fitting = tuple(p for p in document.passages if self._size(p.rest) <= self._new)
        asked = [ask_for(passage) for passage in spread(fitting, count)]
        return [
            Wanted(
                prompt=self._prompt(document.text, one.question) + one.start,
                follow=one.answer,
                judge=Quotation(one.answer),
                expected=one.answer,
                stop=one.stop,
                most=self._size(one.answer),
                place=one.place,
            )
            for one in asked
        ]

    def _calls(self, size: int, seed: int, count: int) -> list[Wanted]:
        box = toolbox(self._tokens.ids, size, count, seed)
        found = []
        for tool, place in box.asked:
            start, answer = call(tool)
            prompt = self._prompt(box.text, QUESTION.format(name=tool.name)) + start
            judge = ToolCall(start, tool.name, tool.parameters)
            most = 2 * self._size(answer)  # spaces and line breaks are no mistakes
            found.append(Wanted(prompt, answer, judge, answer, ("\n\n",), most, place))
        return found

    def _prompt(self, document: str, question: str) -> str:
        return f"{self._before}{document}{question}{self._after or BLANK}"

    def _size(self, text: str) -> int:
        """Tokens, with some to spare for another way of saying it and for an end."""
        return len(self._tokens.ids(text)) + 8
