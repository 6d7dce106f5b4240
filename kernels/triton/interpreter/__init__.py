"""Triton's interpreter, spared what it repeats at every call inside a kernel.

Around each operation on arrays it looks up types, makes new ones, and converts and checks operands
that are as they should be: several times the work of the operation itself. Here that is done once
(`language`, `kinds`), or not at all where nothing can come of it (`operands`). What it computes
stays the same.
"""

from triton.runtime import interpreter

from .kinds import remembered
from .language import Replacement, member_of_the_language

_NEEDED = (
    "InterpreterBuilder",
    "InterpreterOptions",
    "TensorHandle",
    "_LangPatchScope",
    "_get_np_dtype",
    "_patch_attr",
    "_patch_lang",
    "interpreter_builder",
    "interpreter_semantic",
)


def quicken() -> None:
    """Make every launch from now on quick; nothing happens where Triton is made another way."""
    if isinstance(getattr(interpreter, "_patch_lang", None), Replacement):
        return
    if not all(hasattr(interpreter, name) for name in _NEEDED):
        return
    from .operands import Builder, Semantic

    interpreter._get_np_dtype = remembered(interpreter._get_np_dtype)
    interpreter.interpreter_builder = Builder()
    interpreter.interpreter_semantic = Semantic(interpreter.interpreter_builder)
    interpreter._patch_attr = member_of_the_language
    interpreter._patch_lang = Replacement(interpreter._patch_lang, interpreter._LangPatchScope)
