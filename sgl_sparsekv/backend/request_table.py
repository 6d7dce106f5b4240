"""Options and reading statistics of running requests, by row of `req_to_token`.

SGLang hands the scheduled requests to `ForwardBatch.init_new` and to nothing behind it, so this is
where a request's options are picked up, in launch order. The table lives on the host: a plan is
host work.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from itertools import count
from typing import Any
from weakref import WeakKeyDictionary, WeakValueDictionary

import numpy as np

from ..config import REQUEST_KEY, RequestOptions, ServerOptions, parse_request_options
from ..errors import RequestOptionError
from ..selection.policy import IntArray
from ..views import RequestView
from .prefix_order import Prefix, prefix_of
from .telemetry import RARELY, RequestTelemetry


@dataclass(eq=False)
class RequestEntry:
    """One request.

    Attributes:
        rid: SGLang's request id; "" for rows that no request owns (dummy batches).
        options: what applies to it.
        rejected: why its own options were not taken, or None.
        serial: tells it from any other request, one of the same id included.
        decode_steps: sparse or dense decode steps done.
        tokens_attended: tokens read, summed over decode steps and layers, as far as plans knew.
        tokens_by_data: tokens read beyond that, summed over KV heads as well.
        heads: KV heads that these were summed over.
        tokens_in_context: tokens there were to read, summed likewise.
        retractions: times it was retracted when it was last seen.
        exact: first tokens whose keys were made by prefill or by steps that read everything.
        tokens_from_sparser: tokens of its prefix hit that a request which reads less had generated;
            None: not known.
        tokens_freed: tokens of its row that were given back while it ran.
        extended: its first extend step was seen, so a longer prefix is its own work.
        view: what it keeps, if its method keeps views.
        prefix: what its prompt begins with; known where the table orders rows.
        telemetry: what its decode steps covered and cost; filled only if it is watched.
        indexed: whole segments of its row that a device was told to build records of, by kind.
    """

    rid: str
    options: RequestOptions
    rejected: str | None = None
    serial: int = -1
    decode_steps: int = 0
    tokens_attended: int = 0
    tokens_by_data: int = 0
    heads: int = 1
    tokens_in_context: int = 0
    retractions: int = 0
    exact: int = 0
    tokens_from_sparser: int | None = None
    tokens_freed: int = 0
    extended: bool = False
    view: RequestView | None = None
    prefix: Prefix = ()
    telemetry: RequestTelemetry = field(default_factory=RequestTelemetry)
    indexed: dict[str, int] = field(default_factory=dict)

    def start_over(self) -> None:
        """Its output was thrown away: what its decode steps read and covered is told of none."""
        self.decode_steps = self.tokens_attended = self.tokens_in_context = 0
        self.tokens_by_data = 0
        self.telemetry = RequestTelemetry(self.telemetry.every)
        if self.view is not None:
            self.view = self.view.unmade()

    @property
    def watched(self) -> bool:
        """Whether it is measured what its steps cover: it asked for that, or for a coverage."""
        return self.options.telemetry or self.options.coverage is not None

    @property
    def _shows_view(self) -> bool:
        return self.options.telemetry or self.options.kept_map

    @property
    def packs(self) -> bool:
        """Whether all that its steps read is what a view lists, so that the rest can be freed."""
        return self.view is not None and not self.watched and self.options.dense_layers == 0

    def read(self, tokens: int, heads: int) -> None:
        """Count what a layer read that no plan knew of, `tokens` summed over its KV heads."""
        self.tokens_by_data += tokens
        self.heads = heads

    def offered(self, length: int) -> int:
        """How many of its first `length` tokens others may read."""
        if self.view is not None and self.view.packed is not None:
            length = min(length, self.view.packed.begin)
        return length if self.options.share_generated else min(length, self.exact)

    def report(self) -> dict[str, Any]:
        """What was applied to the request and what it read, for the response's metadata."""
        return {
            **asdict(self.options),
            "decode_steps": self.decode_steps,
            "tokens_attended": self.tokens_attended + round(self.tokens_by_data / self.heads),
            "tokens_in_context": self.tokens_in_context,
            "tokens_from_sparser": self.tokens_from_sparser,
            "tokens_freed": self.tokens_freed,
            "telemetry": self.telemetry.report(self.decode_steps) if self.watched else None,
            "view": self.view.told() if self.view and self._shows_view else None,
            "rejected": self.rejected,
        }


