"""Short histories, one per way in which page metadata can go stale; each ends in a decode step."""

from collections.abc import Callable
from typing import Any

from .host import Host
from .invariants import Checker
from .steps import Live, StepDied

PAGE = 16
PAGES = 24
SPARSE = {"method": "quest", "budget": 64, "sink": 1, "window": 1, "dense_layers": 0}


CODED = SPARSE | {"method": "clusterkv"}
"""A segment is four pages; `prompt` fills one and the half of another."""


class Script:
    """A host of which every move is checked; `move` names the one that ran last."""

    def __init__(self, core: str) -> None:
        self.host = Host(core, PAGE, PAGES)
        self.checker = Checker(self.host)
        self.move = ""

    def __getattr__(self, name: str) -> Callable[..., Any]:
        operation = getattr(self.host, name)

        def checked(*args: Any, **kwargs: Any) -> Any:
            self.move = name
            result = operation(*args, **kwargs)
            self.checker.check()
            return result

        return checked

    def serve(
        self, symbol: int, *, steps: int = 1, how: dict[str, Any] | None = None, **options: Any
    ) -> Live:
        """A request of 6 pages and one token is prefilled and decodes."""
        namespace = options.pop("namespace", None)
        live: Live = self.start(prompt(symbol), SPARSE | options, namespace)
        self.prefill([live], 1000, **(how or {}))
        for _ in range(steps):
            self.decode([live])
        return live


def prompt(symbol: int) -> list[int]:
    """6 pages that begin with a token of their own, and one token more."""
    return [symbol, *([1] * PAGE + [symbol] * PAGE) * 3]


def used_once(script: Script, pages: int = PAGES - 3) -> None:
    """Seal pages of the pool, nearly all that there are, then free them."""
    live = script.start([3] * (pages * PAGE) + [0], SPARSE)
    script.prefill([live], 1000)
    script.decode([live])
    script.release(live, insert=True)
    script.evict(PAGES * PAGE)


def reuse(script: Script) -> None:
    """Pages are freed and written again."""
    used_once(script)
    script.serve(2)


def grow(script: Script) -> None:
    """A decoding request fills a page token by token."""
    script.serve(2, steps=PAGE + 2)


def chunks(script: Script) -> None:
    """A prefill in chunks that end within pages."""
    live = script.start(prompt(2), SPARSE)
    while not live.decoding:
        script.prefill([live], PAGE + 9)
    script.decode([live])


def load_back(script: Script) -> None:
    """A prefix hit on pages that no forward step wrote, in a fresh pool."""
    script.load_back(prompt(2))
    script.serve(2)


def load_back_reuse(script: Script) -> None:
    """As `load_back`, into pages that had another life."""
    used_once(script)
    load_back(script)


def foreign_prefill(script: Script) -> None:
    """Another backend prefills into pages that had another life."""
    used_once(script)
    script.serve(2, how={"foreign": True})


def retraction(script: Script) -> None:
    """A request is retracted, others use its pages, it comes back."""
    live = script.serve(2)
    script.retract(live)
    used_once(script)
    script.prefill([live], 1000)
    script.decode([live])


def died(script: Script) -> None:
    """A step dies between two layers; the pages it had begun to summarise stay in the tree."""
    script.load_back(prompt(2))
    live = script.serve(2, steps=0)
    try:
        script.host.decode([live], die_after=0)
    except StepDied:
        script.release(live, insert=False)
    script.serve(2)


def padding(script: Script) -> None:
    """Dummy rows write to page 0."""
    live = script.serve(2, steps=0)
    script.decode([live], padding=2)


def fused_store(script: Script) -> None:
    """K is stored in front of attention, not by it."""
    used_once(script)
    live = script.serve(2, steps=0, how={"fused": True})
    script.decode([live], fused=True)


def moved(script: Script) -> None:
    """A sealed private page is moved to another place."""
    used_once(script)
    live = script.serve(2, steps=PAGE + 2)
    script.move_private_page(live, 0)
    script.decode([live])


def flushed(script: Script) -> None:
    """The cache is flushed and every page used again."""
    used_once(script)
    script.serve(3)
    script.flush(new_weights=False)
    script.serve(2)


