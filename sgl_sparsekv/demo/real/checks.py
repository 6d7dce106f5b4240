"""Conditions of the second act."""

from collections.abc import Sequence

from ..checks import Check
from .score import RealRun
from .script import Script

READ_LIMIT = 0.08
"""Share of the KV that a sparse run may read: 512 of 7,000 tokens are 0.073."""


def check_real(script: Script, runs: Sequence[RealRun], page_size: int) -> list[Check]:
    """What must hold, beside the figures that are only shown."""
    streaming = next(run for run in runs if run.name == "streaming")
    sparse = [run for run in runs if run.options.get("method", "full") != "full"]
    nearest = min((run for run in sparse if run != streaming), key=lambda run: run.kl_nats)
    read = max(run.kv_read_fraction for run in sparse)
    # torch_native is asked once, and reads the text then.
    cached = min(run.cached_tokens for run in runs if run.options)
    least = len(script.shared) // page_size * page_size
    return [
        Check(
            f"on a real text every sparse run reads at most {READ_LIMIT:.0%} of the KV cache",
            read <= READ_LIMIT,
            f"{read:.1%}",
        ),
        Check(
            f"there {nearest.name} stays nearer to dense than streaming at the same budget",
            nearest.kl_nats < streaming.kl_nats,
            f"{nearest.kl_nats:.4f} and {streaming.kl_nats:.4f} nats",
        ),
        Check(
            "every prompt about it finds the text in the radix cache",
            cached >= least,
            f"{cached:,} of {len(script.shared):,} tokens",
        ),
        Check(
            "every response about it names the options it was asked for",
            all(run.applied for run in runs),
            ", ".join(run.name for run in runs if not run.applied) or "all do",
        ),
    ]
