"""Copies of what steps leave in a device's buffers, read when they have come to the host.

A step says what it will leave, and who wants it. Behind the step it is copied, as the next may
write over it; whoever wanted it is told once the copy has come. Nothing waits: the copy goes ahead
of the tokens that the same step gives, so whoever has the last token of a request has all that its
steps have left.
"""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

Use = Callable[[torch.Tensor], None]
"""Hears a tensor of the host."""


@dataclass(frozen=True)
class Arrival:
    """What a step left, on its way to the host.

    Attributes:
        copies: with who wants them; valid once they have come.
        event: when that is; None: they have.
    """

    copies: list[tuple[torch.Tensor, Use]]
    event: "torch.cuda.Event | None"

    @property
    def has_come(self) -> bool:
        """Whether the copies can be read."""
        return self.event is None or self.event.query()


class HostCopies:
    """The copies of a scheduler's steps."""

    def __init__(self) -> None:
        self._wanted: list[tuple[torch.Tensor, Use]] = []
        self._arrivals: deque[Arrival] = deque()

    def begin_step(self) -> None:
        """Nothing is wanted of the step that begins, so far; tell what has come of others."""
        self._wanted = []
        self.settle()

    def want(self, held: torch.Tensor, use: Use) -> None:
        """A buffer, or the first rows of it, is wanted as the step leaves it."""
        self._wanted.append((held, use))

    def fetch(self) -> None:
        """Behind the step."""
        if not self._wanted:
            return
        copies = [(held.to("cpu", non_blocking=True, copy=True), use) for held, use in self._wanted]
        event = None
        if self._wanted[0][0].is_cuda:
            event = torch.cuda.Event()
            event.record()
        self._arrivals.append(Arrival(copies, event))
        self._wanted = []

    def settle(self) -> None:
        """Tell what has come, in the order of steps."""
        while self._arrivals and self._arrivals[0].has_come:
            for copy, use in self._arrivals.popleft().copies:
                use(copy)


_active: HostCopies | None = None


def activate_copies(copies: HostCopies) -> None:
    """Make them those of this process's steps."""
    global _active
    _active = copies


def fetch_copies(result: object, *args: Any, **kwargs: Any) -> None:
    """After `ModelRunner.forward`: copy what is wanted of the step."""
    if _active is not None:
        _active.fetch()
