"""A front end as in a server that was started with the defaults."""

from types import SimpleNamespace

import pytest

from sgl_sparsekv.config import ServerOptions
from sgl_sparsekv.serving.front_end import ATTRIBUTE, FrontEnd
from sgl_sparsekv.serving.metrics import ServingMetrics
from sgl_sparsekv.serving.rules import Limits

VOCAB = 1000


@pytest.fixture
def front_end() -> FrontEnd:
    """The front end of a server of text."""
    return FrontEnd(ServerOptions(), Limits(VOCAB, 4096, 8), ServingMetrics())


@pytest.fixture
def manager(front_end: FrontEnd) -> SimpleNamespace:
    """As much of a tokenizer manager as our hooks read."""
    return SimpleNamespace(**{ATTRIBUTE: front_end})
