"""The grid, cell by cell: every question of a document by every method before the next document."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .client import Client, EvaluationStopped, Reply, ServerInfo
from .forced import KEY, processor
from .needles import Builder, Haystack, Needle
from .results import Cell, Results
from .settings import Settings


class NeedleRun:
    """One run against one server."""

    def __init__(
        self,
        settings: Settings,
        client: Client,
        build: Builder,
        ids: Callable[[str], list[int]],
        say: Callable[[str], None],
    ) -> None:
        """Prepare.

        Args:
            settings: what is asked.
            client: the server.
            build: makes the documents.
            ids: text to token ids, special tokens included.
            say: told after each cell.
        """
        self._settings, self._client, self._build = settings, client, build
        self._ids, self._say = ids, say

    def run(self, results: Results, about: dict[str, Any]) -> None:
        """Ask what `results` lacks, and add each answer when it is there.

        `about` goes into the header of the results. Documents stay in the radix cache while their
        questions are asked.

        Raises:
            EvaluationStopped: the server cannot go on.
            ValueError: a length is too short for its needles.
        """
        s, done = self._settings, {cell.key for cell in results.cells}
        total = len(s.lengths) * s.samples * s.depths * len(s.methods)
        left = [
            (length, sample)
            for length in s.lengths
            for sample in range(s.samples)
            if any((m, length, d, sample) not in done for m in s.methods for d in range(s.depths))
        ]
        for length, sample in left:
            haystack = self._build(length, s.depths, s.seed + sample)
            for method in s.methods:
                for needle in haystack.needles:
                    if (method, length, needle.depth, sample) not in done:
                        cell = self._ask(haystack, needle, method, length, sample)
                        results.add(cell, about)
                        self._say(_progress(cell, len(results.cells), total))

    def _ask(
        self, haystack: Haystack, needle: Needle, method: str, length: int, sample: int
    ) -> Cell:
        start = time.monotonic()
        body = self._body(haystack, needle, method)
        reply = self._client.generate(body)
        said = self._answer(needle, reply)
        return Cell(
            method=method,
            length=length,
            depth=needle.depth,
            sample=sample,
            place=round(needle.place, 4),
            right=needle.found_in(said),
            expected=needle.answer,
            said=said,
            budget=reply.report["budget"],
            prompt_tokens=reply.prompt_tokens,
            cached_tokens=reply.cached_tokens,
            tokens_attended=reply.report["tokens_attended"],
            tokens_in_context=reply.report["tokens_in_context"],
            decode_steps=reply.report["decode_steps"],
            seconds=round(time.monotonic() - start, 3),
        )

    def _body(self, haystack: Haystack, needle: Needle, method: str) -> dict[str, Any]:
        custom: dict[str, Any] = {"sparsekv": self._settings.options(method)}
        sampling: dict[str, Any] = {"temperature": 0, "ignore_eos": True, "custom_params": custom}
        body = {"sampling_params": sampling}
        if self._settings.protocol == "prefilled":
            sampling["max_new_tokens"] = needle.tokens
            return {**body, "text": haystack.text + needle.question}
        document, both = self._ids(haystack.text), self._ids(haystack.text + needle.question)
        if both[: len(document)] != document:
            raise EvaluationStopped(
                "the tokenizer joins document and question; use --protocol prefilled"
            )
        forced = both[len(document) :]
        custom[KEY] = forced
        sampling["max_new_tokens"] = len(forced) + needle.tokens
        return {**body, "input_ids": document, "custom_logit_processor": processor()}

    def _answer(self, needle: Needle, reply: Reply) -> str:
        """What was said, without the question that was fed in decode."""
        if self._settings.protocol == "prefilled":
            return reply.text.strip()
        question, said = needle.question.split(), reply.text.split()
        if said[: len(question)] != question:
            raise EvaluationStopped(f"the server did not follow the question, it said {said[:9]}")
        return " ".join(said[len(question) :])


def check_server(settings: Settings, info: ServerInfo) -> None:
    """Refuse what the server cannot answer before anything is asked.

    Raises:
        EvaluationStopped: a length is beyond its context, or it takes no forced tokens.
    """
    longest, limit = max(settings.lengths), info.context_length
    if limit is not None and longest > limit:
        raise EvaluationStopped(
            f"lengths must be at most the model's context of {limit} tokens, got {longest}"
        )
    if settings.protocol == "decoded" and not info.forcing:
        raise EvaluationStopped(
            "protocol decoded needs a server started with --enable-custom-logit-processor"
        )


def write_picture(results: Results, settings: Settings) -> Path | None:
    """Draw the cells there are beside their file; None if there are none."""
    from .picture import needle_picture

    if not results.cells:
        return None
    path = results.path.with_suffix(".svg")
    path.write_text(needle_picture(results.cells, settings.depths))
    return path


def _progress(cell: Cell, number: int, total: int) -> str:
    mark = "right" if cell.right else "wrong"
    return f"{number} of {total}: {cell.method}, {cell.length:,} tokens, row {cell.depth}: {mark}"
