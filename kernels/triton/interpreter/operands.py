"""What an operation does before it computes: nothing where its operands are as they should be."""

from typing import Any

import numpy as np

import triton.language as tl
from triton.language.semantic import TritonSemantic
from triton.runtime.interpreter import InterpreterBuilder, InterpreterOptions, TensorHandle

MOST_CONSTANTS = 4096

_ALIKE = {
    kind.name: np.dtype(name)
    for kind, name in (
        *((getattr(tl, name), name) for name in ("int8", "int16", "int32", "int64")),
        *((getattr(tl, name), name) for name in ("uint8", "uint16", "uint32", "uint64")),
        *((getattr(tl, name), name) for name in ("float32", "float64")),
    )
}
"""Kinds of elements, by name, that numpy has too and converts into each other as Triton does."""


class Builder(InterpreterBuilder):  # type: ignore[misc]
    """Converts bfloat16 by moving its bits."""

    def __init__(self) -> None:
        """An overflow of integers is no longer looked for: without `debug` nobody is told of it."""
        super().__init__()
        self.options = InterpreterOptions(sanitize_overflow=False)

    def cast_impl(self, src: Any, dst_type: Any) -> Any:
        """Convert elements; subnormal numbers the long way."""
        source, target = src.dtype.scalar, dst_type.scalar
        if source is tl.bfloat16 and target is tl.float32:
            bits = src.data.astype(np.uint32) << 16
            if not _any_subnormal(bits):
                return TensorHandle(bits.view(np.float32), target)
        elif source is tl.float32 and target is tl.bfloat16:
            bits = np.ascontiguousarray(src.data).view(np.uint32).reshape(src.data.shape)
            if not _any_subnormal(bits):
                return TensorHandle((bits >> 16).astype(np.uint16), target)
        return super().cast_impl(src, dst_type)


def _any_subnormal(bits: Any) -> bool:
    """Whether one of these float32 numbers, given by their bits, is subnormal."""
    return bool(((bits & 0x7F800000 == 0) & (bits & 0x007FFFFF != 0)).any())


class Semantic(TritonSemantic):  # type: ignore[misc]
    """Passes on operands that agree, and keeps the constants that kernels name."""

    def __init__(self, builder: Any) -> None:
        """With no constant yet."""
        super().__init__(builder)
        self._constants: dict[Any, Any] = {}

    def binary_op_type_checking_impl(
        self,
        lhs: Any,
        rhs: Any,
        allow_lhs_ptr: bool = False,
        allow_rhs_ptr: bool = False,
        arithmetic_check: bool = True,
        div_or_mod: bool = False,
    ) -> tuple[Any, Any]:
        """Two operands of one kind and shape."""
        if type(lhs) is tl.tensor:
            left = lhs.type.scalar
            if type(rhs) is tl.tensor:
                right = rhs.type.scalar
                alike = left is right and type(left) is tl.dtype and not div_or_mod
                moves = allow_lhs_ptr and left.is_ptr() and right.name in _ALIKE and right.is_int()
                if alike or moves:
                    return self.broadcast_impl_value(lhs, rhs)
            elif type(rhs) in (int, float) and arithmetic_check and type(left) is tl.dtype:
                constant = self._constant(rhs, left, div_or_mod)
                return self.broadcast_impl_value(self.cast(lhs, constant.type), constant)
        return super().binary_op_type_checking_impl(
            lhs, rhs, allow_lhs_ptr, allow_rhs_ptr, arithmetic_check, div_or_mod
        )

    def _constant(self, value: float, beside: Any, div_or_mod: bool) -> Any:
        """A number as an operand beside elements of a kind."""
        key = (value, type(value), beside.name, div_or_mod)
        if key not in self._constants:
            element = self.scalar_constant(0, beside)
            _, constant = super().binary_op_type_checking_impl(
                element, value, div_or_mod=div_or_mod
            )
            if len(self._constants) >= MOST_CONSTANTS:
                self._constants.clear()
            self._constants[key] = constant
        return self._constants[key]

    def broadcast_impl_value(self, lhs: Any, rhs: Any) -> tuple[Any, Any]:
        """Two values of one shape."""
        left, right = lhs.type, rhs.type
        if left.is_block() and right.is_block():
            if left.shape is not right.shape:
                return super().broadcast_impl_value(lhs, rhs)
        elif left.is_block():
            rhs = _filled(rhs, left.shape)
        elif right.is_block():
            lhs = _filled(lhs, right.shape)
        return lhs, rhs

    def cast(self, input: Any, dst_ty: Any, fp_downcast_rounding: str | None = None) -> Any:
        """A value with elements of another kind."""
        source, target = input.type.scalar, dst_ty.scalar
        if source is target:
            return input
        numpy_type = _ALIKE.get(target.name)
        if numpy_type is None or fp_downcast_rounding is not None:
            return super().cast(input, dst_ty, fp_downcast_rounding)
        if source.name not in _ALIKE and source is not tl.int1:
            return super().cast(input, dst_ty)
        handle = TensorHandle(input.handle.data.astype(numpy_type), target)
        return tl.tensor(handle, input.type.with_element_ty(target))


def _filled(one: Any, shape: Any) -> Any:
    """A block of a shape, each element a scalar's."""
    data, element = one.handle.data, one.type.scalar
    handle = TensorHandle(np.full(shape.values, data, data.dtype), element)
    return tl.tensor(handle, tl.block_type(element, shape))
