"""SGLang with our plugins loaded, once for all tests of this folder."""

import pytest


@pytest.fixture(scope="session")
def sglang_plugins() -> None:
    """Load plugins in this process, as every SGLang process does."""
    from sglang.srt.plugins import load_plugins

    load_plugins()
