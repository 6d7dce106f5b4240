"""Long outputs: followed, to see how far each reading strays along them, and said freely."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from ...client import Client
from ...settings import Reading
from ...tokens import Tokens
from ..base import Outcome, Part
from ..comparing import Comparison, Prompt, Straying, split
from ..likeness import GRAM, repeated
from .wanted import Prompts, Wanted

QUARTERS = 4


@dataclass(frozen=True)
class Grid:
    """What is asked.

    Attributes:
        tasks: of the prompts that there are, in order.
        lengths: tokens of prompt and output together.
        new_tokens: of an output, at most.
        count: quotations or calls about one document.
        samples: documents per length.
        seed: of the first.
    """

    tasks: tuple[str, ...]
    lengths: tuple[int, ...]
    new_tokens: int
    count: int = 2
    samples: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        if self.new_tokens < 2 * QUARTERS:
            raise ValueError(f"tokens must be at least {2 * QUARTERS}, got {self.new_tokens}")
        for name in ("count", "samples"):
            if (value := getattr(self, name)) < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")


@dataclass(frozen=True)
class Output:
    """An output that is asked for, in tokens."""

    wanted: Wanted
    prompt: Prompt
    new_tokens: int


class GenerateTask:
    """Every output is followed in each way of reading, and then said freely in it.

    Its number is the divergence along what was followed; verdicts on what was said are beside it.
    """

    name = "generate"
    forces = True
    apart = False

    def __init__(self, tokens: Tokens, prompts: Prompts, grid: Grid) -> None:
        self._tokens, self._prompts, self.grid = tokens, prompts, grid
        self._comparison = Comparison()

    @property
    def longest(self) -> int:
        """See `Task`."""
        return max(self.grid.lengths)

    def settings(self) -> dict[str, Any]:
        """See `Task`."""
        return {**vars(self.grid), "gram": GRAM, **self._prompts.settings()}

    def parts(self) -> Sequence[Part]:
        """See `Task`; tasks about the same document follow each other."""
        grid = self.grid
        return [
            Part(task, length, sample, grid.count if task in ("copy", "call") else 1)
            for length in grid.lengths
            for sample in range(grid.samples)
            for task in grid.tasks
        ]

    def build(self, part: Part) -> Sequence[Output]:
        """See `Task`."""
        grid, first = self.grid, self._number(part)
        made = self._prompts.make(part.task, part.length, grid.seed + part.sample, grid.count)
        return [self._output(wanted, first + nth, part) for nth, wanted in enumerate(made)]

    def ask(self, question: Output, reading: Reading, client: Client) -> Outcome:
        """See `Task`."""
        wanted = question.wanted
        found = self._comparison.stray(question.prompt, reading, client)
        said = self._say(question, reading, client)
        return Outcome(
            metric="kl",
            value=found.value,
            expected=(wanted.expected,) if wanted.expected else (),
            said=said,
            prompt_tokens=found.reply.prompt_tokens,
            cached_tokens=found.reply.cached_tokens,
            report=found.reply.report,
            place=None if wanted.place is None else round(wanted.place, 4),
            detail={
                **found.detail(),
                "repeated": repeated(self._tokens.ids(said)),
                **wanted.judge(said),
                "along": along(found),
            },
        )

    def _number(self, part: Part) -> int:
        """Of a part's first output; no two outputs of a run share one."""
        place = self.parts().index(part)
        return sum(before.questions for before in self.parts()[:place])

    def _output(self, wanted: Wanted, number: int, part: Part) -> Output:
        most = min(wanted.most or self.grid.new_tokens, self.grid.new_tokens)
        name = f"{part.task} {part.length} {part.sample}"
        if not wanted.follow:
            prompt = Prompt(number, self._tokens.ids(wanted.prompt), None, most, name)
        else:
            ids, text = split(self._tokens, wanted.prompt, wanted.follow)
            prompt = Prompt(number, ids, text[:most], most, name)
        return Output(wanted, prompt, most)

    def _say(self, question: Output, reading: Reading, client: Client) -> str:
        """What is said freely, greedily."""
        sampling: dict[str, Any] = {"max_new_tokens": question.new_tokens, "temperature": 0}
        if question.wanted.stop:
            sampling["stop"] = list(question.wanted.stop)
        sampling["custom_params"] = {"sparsekv": reading.options()}
        body = {"input_ids": question.prompt.ids, "sampling_params": sampling}
        return client.generate(body).text


def along(found: Straying) -> dict[str, list[float]]:
    """Means by quarter of what was followed: divergence in nats, and agreement."""
    steps = len(found.kl)
    edges = [steps * i // QUARTERS for i in range(QUARTERS + 1)]
    quarters = [slice(a, b) for a, b in pairwise(edges) if b > a]
    return {
        "KL": [_mean(found.kl[quarter]) for quarter in quarters],
        "top-1": [_mean(found.same[quarter]) for quarter in quarters],
    }


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