def new_weights(script: Script) -> None:
    """Other weights: the same tokens have other keys."""
    used_once(script)
    live = script.serve(2)
    script.flush(new_weights=True)
    script.prefill([live], 1000)
    script.decode([live])


def taken_back(script: Script) -> None:
    """A page has filled when its last tokens are taken back and others written in their place."""
    live = script.serve(2, steps=PAGE - 1)
    script.take_back(live, 3)
    for _ in range(6):
        script.decode([live])


def namespaces(script: Script) -> None:
    """The same prompt under two adapters shares nothing."""
    lives = [script.serve(2, steps=0), script.serve(2, steps=0, namespace="adapter")]
    script.decode(lives)


def row_reuse(script: Script) -> None:
    """A row is handed to another request while scores of the former are still held."""
    live = script.serve(2, reselect_every=4)
    script.release(live, insert=False)
    script.serve(3, reselect_every=4)


def periods(script: Script) -> None:
    """Two requests select every few steps, together and not."""
    lives = [script.serve(2, reselect_every=3), script.serve(3, reselect_every=5)]
    for _ in range(4):
        script.decode(lives)
    script.decode(lives[:1])
    script.decode(lives)


def period_retracted(script: Script) -> None:
    """A request comes back, on the row that it had, while what it held before would still serve."""
    live = script.serve(2, reselect_every=200)
    row = live.row
    script.retract(live)
    script.prefill([live], 1000)
    assert live.row == row
    script.decode([live])


def late_step(script: Script) -> None:
    """Two requests decode; one gives its row back before its last step is launched.

    The other has the last row of all, which is what a row number of -1 would stand for.
    """
    lives = [script.serve(2), script.serve(2)]
    script.zombie(lives[1], insert=False, late=True)
    script.decode(lives[:1])


def segment_branch(script: Script) -> None:
    """Two requests leave one text inside a segment; each fills it in its own way."""
    shared = [2] * (2 * PAGE)
    lives = []
    for symbol in (1, 3):
        live = script.start([*shared, *[symbol] * (3 * PAGE)], CODED)
        script.prefill([live], 1000)
        script.decode([live])
        lives.append(live)
    script.decode(lives)


def segment_reuse(script: Script) -> None:
    """Pages with records are freed and filled again."""
    live = script.start([3] * ((PAGES - 3) * PAGE) + [0], CODED)
    script.prefill([live], 1000)
    script.decode([live])
    script.release(live, insert=True)
    script.evict(PAGES * PAGE)
    script.serve(2, steps=2, **CODED)


def segment_grows(script: Script) -> None:
    """A decoding request fills a segment token by token."""
    live = script.start(prompt(2)[: 4 * PAGE - 3], CODED)
    script.prefill([live], 1000)
    for _ in range(6):
        script.decode([live])


def segment_taken_back(script: Script) -> None:
    """The last tokens of a whole segment are taken back and others written in their place."""
    live = script.start(prompt(2)[: 4 * PAGE - 3], CODED)
    script.prefill([live], 1000)
    for _ in range(3):
        script.decode([live])
    script.take_back(live, 2)
    for _ in range(5):
        script.decode([live])


def segment_load_back(script: Script) -> None:
    """A prefix hit on a segment that no forward step wrote."""
    script.load_back(prompt(2))
    script.serve(2, steps=2, **CODED)


def segment_died(script: Script) -> None:
    """A step dies between two layers while it builds a record; its pages stay in the tree."""
    script.load_back(prompt(2))
    live = script.serve(2, steps=0, **CODED)
    try:
        script.host.decode([live], die_after=0)
    except StepDied:
        script.release(live, insert=False)
    script.serve(2, steps=2, **CODED)


def segment_second_batch(script: Script) -> None:
    """Prompts that fill two segments each, in one batch."""
    lives = [script.start([i, *prompt(3), *[2] * (2 * PAGE)], CODED) for i in (0, 1)]
    script.prefill(lives, 1000)
    script.decode(lives)


NARROWED = SPARSE | {"method": "snapkv", "observation_window": 20, "renew_every": 3, "pooling": 3}
NARROWED |= {"kept_map": True}
"""Views of 64 tokens for prompts of 97, made anew twice in eight steps."""
PACKED = NARROWED | {"budget": 48}
"""Three pages of six."""
PACKED_ONCE = PACKED | {"renew_every": 0}


