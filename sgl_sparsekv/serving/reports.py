"""Reports of streamed responses, from a request's last token until its last chunk is written."""

from collections import OrderedDict
from typing import Any

import orjson

MOST = 4096
"""Reports that are kept: streams of `/generate` leave theirs behind."""
MOST_BYTES = 64 << 20
"""All of them together, as JSON; one that is larger by itself is kept alone."""


class Reports:
    """The newest ones, as JSON by request id."""

    def __init__(self) -> None:
        self._texts: OrderedDict[str, bytes] = OrderedDict()
        self._size = 0

    def __len__(self) -> int:
        """Reports that are kept."""
        return len(self._texts)

    @property
    def size(self) -> int:
        """Bytes of all of them."""
        return self._size

    def put(self, rid: str, report: dict[str, Any]) -> None:
        """Keep a report; the oldest make room for it."""
        self.take(rid)
        self._texts[rid] = text = orjson.dumps(report)
        self._size += len(text)
        while len(self) > MOST or (self._size > MOST_BYTES and len(self) > 1):
            self.take(next(iter(self._texts)))

    def take(self, rid: str) -> bytes | None:
        """Hand out the report of a request, which is forgotten here; None where there is none."""
        text = self._texts.pop(rid, None)
        self._size -= len(text or b"")
        return text
