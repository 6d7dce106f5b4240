"""Options and reading statistics of running requests, by row of `req_to_token`.

SGLang hands the scheduled requests to `ForwardBatch.init_new` and to nothing behind it, so this is
where a request's options are picked up, in launch order. The table lives on the host: a plan is
host work.
"""

from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from ..config import REQUEST_KEY, RequestOptions, ServerOptions, parse_request_options
from ..errors import RequestOptionError
from ..selection.policy import IntArray


@dataclass
class RequestEntry:
    """One running request.

    Attributes:
        rid: SGLang's request id; "" for rows that no request owns (dummy batches).
        options: what applies to it.
        rejected: why its own options were not taken, or None.
        decode_steps: sparse or dense decode steps done.
        tokens_attended: tokens read, summed over decode steps and layers.
        tokens_in_context: tokens there were to read, summed likewise.
        extended: its first extend step was seen, so a longer prefix is its own work.
    """

    rid: str
    options: RequestOptions
    rejected: str | None = None
    decode_steps: int = 0
    tokens_attended: int = 0
    tokens_in_context: int = 0
    extended: bool = False

    def report(self) -> dict[str, Any]:
        """What was applied to the request and what it read, for the response's metadata."""
        return {
            **asdict(self.options),
            "decode_steps": self.decode_steps,
            "tokens_attended": self.tokens_attended,
            "tokens_in_context": self.tokens_in_context,
            "rejected": self.rejected,
        }


@dataclass
class RequestTable:
    """Entries by row; rows without one (dummy and warm-up batches) get the server's defaults."""

    server: ServerOptions
    entries: dict[int, RequestEntry] = field(default_factory=dict)
    decode_rows: frozenset[int] | None = None
    """Rows of the batch being launched that decode inside an extend batch; None: no such batch."""
    rejected_count: int = 0
    _row_of: dict[str, int] = field(default_factory=dict)

    def note(self, row: int, rid: str, custom_params: object) -> None:
        """Bind a row to a request; options that do not parse are dropped, counted and reported.

        The front end has answered 400 to those already, unless it runs in a process that loads no
        plugins; raising here would end the scheduler.
        """
        known = self.entries.get(row)
        if known is not None and known.rid == rid:
            return
        if known is not None:
            self._row_of.pop(known.rid, None)
        entry = RequestEntry(rid, self.server.request)
        raw = custom_params.get(REQUEST_KEY) if isinstance(custom_params, dict) else None
        if raw is not None:
            try:
                entry.options = parse_request_options(raw, self.server)
            except RequestOptionError as error:
                entry.rejected = str(error)
                self.rejected_count += 1
        previous = self._row_of.get(rid)
        if previous is not None and self.entries[previous].rid == rid:
            carried = self.entries.pop(previous)  # retracted and scheduled again on another row
            carried.options, entry = entry.options, carried
        self.entries[row] = entry
        self._row_of[rid] = row

    def entry(self, row: int) -> RequestEntry:
        """The entry of a row."""
        known = self.entries.get(row)
        return known if known is not None else RequestEntry("", self.server.request)

    def record(self, row: int, attended: int, in_context: int) -> None:
        """Add one decode step's reading, summed over layers."""
        entry = self.entries.get(row)
        if entry is not None:
            entry.decode_steps += 1
            entry.tokens_attended += attended
            entry.tokens_in_context += in_context

    def report(self, rid: str) -> dict[str, Any] | None:
        """Report of a request that runs or has just finished."""
        row = self._row_of.get(rid)
        return None if row is None else self.entries[row].report()

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
    for req in batch.reqs or ():
        row = req.kv.req_pool_idx
        if row is not None:
            table.note(row, req.rid, req.sampling_params.custom_params)
    mixed = batch.decoding_reqs if batch.forward_mode.is_mixed() else None
    table.decode_rows = frozenset(req.kv.req_pool_idx for req in mixed) if mixed else None
