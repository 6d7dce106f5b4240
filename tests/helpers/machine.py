"""Random operations on a `Host`, checked after every one of them."""

from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from hypothesis import HealthCheck, seed, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from sgl_sparsekv.config import parse_request_options
from sgl_sparsekv.selection import load_method
from sgl_sparsekv.views import RequestView

from .host import Host, OutOfPages
from .invariants import Checker, check_views_left, require
from .memory import METHODS
from .steps import Live, StepDied
from .toy_model import SYMBOLS

STEPS = 60
"""Longest script; short enough to shrink."""
MAX_LIVE = 6
MAX_TOKENS = 384


def _served(options: dict[str, Any]) -> dict[str, Any]:
    """Options without what the method cannot do."""
    method = load_method(options["method"])
    if not method.tells_shares:
        options = options | {"coverage": None, "budget_split": "even"}
    return options | ({"estimate": None} if method.narrows else {})


OPTIONS = st.fixed_dictionaries(
    {
        "method": st.sampled_from(METHODS),
        "budget": st.sampled_from((48, 64, 96, 0.25, 1.0)),
        "coverage": st.sampled_from((None, None, 0.5, 0.9)),
        "budget_split": st.sampled_from(("even", "even", "heads")),
        "sink": st.sampled_from((0, 1, 16)),
        "window": st.sampled_from((0, 3, 16)),
        "dense_layers": st.sampled_from((0, 0, 1)),
        "reselect_every": st.sampled_from((1, 1, 3)),
        "estimate": st.sampled_from((None, None, True, False)),
        "observation_window": st.sampled_from((1, 8, 32)),
        "pooling": st.sampled_from((1, 5)),
        "renew_every": st.sampled_from((0, 2, 5, 128)),
        "kept_map": st.booleans(),
        "telemetry": st.booleans(),
        "share_generated": st.booleans(),
    }
).map(_served)
BLOCKS = st.lists(st.integers(0, 2 * SYMBOLS - 1), min_size=1, max_size=5)
"""A prompt: blocks of equal tokens, so that whole pages of different prompts are the same."""
SELDOM = st.sampled_from((*[False] * 11, True))
NAMESPACES = st.sampled_from((None, None, None, "adapter"))


