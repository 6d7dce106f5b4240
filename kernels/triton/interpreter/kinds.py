"""Types: looked up and made once, however many values have them."""

from collections.abc import Callable
from functools import cache
from typing import Any

import triton.language as tl


def remembered(numpy_type: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """The same function of a type, whose table is made once for each type of elements."""
    scalar = cache(numpy_type)

    def found(kind: Any) -> Any:
        element = kind.element_ty if isinstance(kind, tl.block_type) else kind
        return numpy_type(element) if isinstance(element, tl.pointer_type) else scalar(element)

    return found


class Kinds:
    """Constructors of block types and of values, which share what equal types have alike.

    Two block types of one kind of elements and one shape have the same `shape` object. Kinds are
    told apart by name, which leaves out the address space: here is only one.

    Attributes:
        block: stands for `triton.language.block_type.__init__`.
        tensor: stands for `triton.language.tensor.__init__`.
    """

    def __init__(self) -> None:
        """From the constructors that the language has now."""
        make, measure = tl.block_type.__init__, tl.tensor.__init__
        known: dict[Any, dict[str, Any]] = {}

        def sizes(kind: Any) -> tuple[Any, Any]:
            value = object.__new__(tl.tensor)
            measure(value, None, kind)
            return value.shape, value.numel

        def block(new: Any, element_ty: Any, shape: Any) -> None:
            key = (element_ty.name, *(n.value if type(n) is tl.constexpr else n for n in shape))
            if key not in known:
                make(new, element_ty, shape)
                new.sizes = sizes(new)
                known[key] = new.__dict__
            new.__dict__ = known[key]

        no_sizes = sizes(tl.int32)

        def tensor(new: Any, handle: Any, type: Any) -> None:
            new.handle, new.type, new.dtype = handle, type, type.scalar
            new.shape, new.numel = type.sizes if type.is_block() else no_sizes

        self.block, self.tensor = block, tensor
