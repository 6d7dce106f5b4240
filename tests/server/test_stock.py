"""Installed but not chosen, the package changes nothing."""

import time
from pathlib import Path

import pytest

from sgl_sparsekv.models.documents import chain_document

from .client import ask_for, generate_all, get
from .fleet import COMMON, ROOMY, Fleet, ServerProcess, ServerSpec

LATEST = "sglang:process_cpu_seconds_total"
"""What SGLang counts first five seconds after its start."""


def metric_names(url: str) -> set[str]:
    """Names of all series on `/metrics`, once the latest of them is there."""
    for _ in range(60):
        lines = str(get(f"{url}/metrics")).splitlines()
        names = {line.split("{")[0].split(" ")[0] for line in lines if line and line[0] != "#"}
        if LATEST in names:
            return names
        time.sleep(0.5)
    raise AssertionError(f"no {LATEST} on {url}/metrics")


def test_torch_native_is_the_same_with_and_without_the_package(
    fleet: Fleet, tmp_path: Path, pytestconfig: pytest.Config
) -> None:
    """R16: token for token, metric for metric.

    Without our CPU platform the stock wheel stops on `import vllm._custom_ops`; a module of that
    name is all it takes for a stock server on a CPU, which then uses its native rotary embedding.
    """
    (tmp_path / "vllm").mkdir()
    (tmp_path / "vllm" / "__init__.py").write_text("")
    (tmp_path / "vllm" / "_custom_ops.py").write_text("rotary_embedding = None\n")
    flags = ("--model-path", str(fleet.model), *COMMON, *ROOMY)
    spec = ServerSpec(
        "stock",
        (*flags, "--attention-backend", "torch_native"),
        (("SGLANG_PLUGINS", "none"), ("PYTHONPATH", str(tmp_path))),
    )
    fleet.catalog["stock"] = spec
    fleet.start("stock", typed=pytestconfig.getoption("soak"))
    native: ServerProcess = fleet.get("native")
    documents = [chain_document(n, 2, 8, seed=n) for n in (300, 1200)]
    asks = [ask_for(d, q) for d in documents for q in d.questions]
    mine = generate_all(native.url, asks, concurrency=1)
    stock = fleet.get("stock")
    theirs = generate_all(stock.url, asks, concurrency=1)
    assert [a["output_ids"] for a in mine if a] == [a["output_ids"] for a in theirs if a]
    keys = [sorted(a["meta_info"]) for a in mine if a]
    assert keys == [sorted(a["meta_info"]) for a in theirs if a]
    assert metric_names(native.url) == metric_names(stock.url)
    assert not any(name.startswith("sparsekv") for name in metric_names(native.url))
    fleet.stop("stock")
    fleet.stop("native")
