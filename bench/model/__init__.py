"""What one decode step must read, and what that costs: `python -m bench.model`."""

from bench.model.anchors import fa3_us
from bench.model.hardware import GPUS, LLAMA_3_1_8B, MODELS, Gpu, Model, capacity, find
from bench.model.kernels import KERNELS, READINGS, predict
from bench.model.limits import (
    break_even,
    break_even_by_bytes,
    max_selection_for_step,
    max_selection_us,
    spare_us,
)
from bench.model.shared import SharedFloors, shared_floors
from bench.model.step import Costs, Floors, floors
from bench.model.workload import METADATA, MetadataFormat, Workload, metadata_bytes

__all__ = [
    "GPUS",
    "KERNELS",
    "LLAMA_3_1_8B",
    "METADATA",
    "MODELS",
    "READINGS",
    "Costs",
    "Floors",
    "Gpu",
    "MetadataFormat",
    "Model",
    "SharedFloors",
    "Workload",
    "break_even",
    "break_even_by_bytes",
    "capacity",
    "fa3_us",
    "find",
    "floors",
    "max_selection_for_step",
    "max_selection_us",
    "metadata_bytes",
    "predict",
    "shared_floors",
    "spare_us",
]
