"""Which units each decode step read, published for whoever wants to look (`sparsekv watch`).

Opt-in, and off the critical path: `publish` appends to a bounded queue and returns; a thread
serialises and sends; what does not fit is dropped and counted, as is what a slow reader cannot
take. Each message has three frames: the topic, the sequence number (8 bytes, big endian), and the
record as JSON. A gap in the numbers is a loss on the way.
"""

import threading
from collections import deque
from dataclasses import dataclass
from typing import Any

import orjson

from .metrics import ServingMetrics

TOPIC = b"sparsekv"


@dataclass(frozen=True)
class SelectionRecord:
    """One layer's selection for one request in one decode step.

    Attributes:
        step: decode step of the server.
        layer: number of the layer, in the model as a whole.
        rid: SGLang's request id.
        method: selection method.
        length: tokens in the request's context.
        units: logical units read, per KV head of this rank: nested lists, or an int array
            `[H, n]` padded with -1.
        unit_size: tokens per unit.
        tp_rank: tensor-parallel rank.
        dp_rank: data-parallel replica; 0 in records of before it was told.
        pp_rank: pipeline stage; likewise.
    """

    step: int
    layer: int
    rid: str
    method: str
    length: int
    units: Any
    unit_size: int
    tp_rank: int
    dp_rank: int = 0
    pp_rank: int = 0


def encode(record: SelectionRecord) -> bytes:
    """A record as JSON."""
    return orjson.dumps(record, default=_as_lists, option=orjson.OPT_SERIALIZE_NUMPY)


def decode(payload: bytes) -> SelectionRecord:
    """A record from JSON; padding is removed from its units."""
    values = orjson.loads(payload)
    values["units"] = [[unit for unit in head if unit >= 0] for head in values["units"]]
    return SelectionRecord(**values)


def rank_endpoint(endpoint: str, rank: int) -> str:
    """The endpoint of a rank, counted over the server: a port or a name of its own for each."""
    head, _, port = endpoint.rpartition(":")
    if rank == 0:
        return endpoint
    if endpoint.startswith("tcp://") and port.isdigit():
        return f"{head}:{int(port) + rank}"
    return f"{endpoint}-{rank}"


class TracePublisher:
    """Publishes records from a thread of its own."""

    def __init__(
        self, endpoint: str, capacity: int = 4096, metrics: ServingMetrics | None = None
    ) -> None:
        """Bind and start.

        Args:
            endpoint: ZMQ endpoint to bind, e.g. `tcp://127.0.0.1:5560`.
            capacity: records that may wait; further ones are dropped.
            metrics: where drops are counted, besides `dropped`.

        Raises:
            ValueError: the endpoint cannot be bound.
        """
        import zmq

        self.dropped = 0
        self._metrics = metrics
        self._capacity = capacity
        self._waiting: deque[SelectionRecord] = deque()
        self._wake = threading.Event()
        self._closing = False
        self._socket: zmq.Socket[bytes] = zmq.Context.instance().socket(zmq.PUB)
        self._socket.setsockopt(zmq.SNDHWM, capacity)
        self._socket.setsockopt(zmq.LINGER, 0)
        try:
            self._socket.bind(endpoint)
        except zmq.ZMQError as error:
            self._socket.close()
            raise ValueError(
                f"trace must be a ZMQ endpoint that can be bound, got {endpoint!r} ({error})"
            ) from None
        self._thread = threading.Thread(target=self._run, name="sparsekv-trace", daemon=True)
        self._thread.start()

    def publish(self, record: SelectionRecord) -> bool:
        """Queue a record without waiting; False if it was dropped."""
        if len(self._waiting) >= self._capacity or self._closing:
            self.dropped += 1
            if self._metrics is not None:
                self._metrics.trace_dropped(1)
            return False
        self._waiting.append(record)
        self._wake.set()
        return True

    def close(self, timeout: float = 1.0) -> None:
        """Send what waits, at most for `timeout` seconds, and stop."""
        self._closing = True
        self._wake.set()
        self._thread.join(timeout)

    def _run(self) -> None:
        """Send until closed; the socket lives in this thread from now on."""
        number = 0
        while True:
            self._wake.wait()
            self._wake.clear()
            while self._waiting:
                payload = encode(self._waiting.popleft())
                # A PUB socket drops for readers that are too slow; it never waits.
                self._socket.send_multipart((TOPIC, number.to_bytes(8, "big"), payload))
                number += 1
            if self._closing:
                self._socket.close()
                return


def _as_lists(value: Any) -> Any:
    if hasattr(value, "tolist"):
        return value.tolist()
    raise TypeError(f"cannot serialise {type(value).__name__}")
