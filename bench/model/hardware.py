"""Machines that are read from and models that are read, with the source of every figure."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeVar

Entry = TypeVar("Entry")

RESERVE_BYTES = 10 * 2**30
"""What SGLang 0.5.23 leaves free at least on a GPU of more than 60 GiB, for activations and graphs
(`sglang/srt/arg_groups/memory_hook.py`)."""


@dataclass(frozen=True)
class Gpu:
    """Memory of one GPU.

    Attributes:
        name: as printed.
        tb_per_s: read bandwidth that floors are counted with, in 1e12 bytes per second.
        memory_gb: capacity in 1e9 bytes.
        l2_mb: second-level cache in 1e6 bytes; None where not looked up.
        source: where the bandwidth comes from.
    """

    name: str
    tb_per_s: float
    memory_gb: float
    l2_mb: float | None
    source: str

    def us(self, size: float) -> float:
        """Microseconds that reading `size` bytes takes at least."""
        return size / (self.tb_per_s * 1e6)


@dataclass(frozen=True)
class Model:
    """What one decode step of a model reads.

    Attributes:
        name: as printed.
        layers: layers with attention.
        qo_heads: query heads.
        kv_heads: KV heads.
        head_dim: elements per head of K, and of V.
        dtype_bytes: bytes per element of K and V.
        weight_bytes: bytes of weights read per step.
        resident_bytes: bytes of weights in memory.
    """

    name: str
    layers: int
    qo_heads: int
    kv_heads: int
    head_dim: int
    dtype_bytes: int
    weight_bytes: float
    resident_bytes: float

    @property
    def kv_bytes(self) -> int:
        """Bytes of K and V per token and layer."""
        return 2 * self.kv_heads * self.head_dim * self.dtype_bytes

    @property
    def token_bytes(self) -> int:
        """Bytes of K and V per token."""
        return self.layers * self.kv_bytes


LLAMA_3_1_8B = Model("Llama-3.1-8B", 32, 32, 8, 128, 2, 15.01e9, 16.06e9)
"""bfloat16. 8.03e9 parameters; the input embedding (128,256 x 4096) is looked up, not read."""

GPUS = {
    "h200": Gpu(
        *("NVIDIA H200", 4.3, 141, 50),
        "assumed, 90 % of the 4.8 peak (data sheet), not measured here; TensorRT-LLM's tech blog "
        "16 reports 4.31-4.37 for dense decode",
    ),
    "h100": Gpu("NVIDIA H100 SXM", 3.35, 80, 50, "peak (data sheet)"),
    "a100": Gpu("NVIDIA A100 80GB SXM", 2.039, 80, 40, "peak (data sheet)"),
    "rtx5090": Gpu("NVIDIA RTX 5090", 1.792, 32, None, "peak (data sheet)"),
}
MODELS = {"llama-3.1-8b": LLAMA_3_1_8B}


def find(table: Mapping[str, Entry], what: str, name: str) -> Entry:
    """Entry of a table.

    Raises:
        ValueError: there is none of that name.
    """
    if name not in table:
        raise ValueError(f"{what} must be one of {', '.join(table)}, got {name}")
    return table[name]


def capacity(gpu: Gpu, model: Model, context: int, reserve_bytes: float = RESERVE_BYTES) -> float:
    """Requests of `context` tokens whose KV fits beside the weights, nothing shared.

    Args:
        gpu: machine.
        model: model; its metadata pages are not counted.
        context: tokens of each request.
        reserve_bytes: left free for activations and graphs.
    """
    free = gpu.memory_gb * 1e9 - model.resident_bytes - reserve_bytes
    return max(0.0, free / (context * model.token_bytes))
