"""What came back for a question."""

from dataclasses import dataclass
from typing import Any

from ..errors import SparseKVError


class RequestFailed(SparseKVError):
    """The server did not answer a question."""


@dataclass(frozen=True)
class Answer:
    """What came back for one question.

    Attributes:
        question: index of the question.
        concurrent: asked together with others.
        text: what the model said.
        rid: SGLang's request id.
        cached_tokens: tokens of the prompt that the radix cache had.
        arrivals: when (seconds) how many tokens were there, the first token first.
        report: the server's `sparsekv` echo; None from a server without our backend.
    """

    question: int
    concurrent: bool
    text: str
    rid: str
    cached_tokens: int
    arrivals: tuple[tuple[float, int], ...]
    report: dict[str, Any] | None

    @property
    def decode_steps(self) -> int:
        """Decode steps between the first arrival and the last; the first token is prefill's."""
        return self.arrivals[-1][1] - self.arrivals[0][1]

    @property
    def decode_seconds(self) -> float:
        """Seconds that these steps took."""
        return self.arrivals[-1][0] - self.arrivals[0][0]
