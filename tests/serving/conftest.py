"""A front end as in a server that was started with the defaults."""

from collections.abc import Iterator

import pytest

from sgl_sparsekv.config import ServerOptions
from sgl_sparsekv.serving import front_end as front_end_module
from sgl_sparsekv.serving.front_end import FrontEnd
from sgl_sparsekv.serving.metrics import ServingMetrics

VOCAB = 1000


@pytest.fixture
def front_end() -> Iterator[FrontEnd]:
    """The active front end of this process."""
    chosen = FrontEnd(ServerOptions(), VOCAB, ServingMetrics())
    front_end_module.set_active(chosen)
    yield chosen
    front_end_module.set_active(None)
