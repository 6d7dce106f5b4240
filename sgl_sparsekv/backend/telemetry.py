"""What the decode steps of one request covered and cost, for requests that ask (`telemetry`)."""

from dataclasses import dataclass, field
from math import floor, inf, isfinite
from typing import Any

import torch

SAMPLE_EVERY = 17
"""Sparse decode steps from one sample to the next. A prime: samples then meet tails of every length
within a unit and, where `reselect_every` is above 1, selections of every age."""
RARELY = 257
"""The same where only `coverage` was asked for: a sample reads everything."""
NO_DECODE = "no decode step was run: the first token comes from prefill, which is dense"
UNMEASURED = (
    "this server measures nothing in its decode steps: start it with --sparsekv-measure true"
)
UNTIMED = "kernels of this device run behind the host's clock, so nothing is timed"
NO_MASS = "attention of a sampled step was not finite, or no layer of this model selects"


@dataclass
class LayerMass:
    """Attention mass of one layer: its sum, least value and number over sampled query heads."""

    total: float = 0.0
    least: float = inf
    count: int = 0

    def add(self, shares: torch.Tensor) -> None:
        """Count one sampled step's `[query heads]`."""
        self.total += float(shares.sum(dtype=torch.float64))
        self.least = min(self.least, float(shares.min()))
        self.count += shares.numel()


@dataclass
class RequestTelemetry:
    """Sums over the decode steps of one request.

    Attributes:
        every: sparse steps from one sample to the next.
        steps: decode steps that were watched.
        sparse_steps: those in which some layer selected.
        samples: sparse steps whose attention mass was taken, and is in `masses`.
        masses: by number of the layer.
        floors: lower bounds of them, of methods that have any.
        select_s: seconds in which its groups were scored and selected.
        attend_s: seconds in which its groups attended.
        attends: attends that it took part in.
        companions: rows of those attends, itself included, summed.
    """

    every: int = SAMPLE_EVERY
    steps: int = 0
    sparse_steps: int = 0
    samples: int = 0
    masses: dict[int, LayerMass] = field(default_factory=dict)
    floors: dict[int, LayerMass] = field(default_factory=dict)
    select_s: float = 0.0
    attend_s: float = 0.0
    attends: int = 0
    companions: int = 0

    @property
    def is_due(self) -> bool:
        """Whether the attention mass of the next sparse step is to be taken."""
        return self.sparse_steps % self.every == 0

    def begin_step(self, sparse: bool) -> bool:
        """Count a step; whether its attention mass is to be taken."""
        sample = sparse and self.is_due
        self.steps += 1
        self.sparse_steps += sparse
        return sample

    def report(self, decode_steps: int) -> dict[str, Any]:
        """As `docs/options.md` lists it; what was not measured is None, and `reason` says why.

        Args:
            decode_steps: of the request, watched or not.
        """
        watched, timed, mass = self.steps > 0, self.attends > 0, self._mass()
        reason = None if timed else UNTIMED
        if not watched:
            reason = UNMEASURED if decode_steps else NO_DECODE
        elif mass is None:
            reason = NO_MASS
        return {
            "attention_mass": mass,
            "certificate": self._certificate(mass),
            "how": ("sampled" if self.sparse_steps else "everything") if watched else None,
            "sampled_steps": self.samples if watched else None,
            "sampled_layers": len(self.masses) if watched else None,
            "select_ms": round(1e3 * self.select_s / self.steps, 4) if timed else None,
            "attend_ms": round(1e3 * self.attend_s / self.steps, 4) if timed else None,
            "requests_per_group": round(self.companions / self.attends, 2) if timed else None,
            "reason": reason,
        }

    def _certificate(self, mass: dict[str, Any] | None) -> dict[str, Any] | None:
        """What was read at least, and how far the mean of that lies below the sampled one."""
        if mass is None or not self.sparse_steps:
            return mass and {"mean": 1.0, "least": 1.0, "gap": 0.0}
        if self.floors.keys() != self.masses.keys():
            return None
        mean, least = (floor(1e6 * told) / 1e6 for told in _over(self.floors))
        return {"mean": mean, "least": least, "gap": round(max(0.0, mass["mean"] - mean), 6)}

    def _mass(self) -> dict[str, Any] | None:
        if not self.steps:
            return None
        if not self.sparse_steps:
            return {"mean": 1.0, "least": 1.0, "layers": {}}
        if not self.masses or not isfinite(sum(layer.total for layer in self.masses.values())):
            return None
        mean, least = (round(told, 6) for told in _over(self.masses))
        return {
            "mean": mean,
            "least": least,
            "layers": {
                str(number): round(layer.total / layer.count, 6)
                for number, layer in sorted(self.masses.items())
            },
        }


def _over(layers: dict[int, LayerMass]) -> tuple[float, float]:
    """Mean over what was sampled in all layers, and the least of it."""
    total = sum(layer.total for layer in layers.values())
    count = sum(layer.count for layer in layers.values())
    return total / count, min(layer.least for layer in layers.values())
