"""Triton's interpreter, spared what it repeats at every call inside a kernel.

It replaces the functions of `triton.language` when a launch begins, and then once more whenever the
kernel calls a function, which takes far longer than most of these functions do; and it makes a
table of all types whenever it wants to know one. What it computes stays the same.
"""

import inspect
from collections.abc import Callable
from functools import cache
from types import FunctionType
from typing import Any

import triton.language as tl
from triton.runtime import interpreter


def quicken() -> None:
    """Replace the language once per launch; nothing happens where Triton is made another way."""
    whole = getattr(interpreter, "_LangPatchScope", None)
    if whole is None or isinstance(interpreter._patch_lang, Replacement):
        return
    interpreter._patch_lang = Replacement(interpreter._patch_lang, whole)
    interpreter._get_np_dtype = remembered(interpreter._get_np_dtype)


def remembered(numpy_type: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """The same function of a type, whose table is made once for each type of elements."""
    scalar = cache(numpy_type)

    def found(kind: Any) -> Any:
        element = kind.element_ty if isinstance(kind, tl.block_type) else kind
        return numpy_type(element) if isinstance(element, tl.pointer_type) else scalar(element)

    return found


class Replacement:
    """The interpreter's `_patch_lang`, which does nothing where it has been done in this launch."""

    def __init__(self, whole: Any, scope: Any) -> None:
        """From what it stands for, and the class of what that returns."""
        self._whole, self._scope = whole, scope
        self._done: set[Any] = set()
        self._seen = cache(language_of)

    def __call__(self, function: FunctionType) -> Any:
        """Replace what a function sees of the language; returns what takes it back."""
        seen = self._seen(function)
        if self._done and seen <= self._done:
            return self._scope()
        scope, first = self._whole(function), not self._done
        self._done |= seen
        if first:  # the launch, which alone takes its replacements back
            restore = scope.restore
            scope.restore = lambda: (self._done.clear(), restore())
        return scope


def language_of(function: FunctionType) -> frozenset[Any]:
    """The modules of the language that a function names."""
    named = [value for value in function.__globals__.values() if inspect.ismodule(value)]
    return frozenset(value for value in named if value in (tl, tl.core))
