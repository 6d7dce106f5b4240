"""Head counts and sizes that no kernel was written for, in float32 beside `torch_native`."""

from typing import Any

import pytest
import torch

from tests.helpers.launcher import Launcher
from tests.helpers.soak import Size

from .sweep import SERVED, Sweep
from .tiny import write_llama

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="the sweep is that of a CPU")

LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 10_000.0,
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 512,
}
SHAPES: tuple[tuple[int, int, int, dict[str, Any]], ...] = (
    (7, 1, 96, {}),
    (5, 5, 256, {}),
    (10, 2, 112, {"tie_word_embeddings": True, "rope_parameters": LLAMA3}),
    (6, 3, 80, {"num_hidden_layers": 1}),
    (8, 4, 192, {}),
    (14, 2, 64, {}),
    (15, 5, 64, {}),
    (3, 1, 40, {}),
    (16, 1, 16, {}),
)
"""Query heads, KV heads, head size, and what else the model's configuration says."""


def test_odd_heads_are_served_with_a_dense_servers_tokens(launcher: Launcher, size: Size) -> None:
    """Group sizes that are no power of two, one KV head or as many as query heads, 16 to 256."""
    for heads, kv_heads, head_size, more in SHAPES[: size(2, len(SHAPES))]:
        shape = {
            "hidden_size": 16 * heads,
            "num_attention_heads": heads,
            "num_key_value_heads": kv_heads,
        }
        name = f"{heads}-{kv_heads}-{head_size}"
        model = write_llama(launcher.folder / name, **shape, head_dim=head_size, **more)
        found = Sweep(launcher, model).judge(name, ())
        assert found.how == SERVED, found
