"""A run that is stopped in the middle."""

from collections.abc import Callable
from typing import Any


class StoppedAt:
    """A function whose nth call is interrupted, as by Ctrl-C.

    Attributes:
        calls: positional arguments of every call, the interrupted one included.
    """

    def __init__(self, nth: int, function: Callable[..., Any]) -> None:
        self.calls: list[tuple[Any, ...]] = []
        self._nth, self._function = nth, function

    def __call__(self, *args: Any, **options: Any) -> Any:
        self.calls.append(args)
        if len(self.calls) == self._nth:
            raise KeyboardInterrupt
        return self._function(*args, **options)
