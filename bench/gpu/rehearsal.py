"""Every part of tier 1 on a CPU, toy shapes, in Triton's interpreter: no times, nothing saved."""

from collections.abc import Sequence

import torch

from bench.gpu.kernels import Run
from bench.gpu.log import FAILED, Check, Fact, Log, Measured
from bench.gpu.parts import PARTS
from bench.gpu.run import as_row, run_header, summary


def rehearse(only: Sequence[str] = ()) -> int:
    """Run the parts in this process; 1 if one failed."""
    torch.manual_seed(0)
    run = Run(Log(), torch.device("cpu"), quick=True, rehearse=True)
    for name, part in PARTS.items():
        if part.tier == 1 and (name in only or not only):
            run.log.attempt(name, lambda part=part: part.run(run))
    entries = run.log.entries
    # The fake clock counts one microsecond for everything: only the way to a row is rehearsed.
    header = run_header("h200", [e for e in entries if not isinstance(e, Fact)], "rehearsed")
    rows = [as_row(entry, header) for entry in entries if isinstance(entry, Measured)]
    text = summary([e for e in entries if isinstance(e, Check)], ())
    print(f"\n{text}\nrehearsed: {len(rows)} rows would be saved; nothing was timed")
    return int(any(isinstance(e, Check) and e.status == FAILED for e in entries))
