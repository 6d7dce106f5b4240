"""A CUDA graph without CUDA: what runs while it records runs again, on the same memory, on replay.

Kernel launches and tensor operations are kept with the very tensors they had. So a Python number
that slipped into a recorded step stays what it was at capture, as on a GPU, and shows as a wrong
result. Whatever would make a host wait for the device, or take memory, is refused where a graph
or a replay forbids it.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from triton.runtime.interpreter import InterpretedFunction

WAITING = (
    "_local_scalar_dense",
    "nonzero",
    "unique",
    "_unique2",
    "unique_dim",
    "masked_select",
    "equal",
    "is_nonzero",
    "bincount",
    "repeat_interleave",
)
"""Operations whose result, or its shape, the host must wait for."""


class Forbidden(AssertionError):
    """A graph, or the host work before its replay, did what it must not."""


def _name(operation: Any) -> str:
    return str(operation).removeprefix("aten.").split(".")[0]


def _waits(operation: Any, args: tuple[Any, ...]) -> bool:
    masked = _name(operation) in ("index", "index_put", "index_put_") and any(
        isinstance(leaf, torch.Tensor) and leaf.dtype in (torch.bool, torch.uint8)
        for leaf in tree_leaves(args[1])
    )
    return masked or _name(operation) in WAITING


class FakeGraph:
    """Records what runs inside `capture`; `replay` runs it again."""

    def __init__(self) -> None:
        self.nodes: list[Callable[[], None]] = []
        self.launches: list[str] = []

    @contextmanager
    def capture(self) -> Iterator[None]:
        """Record kernels and tensor operations; refuse what no graph can hold."""
        launch = InterpretedFunction.run

        def record(kernel: Any, *args: Any, **kwargs: Any) -> Any:
            with torch._C._DisableTorchDispatch():
                self.nodes.append(lambda: launch(kernel, *args, **kwargs))
                self.launches.append(kernel.fn.__name__)
                return launch(kernel, *args, **kwargs)

        InterpretedFunction.run = record
        try:
            with _Recorder(self):
                yield
        finally:
            InterpretedFunction.run = launch

    def replay(self) -> None:
        """Run every node again on the same tensors."""
        for node in self.nodes:
            node()


class _Recorder(TorchDispatchMode):
    def __init__(self, graph: FakeGraph) -> None:
        super().__init__()
        self.graph = graph

    def __torch_dispatch__(
        self, operation: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if _waits(operation, args):
            raise Forbidden(f"{_name(operation)} inside a graph makes the host wait")
        result = operation(*args, **kwargs)
        outputs = [leaf for leaf in tree_leaves(result) if isinstance(leaf, torch.Tensor)]

        def again() -> None:
            fresh = [
                leaf
                for leaf in tree_leaves(operation(*args, **kwargs))
                if isinstance(leaf, torch.Tensor)
            ]
            for old, new in zip(outputs, fresh, strict=True):
                if old.data_ptr() != new.data_ptr():
                    old.copy_(new)

        self.graph.nodes.append(again)
        return result


class Quiet(TorchDispatchMode):
    """Refuses every operation that would wait for the device or take memory on it.

    Views and writes into tensors that are there already are allowed.
    """

    def __torch_dispatch__(
        self, operation: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if _waits(operation, args):
            raise Forbidden(f"{_name(operation)} makes the host wait")
        known = {
            leaf.untyped_storage().data_ptr()
            for leaf in tree_leaves((args, kwargs))
            if isinstance(leaf, torch.Tensor)
        }
        result = operation(*args, **kwargs)
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor) and leaf.untyped_storage().data_ptr() not in known:
                raise Forbidden(f"{_name(operation)} takes memory before a replay")
        return result
