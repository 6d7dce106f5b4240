"""Following a server's selection trace, asynchronously or from a thread."""

import time
from collections.abc import AsyncIterator, Sequence
from typing import Any

import zmq

from .trace import TOPIC, SelectionRecord, decode


async def subscribe(
    endpoints: str | Sequence[str], rid: str | None = None
) -> AsyncIterator[SelectionRecord]:
    """Records as they arrive.

    Args:
        endpoints: where to connect; several for several ranks.
        rid: only this request.

    Raises:
        ValueError: an endpoint is not one ZMQ can connect to.
    """
    from zmq import asyncio as zmq_asyncio

    context = zmq_asyncio.Context()
    socket = _connect(context, endpoints)
    try:
        while True:
            record = decode((await socket.recv_multipart())[2])
            if rid is None or record.rid == rid:
                yield record
    finally:
        socket.close()
        context.term()


class TraceCollector:
    """Blocking counterpart of `subscribe`, for one thread at a time."""

    def __init__(self, endpoints: str | Sequence[str], rid: str | None = None) -> None:
        """Connect; see `subscribe`."""
        self.lost = 0
        """Messages that got lost on the way, by the gaps in their numbers."""
        self._rid = rid
        self._next: dict[tuple[int, int, int], int] = {}
        self._context: zmq.Context[Any] = zmq.Context()
        self._socket = _connect(self._context, endpoints)

    def receive(self, timeout: float) -> SelectionRecord | None:
        """The next record, or None when none comes within `timeout` seconds."""
        deadline = time.monotonic() + timeout
        while (left := deadline - time.monotonic()) > 0:
            if not self._socket.poll(max(1, int(left * 1000))):
                continue
            _, number, payload = self._socket.recv_multipart()
            record = decode(payload)
            rank = record.dp_rank, record.pp_rank, record.tp_rank
            self._note(rank, int.from_bytes(number, "big"))
            if self._rid is None or record.rid == self._rid:
                return record
        return None

    def close(self) -> None:
        """Disconnect."""
        self._socket.close()
        self._context.term()

    def __enter__(self) -> "TraceCollector":
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _note(self, rank: tuple[int, int, int], number: int) -> None:
        self.lost += max(0, number - self._next.get(rank, number))
        self._next[rank] = number + 1


def _connect(context: Any, endpoints: str | Sequence[str]) -> Any:
    socket = context.socket(zmq.SUB)
    socket.setsockopt(zmq.LINGER, 0)
    socket.setsockopt(zmq.SUBSCRIBE, TOPIC)
    for endpoint in [endpoints] if isinstance(endpoints, str) else endpoints:
        try:
            socket.connect(endpoint)
        except zmq.ZMQError as error:
            socket.close()
            raise ValueError(
                f"endpoint must be a ZMQ address such as tcp://127.0.0.1:5560, got {endpoint!r} "
                f"({error})"
            ) from None
    return socket