class RequestTable:
    """Entries of requests, and which request owns which row; other rows get the defaults.

    An entry outlives its row: a retracted request comes back on another row and goes on counting
    (from zero where SGLang throws its output away, that of a prompt of embeddings), and a finished
    one is still reported. Entries go when their request object does.
    """

    def __init__(self, server: ServerOptions) -> None:
        self.server = server
        self.decode_rows: frozenset[int] | None = None
        """Rows of the batch being launched that decode inside an extend batch; None: no such."""
        self.launched: IntArray | None = None
        """Rows of the batch being launched, in its order; None for batches SGLang makes up."""
        self.orders = False
        """Whether the backend asks what prompts begin with."""
        self.view_of: Callable[[RequestOptions, int, int], RequestView | None] | None = None
        """Makes the view of a request from its options, tokens of its prompt and of a block; None:
        one that a CPU serves."""
        self.settle: Callable[[], None] | None = None
        """Gives requests what was measured of their steps and has come since; None: nothing is on
        its way."""
        self.rejected_count = 0
        self._entries: WeakKeyDictionary[object, RequestEntry] = WeakKeyDictionary()
        self._by_row: dict[int, RequestEntry] = {}
        self._by_rid: WeakValueDictionary[str, RequestEntry] = WeakValueDictionary()
        self._serials = count()

    def note(self, row: int, request: Any) -> None:
        """Bind a row to a request; options that do not parse are dropped, counted and reported.

        The front end has answered 400 to those already, unless it runs in a process that loads no
        plugins; raising here would end the scheduler.

        Args:
            row: row of `req_to_token`.
            request: SGLang's `Req`: hashable by identity.
        """
        entry = self.enter(request)
        if request.retraction_count != entry.retractions:
            entry.retractions = request.retraction_count
            entry.indexed.clear()  # its row is another, or has other pages
            if request.input_embeds is not None:  # output tokens cannot follow embeddings again
                entry.start_over()
        self._by_row[row] = entry

    def enter(self, request: Any) -> RequestEntry:
        """The entry of a request, which need not have run yet."""
        known = self._entries.get(request)
        return self._enter(request) if known is None else known

    def _enter(self, request: Any) -> RequestEntry:
        entry = RequestEntry(request.rid, self.server.request, serial=next(self._serials))
        params = request.sampling_params.custom_params
        raw = params.get(REQUEST_KEY) if isinstance(params, dict) else None
        if raw is not None:
            try:
                entry.options = parse_request_options(raw, self.server)
            except RequestOptionError as error:
                entry.rejected = str(error)
                self.rejected_count += 1
        prompt, block = len(request.origin_input_ids), entry.options.unit_size
        entry.view = (self.view_of or RequestView.of)(entry.options, prompt, block)
        if self.orders:
            entry.prefix = prefix_of(request.origin_input_ids)
        if entry.watched and not entry.options.telemetry:
            entry.telemetry = RequestTelemetry(RARELY)
        self._entries[request] = entry
        self._by_rid[request.rid] = entry
        return entry

    def entry(self, row: int) -> RequestEntry:
        """The entry of a row."""
        known = self._by_row.get(row)
        return known if known is not None else RequestEntry("", self.server.request)

    def of(self, request: Any) -> RequestEntry | None:
        """The entry of a request, or None when it never ran."""
        return self._entries.get(request)

    def record(self, row: int, attended: int, in_context: int, length: int) -> None:
        """Add one decode step's reading of `length` tokens, summed over layers."""
        entry = self.entry(row)
        entry.exact = min(entry.exact, length - 1)
        if attended == in_context and entry.exact == length - 1:
            entry.exact = length
        entry.decode_steps += 1
        entry.tokens_attended += attended
        entry.tokens_in_context += in_context

    def report(self, rid: str) -> dict[str, Any] | None:
        """Report of a request that runs or has just finished."""
        entry = self._by_rid.get(rid)
        if entry is None:
            return None
        if self.settle is not None:
            self.settle()
        return entry.report()

    def is_decode(self, rows: IntArray) -> np.ndarray[Any, np.dtype[np.bool_]]:
        """Which of the rows of an extend batch decode."""
        if not self.decode_rows:
            return np.zeros(len(rows), dtype=bool)
        return np.isin(rows, np.fromiter(self.decode_rows, dtype=np.int64))


_active: RequestTable | None = None


def active_table() -> RequestTable | None:
    """The table of this scheduler process, or None when our backend does not run in it."""
    return _active


def activate(server: ServerOptions) -> RequestTable:
    """Create this process's table."""
    global _active
    _active = RequestTable(server)
    return _active


def note_batch(result: object, *args: Any, **kwargs: Any) -> None:
    """After `ForwardBatch.init_new`: pick up the options of the batch's requests."""
    table = _active
    if table is None:
        return
    batch = args[1] if len(args) > 1 else kwargs["batch"]
    runner = args[2] if len(args) > 2 else kwargs["model_runner"]
    if runner.is_draft_worker:
        return
    rows = [(req.kv.req_pool_idx, req) for req in batch.reqs or ()]
    for row, req in rows:
        if row is not None:
            table.note(row, req)
    table.launched = np.array([-1 if row is None else row for row, _ in rows], dtype=np.int64)
    mixed = batch.decoding_reqs if batch.forward_mode.is_mixed() else None
    table.decode_rows = frozenset(req.kv.req_pool_idx for req in mixed) if mixed else None
    if batch.forward_mode.is_extend():
        for row, req in rows:
            if row is not None and row not in (table.decode_rows or ()):
                table.entry(row).exact = req.extend_end
