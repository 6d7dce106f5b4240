"""The questions as SGLang frontend programs: forks of one document, one by one and all at once."""

import time
from collections.abc import Callable, Sequence
from typing import Any

import sglang as sgl
from sglang.lang.ir import SglSamplingParams

from ..serving.frontend import SparseKVEndpoint
from .answer import Answer, RequestFailed
from .scenario import Question, Scenario


class TimedEndpoint(SparseKVEndpoint):
    """Notes when each token of an answer arrives; every generation is streamed."""

    def generate(self, s: Any, sampling_params: SglSamplingParams) -> tuple[str, dict[str, Any]]:
        """See `SparseKVEndpoint.generate`; the second result has `arrivals` in seconds."""
        text, meta_info, arrivals = "", dict[str, Any](), []
        for piece, meta_info in self.generate_stream(s, sampling_params):
            arrivals.append((time.perf_counter(), int(meta_info["completion_tokens"])))
            text += piece
        return text, {**meta_info, "arrivals": arrivals}


@sgl.function  # type: ignore[untyped-decorator]
def ask_in_forks(
    s: Any, document: str, prompts: Sequence[str], tokens: int, done: Callable[[], None]
) -> None:
    """One state, forked per question; a fork starts when the one before it has answered."""
    s += document
    forks = s.fork(len(prompts))
    for fork, prompt in zip(forks, prompts, strict=True):
        fork += prompt
        fork += sgl.gen("answer", max_tokens=tokens, temperature=0, ignore_eos=True)
        finished(fork)
        done()
    s["answers"] = [finished(fork) for fork in forks]


@sgl.function  # type: ignore[untyped-decorator]
def ask(s: Any, document: str, prompt: str, tokens: int) -> None:
    """One question of a batch."""
    s += document + prompt
    s += sgl.gen("answer", max_tokens=tokens, temperature=0, ignore_eos=True)


def finished(state: Any) -> tuple[str, dict[str, Any]]:
    """Answer and metadata of a program, once it is there.

    Raises:
        RequestFailed: the server refused or went away.
    """
    meta_info = state.get_meta_info("answer")
    if meta_info is None:
        raise RequestFailed(f"a question was not answered: {state.error()}")
    return state["answer"], meta_info


def ask_all(
    endpoint: TimedEndpoint, scenario: Scenario, done: Callable[[], None] = lambda: None
) -> list[Answer]:
    """Ask every question: the first half one after the other, the second half together.

    The cache is flushed first, so that each run starts with the document alone in it.

    Args:
        endpoint: the server, with the request options of the run.
        scenario: document and questions.
        done: called after each answer of the first half.
    """
    endpoint.flush_cache()
    endpoint.cache_prefix(scenario.document)
    half = (len(scenario.questions) + 1) // 2
    first, second = scenario.questions[:half], scenario.questions[half:]
    answers = _one_by_one(endpoint, scenario, first, done)
    return answers + _together(endpoint, scenario, second, half)


def _one_by_one(
    endpoint: TimedEndpoint,
    scenario: Scenario,
    questions: Sequence[Question],
    done: Callable[[], None],
) -> list[Answer]:
    state = ask_in_forks.run(
        document=scenario.document,
        prompts=[question.prompt for question in questions],
        tokens=scenario.answer_tokens,
        done=done,
        backend=endpoint,
    )
    return [
        _answer(i, False, text, meta_info) for i, (text, meta_info) in enumerate(state["answers"])
    ]


def _together(
    endpoint: TimedEndpoint, scenario: Scenario, questions: Sequence[Question], start: int
) -> list[Answer]:
    if not questions:
        return []
    arguments = [
        {
            "document": scenario.document,
            "prompt": question.prompt,
            "tokens": scenario.answer_tokens,
        }
        for question in questions
    ]
    states = ask.run_batch(arguments, backend=endpoint, num_threads=len(arguments))
    return [_answer(start + i, True, *finished(state)) for i, state in enumerate(states)]


def _answer(index: int, concurrent: bool, text: str, meta_info: dict[str, Any]) -> Answer:
    return Answer(
        question=index,
        concurrent=concurrent,
        text=text,
        rid=str(meta_info["id"]),
        cached_tokens=int(meta_info["cached_tokens"]),
        arrivals=tuple(meta_info["arrivals"]),
        report=meta_info.get("sparsekv"),
    )
