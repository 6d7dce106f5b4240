"""One launcher with SGLang imported, for the servers that these tests have for themselves, and a
pretrained model.
"""

from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers.launcher import Launcher

from sgl_sparsekv.models.smollm2 import save_smollm2
from sgl_sparsekv.models.wheel import NotFetched

from ..fleet import ONE_THREAD

RANDOM = Path(__file__).parents[2] / "helpers" / "random_pages"
"""Another package, with a method that never looks at keys."""


@pytest.fixture(scope="package")
def launcher(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Launcher]:
    """Its forks find that package, too."""
    environment = {**dict(ONE_THREAD), "PYTHONPATH": str(RANDOM)}
    with Launcher(tmp_path_factory.mktemp("launcher"), environment) as found:
        yield found


@pytest.fixture(scope="package")
def smollm2(request: pytest.FixtureRequest) -> Path:
    """SmolLM2-135M-Instruct, fetched and converted once and kept with what pytest keeps."""
    folder = Path(request.config.cache.mkdir("smollm2")) / "SmolLM2-135M-Instruct"
    if not (folder / "config.json").is_file():
        try:
            save_smollm2(folder)
        except NotFetched as error:
            pytest.skip(f"SmolLM2 cannot be had: {error}")
    return folder
