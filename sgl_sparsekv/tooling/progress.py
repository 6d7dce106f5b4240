"""What is going on, on stderr: one line that changes on a terminal, few lines elsewhere."""

import sys
import time
from typing import TextIO

WIDTH = 20
"""Characters of a bar."""


class Progress:
    """Says what is being waited for."""

    def __init__(
        self, stream: TextIO | None = None, quiet: bool = False, interval: float = 15.0
    ) -> None:
        """Start the clock.

        Args:
            stream: where to write; stderr when None.
            quiet: write nothing.
            interval: seconds between two lines of the same wait where lines cannot be rewritten.
        """
        self._stream = stream if stream is not None else sys.stderr
        self._quiet = quiet
        self._interval = interval
        self._terminal = self._stream.isatty()
        self._start = time.monotonic()
        self._last = float("-inf")
        self._open = False
        self._counted: tuple[float, int] | None = None

    def say(self, text: str) -> None:
        """A line that stays."""
        self._close()
        self._write(f"{self._stamp()} {text}\n")
        self._last = time.monotonic()

    def wait(self, text: str) -> None:
        """A line that may be replaced; call it as often as you like."""
        now = time.monotonic()
        if self._terminal:
            self._write(f"\r\x1b[K{self._stamp()} {text}")
            self._open = True
        elif now - self._last >= self._interval:
            self._write(f"{self._stamp()} {text}\n")
            self._last = now

    def count(self, done: int, total: int, text: str) -> None:
        """A bar: how much is done, how long the rest will take, and what was done last."""
        now = time.monotonic()
        if self._counted is None:
            self._counted = (now, done)
        since, first = self._counted
        rest = (total - done) * (now - since) / (done - first) if done > first else None
        left = f", {rest // 60:.0f}:{rest % 60:02.0f} left" if rest is not None else ""
        filled = WIDTH * done // max(total, 1)
        bar = "#" * filled + "." * (WIDTH - filled)
        self.wait(f"[{bar}] {done} of {total}{left}; {text}")

    def _close(self) -> None:
        if self._open:
            self._write("\r\x1b[K")
            self._open = False

    def _stamp(self) -> str:
        seconds = int(time.monotonic() - self._start)
        return f"[{seconds // 60:d}:{seconds % 60:02d}]"

    def _write(self, text: str) -> None:
        if not self._quiet:
            self._stream.write(text)
            self._stream.flush()
