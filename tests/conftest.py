"""Shared by every test: one seed."""

import pytest
import torch

SEED = 20_406_774
"""Of every test that draws numbers; stateful tests print the fresh seed they add to it."""


@pytest.fixture(autouse=True)
def seeded() -> None:
    """The same random numbers in every run and in any order of tests."""
    torch.manual_seed(SEED)


@pytest.fixture(scope="session")
def sglang() -> None:
    """SGLang imported, with the dummy configuration that its memory classes look up."""
    from sglang.srt.runtime_context import get_context

    torch.set_num_threads(1)
    get_context().override_server_args(device="cpu").install()
