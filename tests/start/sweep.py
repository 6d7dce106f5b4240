"""Runs command lines through the launcher and says of each how it ended."""

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from sgl_sparsekv.backend.starting import NET
from tests.helpers.launcher import Launcher

from .asking import COMMON, DENSE, OURS, UNCOMPARED, comparable, fault_of, requests
from .flags import EVERY_CHOICE, WAITS, Case
from .running import Ended, run
from .tiny import VOCABULARY

SERVED, REFUSED, UPSTREAM, LIKEWISE, NEITHER, FAULT = (
    "served",
    "refused by sparsekv",
    "refused by SGLang",
    "as with torch_native",
    "not served by torch_native either",
    "FAULT",
)
PATIENCE = 40.0
"""Seconds for a server that may wait for ever."""
TOGETHER = 8
"""Cases that share a server."""
ALONE = (
    *(*EVERY_CHOICE, "page_size", "chunked_prefill_size", "dtype", "device", "host"),
    *("tp_size", "pp_size", "dp_size", "dcp_size", "ep_size", "dwdp_size", "attn_dp_size"),
    *("attn_cp_size", "moe_dp_size", "tokenizer_worker_num", "detokenizer_worker_num"),
)
"""Fields that change what a server is."""
TRACE = "Traceback (most recent call last)"
STACK = "a stack trace"
"""How a fault is told that nothing excuses."""
UNHEARD = re.compile(r"^.*post-warmup freeze_gc failed\n(.*\n)*?requests\.exceptions\..*\n", re.M)
"""What `--skip-server-warmup` has SGLang say: it calls itself before it listens."""
CURE = re.compile(r"; add (--[\w-]+(?: [\w.]+)?)")
"""In a refusal that flags do away with."""
WEIGHTS = "loading shards"
"""In a log behind which a refusal of ours comes too late."""


@dataclass(frozen=True)
class Verdict:
    """How one case ended.

    Attributes:
        name: what was tried, as a user writes it.
        how: one of the words above.
        words: what the user reads, or what is wrong.
        seconds: that it took.
    """

    name: str
    how: str
    words: str
    seconds: float


