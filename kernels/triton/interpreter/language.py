"""The functions of `triton.language`, replaced once in a launch instead of at every call."""

import inspect
from functools import cache
from types import FunctionType
from typing import Any

import triton.language as tl
from triton.runtime import interpreter

from .kinds import Kinds


class Replacement:
    """The interpreter's `_patch_lang`, which does nothing where it has been done in this launch."""

    def __init__(self, whole: Any, scope: Any) -> None:
        """From what it stands for, and the class of what that returns."""
        self._whole, self._scope = whole, scope
        self._done: set[Any] = set()
        self._seen = cache(language_of)
        self._kinds = Kinds()

    def __call__(self, function: FunctionType) -> Any:
        """Replace what a function sees of the language; returns what takes it back."""
        seen = self._seen(function)
        if self._done and seen <= self._done:
            return self._scope()
        scope, first = self._whole(function), not self._done
        self._done |= seen
        if first:  # the launch, which alone takes its replacements back
            scope.set_attr(tl.block_type, "__init__", self._kinds.block)
            scope.set_attr(tl.tensor, "__init__", self._kinds.tensor)
            restore = scope.restore
            scope.restore = lambda: (self._done.clear(), restore())
        return scope


def language_of(function: FunctionType) -> frozenset[Any]:
    """The modules of the language that a function names."""
    named = [value for value in function.__globals__.values() if inspect.ismodule(value)]
    return frozenset(value for value in named if value in (tl, tl.core))


_WRAPPER = tl.core.builtin(lambda: None).__code__


def member_of_the_language(owner: Any, name: str, member: Any, builder: Any, scope: Any) -> None:
    """The interpreter's `_patch_attr`: a function of the language that is told how to act here.

    The wrapper that only checks that it was told is left out.
    """
    semantic = interpreter.interpreter_semantic
    plain = member.__wrapped__ if getattr(member, "__code__", None) is _WRAPPER else member

    def called(*args: Any, **kwargs: Any) -> Any:
        kwargs["_semantic"] = semantic
        return plain(*args, **kwargs)

    scope.set_attr(owner, name, called)
