"""Page metadata sleeps with K and V: what SGLang's memory saver gives back, and what stays true."""

from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from helpers.host import Host
from helpers.invariants import Checker
from helpers.scenarios import CODED, PAGE, PAGES, SPARSE, prompt


class Saver:
    """SGLang's adapter to the memory saver; notes in which region tensors are made."""

    def __init__(self) -> None:
        self.inside: str | None = None

    @contextmanager
    def region(self, tag: str, enable_cpu_backup: bool = False) -> Iterator[None]:
        """Until it ends, memory belongs to `tag`."""
        self.inside = tag
        yield
        self.inside = None


def saved_host(monkeypatch: pytest.MonkeyPatch) -> tuple[Host, dict[int, str | None]]:
    """A scheduler over a pool with a saver, and the region of each tensor by its address."""
    from sglang.srt.mem_cache import memory_pool

    saver, made, zeros = Saver(), dict[int, str | None](), torch.zeros

    def noting(*args: Any, **kwargs: Any) -> torch.Tensor:
        tensor: torch.Tensor = zeros(*args, **kwargs)
        made[tensor.data_ptr()] = saver.inside
        return tensor

    adapter = SimpleNamespace(create=lambda enable: saver)
    monkeypatch.setattr(memory_pool, "TorchMemorySaverAdapter", adapter)
    monkeypatch.setattr(torch, "zeros", noting)
    host = Host("rust", PAGE, PAGES, poison=False)
    monkeypatch.setattr(torch, "zeros", zeros)
    return host, made


def tensors(host: Host) -> list[torch.Tensor]:
    """Fields and segment records of all layers, and who made each slot."""
    metadata = host.metadata
    layers = range(metadata.layout.num_layers)
    fields = [metadata.fields(s.name, layer) for s in metadata.summaries for layer in layers]
    arrays = [a for r in metadata.records.values() for a in r.stacked.values()]
    return [*fields, *arrays, metadata.budgets]


def test_fields_and_records_lie_where_k_and_v_do(
    sglang: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stamps do not: they are a byte per unit, and are read while the rest is away."""
    host, made = saved_host(monkeypatch)
    assert {made[tensor.data_ptr()] for tensor in tensors(host)} == {"kv_cache"}
    assert made[host.metadata.sealed.data_ptr()] is None
    assert sum(t.nbytes for t in tensors(host)) + host.metadata.num_units == host.metadata.nbytes


def test_memory_that_comes_back_as_garbage_is_never_read(
    sglang: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SGLang gives memory back when idle and flushes; stamps of before say nothing afterwards."""
    host, _ = saved_host(monkeypatch)
    checker = Checker(host)
    for options in (SPARSE, CODED):
        live = host.start(prompt(2), options)
        host.prefill([live], 1000)
        host.decode([live])
        host.release(live, insert=True)
    assert bool(host.metadata.sealed.any()) and any(r.held for r in host.metadata.records.values())
    host.flush(new_weights=False)
    for tensor in tensors(host):
        tensor.view(torch.uint8).fill_(255)  # NaN as a number
    host.pool.k_buffer[0].fill_(0)
    host.pool.k_buffer[1].fill_(0)
    lives = [host.start(prompt(3), options) for options in (SPARSE, CODED)]
    host.prefill(lives, 1000)
    for _ in range(PAGE + 2):
        host.decode(lives)
        checker.check()
    assert checker.compared