class Sweep:
    """Judges cases by a dense server of the same model."""

    def __init__(self, launcher: Launcher, model: Path, flags: tuple[str, ...] = ()) -> None:
        """Nothing is started before the first case; `flags` are those of every server."""
        self.launcher, self.model, self.flags = launcher, model, flags
        self.bodies = requests(VOCABULARY)
        self._files = {file: file.read_bytes() for file in model.iterdir() if file.is_file()}
        self._dense: list[Any] | None = None

    def judge_all(self, cases: Sequence[Case]) -> Iterator[tuple[Case, Verdict]]:
        """Every case; those that change little start together, and apart where that fails."""
        for group in grouped(cases):
            yield from self._judge_together(group)

    def _judge_together(self, group: Sequence[Case]) -> Iterator[tuple[Case, Verdict]]:
        arguments = tuple(word for case in group for word in case.arguments)
        found = self.judge(" ".join(arguments), arguments)
        if found.how == SERVED:
            for case in group:
                yield case, replace(found, name=case.shown, seconds=found.seconds / len(group))
        elif len(group) == 1:
            yield group[0], self.excused(found, arguments)
        else:
            half = len(group) // 2
            yield from self._judge_together(group[:half])
            yield from self._judge_together(group[half:])

    def judge(self, name: str, arguments: tuple[str, ...]) -> Verdict:
        """Start ours with these arguments, and what is needed to judge its answers."""
        ended = self._start(OURS, arguments)
        if not ended.ready:
            how, words = refusal(ended)
            return Verdict(name, how, words, ended.seconds)
        fault = fault_of(ended.answers, self.dense)
        if fault is not None and fault.startswith(("other tokens", UNCOMPARED)):
            # The flag may change what the model says: then a dense server has it, too.
            fault = fault_of(ended.answers, self._start(DENSE, arguments).answers)
        if fault is not None:
            return Verdict(name, FAULT, f"{fault} {last_error(ended.log)}", ended.seconds)
        return Verdict(name, SERVED, "", ended.seconds)

    def excused(self, found: Verdict, arguments: tuple[str, ...]) -> Verdict:
        """The verdict in the light of a dense server with the same arguments.

        What that one does not answer either is SGLang's own; what it does is no refusal of SGLang.
        """
        if found.how not in (FAULT, UPSTREAM) or found.words.startswith(STACK):
            return found
        dense = self._start(DENSE, arguments)
        if comparable(dense.answers):
            words = found.words if found.how == FAULT else f"torch_native serves: {found.words}"
            return replace(found, how=FAULT, words=words)
        if found.how == UPSTREAM:
            return found
        how = str(dense.answers[-1:])[:200] if dense.ready else "not ready either"
        words = f"{found.words}; torch_native: {how} {last_error(dense.log)}"
        return replace(found, how=LIKEWISE, words=words.strip())

    def judge_family(self, name: str) -> Verdict:
        """The same for a model that SGLang itself may not serve on a CPU."""
        found = self.judge(name, ())
        if found.how == SERVED:
            return found
        if found.how == REFUSED:
            cure = CURE.search(found.words)
            return self._cured(found, tuple(cure[1].split())) if cure else found
        if found.how == UPSTREAM:
            return replace(found, how=FAULT if comparable(self.dense) else NEITHER)
        return self.excused(found, ())

    def _cured(self, found: Verdict, flags: tuple[str, ...]) -> Verdict:
        """A refusal that names flags to add, and whether these serve."""
        then = self.judge(found.name, flags)
        if then.how == SERVED:
            return replace(found, words=f"{found.words} (then served)")
        told = f"{found.words} (then {then.how}: {then.words})"
        return replace(found, words=told, how=FAULT if comparable(self.dense) else REFUSED)

    @property
    def dense(self) -> list[Any]:
        """What a dense server answers without further flags."""
        if self._dense is None:
            self._dense = self._start(DENSE, ()).answers
        return self._dense

    def _start(self, backend: tuple[str, ...], arguments: tuple[str, ...]) -> Ended:
        for file, data in self._files.items():
            # One of the flags deletes the model behind its start.
            if not file.exists():
                file.parent.mkdir(exist_ok=True)
                file.write_bytes(data)
        common = ("--model-path", str(self.model), *COMMON)
        patience = {"ready_within": PATIENCE} if set(arguments) & set(WAITS) else {}
        words = (*common, *self.flags, *backend, *arguments)
        return run(self.launcher, words, self.bodies, **patience)


def grouped(cases: Sequence[Case]) -> Iterator[list[Case]]:
    """Cases of different fields, a few at a time; then those that change much, alone."""
    rounds: dict[int, list[Case]] = {}
    seen: Counter[str] = Counter()
    single: list[Case] = []
    for case in cases:
        alone = case.field in ALONE or case.arguments[0] in WAITS
        if alone or len(case.arguments) > 2:
            single.append(case)
        else:
            # A field's second value stands with other fields' second values.
            rounds.setdefault(seen[case.field], []).append(case)
            seen[case.field] += 1
    for waiting in rounds.values():
        for first in range(0, len(waiting), TOGETHER):
            yield waiting[first : first + TOGETHER]
    yield from ([case] for case in single)


def refusal_in(words: str) -> tuple[str, str]:
    """Whose a last line is, and what it says."""
    if NET in words:
        return UPSTREAM, words.split(NET)[1].removesuffix(" (where: --log-level debug)")
    return (REFUSED if words.startswith("sparsekv: error: ") else UPSTREAM), words


def refusal(ended: Ended) -> tuple[str, str]:
    """How a server that was never ready ended, and in which words."""
    if ended.status is None:
        return FAULT, f"not ready after {ended.seconds:.0f} s"
    if TRACE in UNHEARD.sub("", ended.log):
        return FAULT, f"{STACK}: {last_error(ended.log)}"
    words = last_error(ended.log)
    if not words or ended.status != 2:
        return FAULT, f"ended with {ended.status} and {words or 'no word'}"
    how, words = refusal_in(words)
    if how == REFUSED and WEIGHTS in ended.log:
        return FAULT, f"refused behind the weights: {words}"
    return how, words


def last_error(log: str) -> str:
    """The last line that says what went wrong."""
    lines = [line for line in log.splitlines() if "error" in line.lower()]
    return lines[-1][:700].strip() if lines else ""
