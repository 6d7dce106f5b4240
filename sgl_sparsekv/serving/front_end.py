"""What the process that talks to clients knows of a server that runs our backend.

It belongs to SGLang's tokenizer manager and ends with it: a later engine in the same process, with
another model or without our backend, knows nothing of an earlier one.
"""

from dataclasses import dataclass, field

from ..config import REQUEST_FIELDS, ServerOptions
from .fields import REQUEST, SAMPLING
from .metrics import ServingMetrics
from .reports import Reports
from .rules import Limits

ATTRIBUTE = "_sparsekv_front_end"
"""Where a tokenizer manager keeps its front end."""
_LABELS = frozenset((*REQUEST_FIELDS, *SAMPLING, *REQUEST, "prompt"))


@dataclass(frozen=True)
class FrontEnd:
    """A front end whose server runs our backend.

    Attributes:
        options: the server's.
        limits: what its requests may ask for.
        metrics: where refusals are counted.
        multimodal: the model takes images and the like, whose placeholders may stand among ids.
        reports: of requests that have ended and whose last chunk is not yet written.
    """

    options: ServerOptions
    limits: Limits
    metrics: ServingMetrics
    multimodal: bool = False
    reports: Reports = field(default_factory=Reports)

    @property
    def vocab_size(self) -> int:
        """Token ids are below it."""
        return self.limits.vocab_size

    def count_refusal(self, message: str) -> None:
        """Count a refused request under the field its message names."""
        self.metrics.rejected(_field_of(message))


def front_end_of(manager: object) -> FrontEnd | None:
    """The front end of a tokenizer manager, or None where our backend was not chosen."""
    found: FrontEnd | None = getattr(manager, ATTRIBUTE, None)
    return found


def _field_of(message: str) -> str:
    """The label of a refusal: a known name, so that clients cannot grow the label's values."""
    start = message.split(": ", 1)[1] if message.startswith("request ") else message
    name = start.removeprefix("sparsekv.").split(" ", 1)[0].split("[", 1)[0]
    name = name.removeprefix("sampling_params.")
    if name in _LABELS:
        return name
    return "misplaced" if " belongs in " in message else "unknown"
