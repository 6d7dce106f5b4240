"""Requests that share a prefix: what is read once, and what is read by each."""

from dataclasses import dataclass

from bench.model.hardware import Gpu, Model
from bench.model.workload import Workload, metadata_bytes


@dataclass(frozen=True)
class SharedFloors:
    """Microseconds of attention, all layers, when a batch shares a prefix.

    Attributes:
        dense_us: every request reads its whole context.
        cascade_us: the prefix is read once, what follows it by each request.
        sparse_us: every request reads its metadata and its selected KV.
        shared_us: metadata of the prefix is read once; the rest as `sparse_us`.
        metadata_layer_bytes: metadata of the prefix, per layer.
        fits_l2: whether these fit the second-level cache; None where its size is not known.
    """

    dense_us: float
    cascade_us: float
    sparse_us: float
    shared_us: float
    metadata_layer_bytes: float
    fits_l2: bool | None


def shared_floors(
    gpu: Gpu, model: Model, work: Workload, prefix: int | None = None
) -> SharedFloors:
    """Floors with and without one read for all.

    Selected KV counts once per request: how far siblings choose the same pages is data.

    Args:
        gpu: machine.
        model: model.
        work: batch, sparse.
        prefix: shared tokens, at most the context; None: all of it.

    Raises:
        ValueError: the prefix is longer than the context or negative.
    """
    prefix = work.context if prefix is None else prefix
    if not 0 <= prefix <= work.context:
        raise ValueError(f"prefix must be between 0 and context, got {prefix}")
    once, each = prefix, work.batch * (work.context - prefix)
    metadata = metadata_bytes(model, work) / work.context
    selected = work.batch * min(work.budget, work.context) * model.kv_bytes

    def step_us(size: float) -> float:
        return gpu.us(model.layers * size)

    size = metadata * prefix
    return SharedFloors(
        dense_us=step_us(work.batch * work.context * model.kv_bytes),
        cascade_us=step_us((once + each) * model.kv_bytes),
        sparse_us=step_us(work.batch * work.context * metadata + selected),
        shared_us=step_us((once + each) * metadata + selected),
        metadata_layer_bytes=size,
        fits_l2=None if gpu.l2_mb is None else size <= gpu.l2_mb * 1e6,
    )