def views_on_one_prefix(script: Script) -> None:
    """A dense request and four views decode together upon one prefix, cold and then on a hit."""
    methods = ("full", "snapkv", "kvcompress", "adakv", "h2o")
    lives = [script.serve(2, steps=0, **(NARROWED | {"method": name})) for name in methods]
    for _ in range(8):
        script.decode(lives)
    for live in lives[1:]:
        script.release(live, insert=True)
    script.decode(lives[:1])
    again = script.serve(2, steps=8, **NARROWED)
    script.decode([lives[0], again])


def view_row_reuse(script: Script) -> None:
    """A row is handed to another request; each has a view of its own."""
    live = script.serve(2, steps=2, **NARROWED)
    script.release(live, insert=False)
    script.serve(3, steps=2, **NARROWED)


def view_moved(script: Script) -> None:
    """A private page of a running request is moved to another place."""
    live = script.serve(2, steps=PAGE + 3, **NARROWED)
    script.move_private_page(live, 1)
    script.decode([live])


def view_retracted(script: Script) -> None:
    """Retracted right behind its prefill, and again in the middle of its answer."""
    live = script.serve(2, steps=0, **NARROWED)
    for steps in (4, 5):
        script.retract(live)
        used_once(script)
        script.prefill([live], 1000)
        for _ in range(steps):
            script.decode([live])


def view_chunks(script: Script) -> None:
    """A prompt in chunks that are shorter than the window of its last queries, and on a hit in one
    and all the rest."""
    for chunks in ([PAGE - 3] * 8, [PAGE - 3, 1000]):
        live = script.start(prompt(2), NARROWED)
        for chunk in chunks:
            script.prefill([live], chunk)
        for _ in range(4):
            script.decode([live])
        script.release(live, insert=True)


def packed_alone(script: Script) -> None:
    """A request is packed, goes on until it is packed again, and ends; its text is asked anew."""
    live = script.serve(2, steps=2, **PACKED)
    script.pack()
    used_once(script, PAGES // 2)
    for _ in range(2 * PAGE):
        script.decode([live])
    script.pack()
    script.decode([live])
    script.release(live, insert=True)
    script.release(script.serve(2, steps=2, **PACKED), insert=True)


def packed_late(script: Script) -> None:
    """Pages of an answer, long filled, take what is kept."""
    live = script.serve(2, steps=4 * PAGE, **PACKED)
    script.pack()
    script.decode([live])


def packed_on_a_prefix(script: Script) -> None:
    """Of two requests on one prefix that both narrow, one asks more and is packed behind it."""
    first = script.serve(2, steps=2, **PACKED)
    second = script.start([*prompt(2)[:-1], *[3] * (3 * PAGE), 0], SPARSE | PACKED)
    script.prefill([second], 1000)
    for _ in range(2):
        script.decode([first, second])
    script.pack()
    script.release(first, insert=True)
    script.evict(PAGES * PAGE)
    for _ in range(PAGE):
        script.decode([second])
    script.pack()
    for _ in range(2):
        script.decode([second])


def packed_behind_an_answer_in_the_tree(script: Script) -> None:
    """A request is retracted in its answer and comes back, so that the tree has that too; then it
    is packed, and what the tree had is dropped."""
    live = script.serve(2, steps=2, **PACKED_ONCE)
    for _ in range(2 * PAGE):
        script.decode([live])
    script.retract(live)
    script.prefill([live], 1000)
    script.decode([live])
    script.pack()
    script.evict(PAGES * PAGE)
    used_once(script, PAGES // 2)
    for _ in range(2):
        script.decode([live])
    script.release(live, insert=True)


def packed_and_retracted(script: Script) -> None:
    """A packed request is retracted, its pages and row go to others, and it comes back."""
    live = script.serve(2, steps=2, **PACKED)
    script.pack()
    script.decode([live])
    script.retract(live)
    other = script.serve(3, steps=1)
    script.release(other, insert=False)
    used_once(script)
    script.prefill([live], 1000)
    for _ in range(3):
        script.decode([live])
