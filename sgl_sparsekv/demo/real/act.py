"""The second act from start to end: servers, prompts, figures."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ...evaluation.client import Client, EvaluationStopped
from ...evaluation.model import Model
from ...evaluation.settings import Reading
from ...evaluation.tasks.base import Outcome
from ...evaluation.tasks.fidelity import FidelityTask
from ...evaluation.tasks.texts import Text
from ...evaluation.tokens import Tokens
from ...tooling.progress import Progress
from ...tooling.room import KEPT, answered
from ...tooling.servers import ServerProcess, serve
from ..answer import RequestFailed
from ..checks import Check
from ..options import DemoOptions
from ..servers import DENSE, PAGE_SIZE, SPARSE, Sizes, pair
from .checks import check_real
from .model import FOLDER_NAMES
from .saying import Saying, say
from .score import RealRun, score_real
from .script import CONTEXT, Script, write_script

ALSO = ("pqcache", "residual_pq")
"""Beside the demo's method: on ordinary text the nearest to dense at the same budget."""


@dataclass(frozen=True)
class RealAct:
    """What the second act found.

    Attributes:
        model: which one it was.
        script: what it read; None if the act was left out.
        runs: figures, in the order they are shown.
        checks: its conditions.
        skipped: why it was left out; "" if it was not.
    """

    model: str
    script: Script | None = None
    runs: tuple[RealRun, ...] = ()
    checks: tuple[Check, ...] = ()
    skipped: str = ""


def real_act(
    folder: Path, options: DemoOptions, progress: Progress, context: int = CONTEXT
) -> RealAct:
    """Start both servers, ask everything in every way of reading.

    Args:
        folder: of a model with a chat template.
        options: budget, method and kernels.
        progress: told what is going on.
        context: tokens of the text, at most.

    Raises:
        ServerFailed: a server could not be started, or went away.
        RequestFailed: a prompt was refused.
        ValueError: the model takes no prompt that long.
    """
    model = Model(folder)
    name = FOLDER_NAMES.get(folder.name, folder.name)
    script = script_for(model, context)
    readings = sparse_runs(options)
    # The text once, and what is said about it.
    sizes = Sizes(folder, script.longest, script.longest + 8 * PAGE_SIZE)
    forcing = ("--enable-custom-logit-processor",)
    methods = tuple(dict.fromkeys(str(values["method"]) for values in readings.values()))
    progress.say(f"{name}, {len(script.shared):,} tokens of {script.source}")
    specs = pair(sizes, options.device, methods, both=forcing)
    with serve(specs, options.out / "real", progress) as servers:
        stage = _Stage(script, model.tokens, servers, progress)
        try:
            runs = stage.play(readings)
        except EvaluationStopped as error:
            servers[SPARSE].check()  # one that died explains more than the connection
            raise RequestFailed(str(error)) from error
    return RealAct(name, script, runs, tuple(check_real(script, runs, PAGE_SIZE)))


def script_for(model: Model, context: int = CONTEXT) -> Script:
    """What a model is asked.

    Raises:
        ValueError: it has no chat template, or takes no prompt that long.
    """
    script = write_script(model.tokens, context)
    limit = model.context_length
    if limit is not None and script.longest > answered(limit):
        raise ValueError(
            f"the second act's model must take {script.longest} tokens, got a context of {limit}, "
            f"of which SGLang keeps {KEPT} free"
        )
    return script


def sparse_runs(options: DemoOptions) -> dict[str, dict[str, Any]]:
    """Request options by run; all others are the server's defaults."""
    named = dict.fromkeys((options.method, *ALSO, "streaming"))
    return {
        "full": {"method": "full", "budget": options.budget},
        **{name: {"method": name, "budget": options.budget} for name in named},
    }


class _Stage:
    """The servers, the script, and what dense said."""

    def __init__(
        self, script: Script, tokens: Tokens, servers: dict[str, ServerProcess], progress: Progress
    ) -> None:
        self._script, self._tokens, self._progress = script, tokens, progress
        self._servers = servers
        self._task: FidelityTask | None = None

    def play(self, readings: dict[str, dict[str, Any]]) -> tuple[RealRun, ...]:
        """Dense first: all others follow what it says; torch_native is shown in front of it."""
        url = self._servers[SPARSE].url
        self._say("reading the text")
        say(url, self._script.shared, 1, readings["full"])
        runs = []
        for name, options in readings.items():
            sayings = self._speak(name, url, options)
            if self._task is None:
                self._task = self._followed(sayings)
            runs.append(self._scored(name, options, sayings, Client(url)))
            if name == "full":
                runs.insert(0, self._native())
        return tuple(runs)

    def _native(self) -> RealRun:
        """SGLang's own backend goes on with the text; it would read it anew for each question."""
        server = self._servers[DENSE]
        first = self._script.passages[0]
        self._say(f"{DENSE}: reading the text, and going on")
        sayings = [self._spelled(say(server.url, first.ids, first.tokens))]
        run = self._scored(DENSE, {}, sayings, Client(server.url))
        server.stop()
        return run

    def _speak(self, name: str, url: str, options: dict[str, Any]) -> list[Saying]:
        sayings = []
        for passage in self._script.passages:
            self._progress.wait(f"{name}: {passage.title}")
            sayings.append(self._spelled(say(url, passage.ids, passage.tokens, options)))
        return sayings

    def _spelled(self, saying: Saying) -> Saying:
        return replace(saying, pieces=tuple(self._tokens.pieces(saying.ids)))

    def _followed(self, sayings: list[Saying]) -> FidelityTask:
        """Every run follows the text itself where it goes on, and dense's own answers."""
        texts = [
            Text(passage.title, passage.prompt, passage.goes_on or saying.text)
            for passage, saying in zip(self._script.passages, sayings, strict=True)
        ]
        longest = max(passage.tokens for passage in self._script.passages)
        return FidelityTask(self._tokens, texts, longest)

    def _scored(
        self, name: str, options: dict[str, Any], sayings: list[Saying], client: Client
    ) -> RealRun:
        assert self._task is not None
        reading = Reading(**options) if options else None
        outcomes: list[Outcome] = []
        for part, _ in zip(self._task.parts(), sayings, strict=False):
            self._progress.wait(f"{name}: how far from dense, {part.sample + 1} of {len(sayings)}")
            (prompt,) = self._task.build(part)
            outcomes.append(self._task.ask(prompt, reading, client))
        run = score_real(name, options, sayings, outcomes)
        self._say(f"{name}: {run.tokens_per_s:.1f} tokens/s, {run.agreement:.1%} as dense")
        return run

    def _say(self, text: str) -> None:
        self._progress.say(text)
