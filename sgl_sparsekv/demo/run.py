"""The demo from start to end: two acts, figures, files."""

import json
import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..evaluation.model import Model
from ..tooling.progress import Progress
from .checks import Check, check_all
from .exact import exact_act
from .options import FETCHED, NONE, DemoOptions
from .real.act import RealAct, real_act, script_for
from .real.model import Fetching, NoModel
from .real.result import table as real_table
from .report import page, picture
from .result import as_json, table
from .scenario import Scenario
from .score import RunScore
from .servers import PAGE_SIZE


@dataclass(frozen=True)
class Outcome:
    """What a demo found.

    Attributes:
        runs: figures of the first act, in the order they were taken.
        checks: the conditions of both acts and whether they hold.
        result: the content of `demo.json`.
        real: the second act.
    """

    runs: tuple[RunScore, ...]
    checks: tuple[Check, ...]
    result: dict[str, Any]
    real: RealAct

    @property
    def exit_code(self) -> int:
        """0 if every condition holds, else 1."""
        return 0 if all(check.passed for check in self.checks) else 1


def run_demo(scenario: Scenario, options: DemoOptions, progress: Progress) -> Outcome:
    """Play both acts, write `demo.json`, `demo.html` and `demo.svg`.

    The second act's model is fetched while the first one's servers start. Where it cannot be had,
    the first act is all there is.

    Raises:
        ServerFailed: a server could not be started, or went away.
        RequestFailed: a question was refused.
        ValueError: the second act's model does not suit; said before the first one starts.
    """
    start = time.monotonic()
    if options.real not in (FETCHED, NONE):
        script_for(Model(Path(options.real)))
    with ExitStack() as stack:
        fetching = None
        if options.real == FETCHED:
            fetching = stack.enter_context(Fetching(options.out / FETCHED))
        runs, log = exact_act(scenario, options, progress)
        real = _second(fetching, options, progress)
    seconds = time.monotonic() - start
    checks = [*check_all(scenario, runs, PAGE_SIZE, options.method), *real.checks]
    result = as_json(scenario, runs, checks, seconds, log.lost, real)
    html = page(scenario, runs, checks, log, result["environment"], real, options.method)
    (options.out / "demo.json").write_text(json.dumps(result, indent=1) + "\n")
    (options.out / "demo.html").write_text(html)
    (options.out / "demo.svg").write_text(picture(scenario, runs, log, options.method))
    return Outcome(tuple(runs), tuple(checks), result, real)


def report_lines(outcome: Outcome, out: Path) -> str:
    """What the demo prints at its end."""
    failed = [check for check in outcome.checks if not check.passed]
    lines = ["", table(outcome.runs), "", *real_table(outcome.real), ""]
    lines += [f"failed: {check.text} (found: {check.found})" for check in failed]
    if not failed:
        lines.append(f"all {len(outcome.checks)} conditions hold")
    lines.append(f"see {out / 'demo.html'} and {out / 'demo.json'}")
    return "\n".join(lines)


def _second(fetching: Fetching | None, options: DemoOptions, progress: Progress) -> RealAct:
    """The second act, or why there is none."""
    if options.real == NONE:
        return RealAct(NONE, skipped="it was not asked for")
    try:
        folder = Path(options.real) if fetching is None else fetching.wait()
    except NoModel as error:
        progress.say(f"the second act is left out: {error}")
        return RealAct(FETCHED, skipped=str(error))
    return real_act(folder, options, progress)