class CacheMachine(RuleBasedStateMachine):
    """SGLang's scheduler moves in any order; `configure` binds the tree core and page size."""

    core: str
    page_size: int
    counts: Counter[str]
    seen: Counter[str]
    """What happened to segments."""
    kind: str = "grouped"
    changed: Callable[[Any], None] | None = None
    """Applied to the freshly made host: how a mutant is installed."""

    def __init__(self) -> None:
        super().__init__()
        self.host: Host

    @initialize(
        pages=st.integers(8, 32),
        poison=st.booleans(),
        dtype=st.sampled_from((torch.float32, torch.bfloat16)),
        records=st.sampled_from((None, 1, 1)),
    )
    def make(self, pages: int, poison: bool, dtype: torch.dtype, records: int | None) -> None:
        """A pool of `pages` pages, more of them where they are small."""
        pages *= max(1, 16 // self.page_size)
        self.host = Host(
            self.core, self.page_size, pages, dtype, poison, kind=self.kind, records=records
        )
        self.checker = Checker(self.host)
        if self.changed is not None:
            type(self).changed(self.host)  # type: ignore[misc]

    def some(self, which: int, decoding: bool) -> list[Live]:
        """A subset of the requests in that state, chosen by the bits of `which`."""
        there = [live for live in self.host.live if live.decoding is decoding]
        if decoding:
            there = [live for live in there if len(live.paths) < MAX_TOKENS]
        chosen = [live for i, live in enumerate(there) if which >> i & 1]
        return chosen or there[:1]

    def did(self, name: str) -> None:
        """Count an operation."""
        self.counts[name] += 1

    def attempt(self, name: str, operation: Callable[[], Any], fails: bool = False) -> None:
        """Run what may find no pages (somebody is then retracted) or nothing to do (0)."""
        self.host.fail_next_alloc = fails
        try:
            if operation() == 0:
                return
        except OutOfPages:
            self.did("out of pages")
            holding = [live for live in self.host.live if live.req.kv.holds_kv]
            if holding:
                self.host.retract(holding[-1])
        self.did(name)

    def prompt(self, blocks: list[int], times: int = 1) -> list[int]:
        """Tokens: block b is half a page, or from `SYMBOLS` on a whole page, of one token.

        All of it `times` times over, so that segments fill.
        """
        size = self.page_size
        tokens: list[int] = []
        for block in blocks:
            whole = block >= SYMBOLS
            tokens += [block % SYMBOLS] * (size if whole else size // 2)
        return [*(tokens * times)[:MAX_TOKENS], blocks[-1] % SYMBOLS]

    # -- rules -----------------------------------------------------------------------------

    @precondition(lambda self: len(self.host.live) < MAX_LIVE)
    @rule(
        blocks=BLOCKS,
        times=st.sampled_from((1, 1, 4)),
        options=OPTIONS,
        namespace=NAMESPACES,
        twice=st.booleans(),
        chunk=st.sampled_from((0, 1.3, 100, 100, 100)),
    )
    def start(
        self,
        blocks: list[int],
        times: int,
        options: dict[str, Any],
        namespace: str | None,
        twice: bool,
        chunk: float,
    ) -> None:
        """A request arrives, or two with the same prompt; most are scheduled at once."""
        for _ in range(1 + twice):
            self.host.start(self.prompt(blocks, times), options, namespace)
            self.did("start")
        lives = self.host.live[-1 - twice :]
        if chunk:
            size = max(1, int(chunk * self.page_size))
            self.attempt("prefill plain", lambda: self.host.prefill(lives, size))

    @precondition(lambda self: self.host.live and len(self.host.live) < MAX_LIVE)
    @rule(which=st.integers(0, 5), cut=st.integers(1, MAX_TOKENS), options=OPTIONS)
    def fork(self, which: int, cut: int, options: dict[str, Any]) -> None:
        """A request arrives whose prompt is the beginning of another's text."""
        parent = self.host.live[which % len(self.host.live)]
        prompt = [*parent.tokens[:cut], cut % SYMBOLS][:MAX_TOKENS]
        self.host.start(prompt, options, parent.req.extra_key)
        self.did("fork")

    @precondition(lambda self: self.host.live and len(self.host.live) < MAX_LIVE)
    @rule(which=st.integers(0, 5), nth=st.integers(0, 3), part=st.floats(0.1, 0.9), options=OPTIONS)
    def branch(self, which: int, nth: int, part: float, options: dict[str, Any]) -> None:
        """A request leaves another's text inside a segment, fills that segment, and is served."""
        size = self.host.index.cluster_segment
        parent = self.host.live[which % len(self.host.live)]
        first = nth % max(1, len(parent.tokens) // size) * size
        kept = parent.tokens[: first + int(part * size)]
        other = (parent.tokens[len(kept) % len(parent.tokens)] + 1) % SYMBOLS
        prompt = [*kept, *[other] * (first + size - len(kept)), other][:MAX_TOKENS]
        self.host.start(prompt, options, parent.req.extra_key)
        live = self.host.live[-1]
        self.attempt("branch", lambda: self.host.prefill([live], MAX_TOKENS + 1))

    @precondition(lambda self: self.some(0, False))
    @rule(
        which=st.integers(0, 63),
        pages=st.sampled_from((0.3, 1.0, 1.7, 100.0)),
        how=st.sampled_from(("plain", "plain", "plain", "foreign", "fused", "mixed", "dies")),
        padding=st.integers(0, 2),
        fails=SELDOM,
    )
    def prefill_chunk(self, which: int, pages: float, how: str, padding: int, fails: bool) -> None:
        """The next chunk of some prompts; equal prompts in one batch end as duplicates."""
        lives, size = self.some(which, False), max(1, int(pages * self.page_size))
        mixed = self.some(which >> 2, True) if how == "mixed" else []

        def step() -> None:
            try:
                self.host.prefill(
                    lives,
                    size,
                    foreign=how == "foreign",
                    fused=how == "fused",
                    padding=0 if how == "foreign" else padding,
                    mixed=mixed,
                    die_after=0 if how == "dies" else None,
                )
            except StepDied:
                for live in lives:
                    self.host.release(live, insert=False)

        self.attempt(f"prefill {how}", step, fails)

    @precondition(lambda self: self.some(0, True))
    @rule(
        which=st.integers(0, 63),
        padding=st.integers(0, 2),
        how=st.sampled_from(("plain", "plain", "plain", "plain", "fused", "dies")),
        fails=SELDOM,
    )
    def decode(self, which: int, padding: int, how: str, fails: bool) -> None:
        """One decode step of some requests."""
        lives = self.some(which, True)

        def step() -> None:
            try:
                die_after = 0 if how == "dies" else None
                self.host.decode(lives, padding=padding, fused=how == "fused", die_after=die_after)
            except StepDied:
                for live in lives:
                    self.host.release(live, insert=False)

        self.attempt(f"decode {how}", step, fails)

    @precondition(lambda self: self.some(0, True))
    @rule(which=st.integers(0, 63), steps=st.integers(2, 9))
    def decode_on(self, which: int, steps: int) -> None:
        """Several decode steps of one batch, each checked."""
        for _ in range(steps):
            lives = self.some(which, True)
            if not lives:
                return
            self.attempt("decode plain", lambda lives=lives: self.host.decode(lives))
            self.checker.check()

    @precondition(lambda self: any(live.req.kv.holds_kv for live in self.host.live))
    @rule(
        which=st.integers(0, 5),
        kind=st.sampled_from(("finish", "abort", "retract", "retract")),
        insert=st.booleans(),
    )
    def end(self, which: int, kind: str, insert: bool) -> None:
        """A request ends, or starts over for want of memory."""
        holding = [live for live in self.host.live if live.req.kv.holds_kv]
        live = holding[which % len(holding)]
        if not live.decoding and kind != "retract":
            kind = "abort"
        if kind == "retract":
            self.host.retract(live)
        else:
            self.host.release(live, insert=live.decoding and (insert or kind == "finish"))
        self.did(kind)

    @precondition(lambda self: self.some(0, True))
    @rule(which=st.integers(0, 63), insert=st.booleans(), late=st.booleans())
    def zombie(self, which: int, insert: bool, late: bool) -> None:
        """A request ends and runs one more step."""
        live = self.some(which, True)[0]
        self.attempt("zombie", lambda: self.host.zombie(live, insert=insert, late=late))

    @precondition(lambda self: self.some(0, True))
    @rule(which=st.integers(0, 63), tokens=st.integers(0, 63))
    def take_back(self, which: int, tokens: int) -> None:
        """A request writes other tokens where some of its own were."""
        live = self.some(which, True)[0]
        most = self.host.most_to_take_back(live)
        if most:
            count = 1 + tokens % most
            self.attempt("take back", lambda: self.host.take_back(live, count))

    @precondition(lambda self: self.host.live)
    @rule(
        kind=st.sampled_from((*["load back"] * 4, *["evict"] * 4, "flush", "new weights")),
        blocks=BLOCKS,
        namespace=NAMESPACES,
    )
    def memory(self, kind: str, blocks: list[int], namespace: str | None) -> None:
        """Pages come from a host tier unseen, the tree drops some, or everything is flushed."""
        if kind == "load back":
            tokens = self.prompt(blocks)
            self.attempt(kind, lambda: self.host.load_back(tokens, namespace))
            return
        if kind == "evict":
            self.host.evict((blocks[0] + 1) * self.page_size)
        else:
            self.host.flush(new_weights=kind == "new weights")
        self.did(kind)

    @precondition(lambda self: self.some(0, True))
    @rule(which=st.integers(0, 63))
    def move_page(self, which: int) -> None:
        """A private page is moved within the pool."""
        if self.host.move_private_page(self.some(which, True)[0], which):
            self.did("move")

    @precondition(lambda self: self.some(0, True))
    @rule(which=st.integers(0, 63), options=OPTIONS)
    def select(self, which: int, options: dict[str, Any]) -> None:
        """A running request is asked with another budget and method, alone."""
        live = self.some(which, True)[0]
        entry = self.host.backend.table.entry(live.row)
        if entry.rid == live.req.rid and self.host.packed(live) is None:
            asked = self.host.served(options | {"reselect_every": 1, "estimate": None})
            entry.options = parse_request_options(asked, self.host.options)
            if entry.view is not None:
                entry.view.end()
            view_of = self.host.backend.table.view_of or RequestView.of
            prompt = len(live.req.origin_input_ids)
            entry.view = view_of(entry.options, prompt, self.host.geometry.unit_size)
            live.as_cold = False
        self.attempt("select", lambda: self.host.decode([live]))

    @precondition(lambda self: self.host.packing and self.some(0, True))
    @rule()
    def pack(self) -> None:
        """The pool is short: pages that views leave over go back."""
        if self.host.pack():
            self.did("pack")

    @invariant()
    def holds(self) -> None:
        """Everything that must hold after every operation."""
        if hasattr(self, "checker"):
            self.checker.check()

    def teardown(self) -> None:
        """With nobody left, nothing is held."""
        if not hasattr(self, "checker"):
            return
        self.seen["branched segments"] += self.checker.branched
        self.seen["rows by records"] += self.checker.indexed
        for records in self.host.metadata.records.values():
            self.seen["records built"] += records.built
            self.seen["records evicted"] += records.evicted
            self.seen["records refused"] += records.refused
        for live in list(self.host.live):
            self.host.release(live, insert=live.decoding)
        self.checker.check()
        self.host.evict(self.host.pages * self.page_size)
        free = len(self.host.allocator.get_all_free_pages())
        require(free == self.host.pages, "leak", f"{free} of {self.host.pages} pages are free")
        check_views_left(self.host)


class FusedMachine(CacheMachine):
    """The same over the GPU's backend, where a gate makes some decode steps dense."""

    kind = "fused"

    @rule(needed=st.sampled_from((0, 0, 0, 10**6)))
    def gate(self, needed: int) -> None:
        """From now on decode steps are sparse, or dense."""
        self.host.backend.gate.needed = needed
        self.did("gate")


def run_machine(machine: type[CacheMachine], operations: int, fresh: int | None) -> None:
    """Run scripts until `operations` operations were done, with a fixed or a fresh seed."""
    done_before = sum(machine.counts.values())
    while (missing := operations - sum(machine.counts.values()) + done_before) > 0:
        chosen = settings(
            max_examples=max(2, missing // STEPS),
            stateful_step_count=STEPS,
            derandomize=False,
            deadline=None,
            database=None,
            print_blob=False,
            suppress_health_check=list(HealthCheck),
        )
        machine.TestCase.settings = chosen
        number = (fresh or 0) + sum(machine.counts.values())
        run_state_machine_as_test(seed(number)(machine), settings=chosen)
