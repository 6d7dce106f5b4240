"""One launcher with SGLang imported, for the servers that these tests have for themselves."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers.launcher import Launcher

from ..fleet import ONE_THREAD

RANDOM = Path(__file__).parents[2] / "helpers" / "random_pages"
"""Another package, with a method that never looks at keys."""


@pytest.fixture(scope="package")
def launcher(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Launcher]:
    """Its forks find that package, too."""
    environment = {**dict(ONE_THREAD), "PYTHONPATH": str(RANDOM)}
    with Launcher(tmp_path_factory.mktemp("launcher"), environment) as found:
        yield found
