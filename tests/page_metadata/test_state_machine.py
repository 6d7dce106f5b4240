"""Metadata stays true under any history of SGLang's scheduler, allocator and radix tree.

Figures R1-R3, R5, R8 and R20: the pools, the allocator, the requests and `UnifiedRadixCache` with
both of its tree cores are SGLang's; the steps go through our attention backend. What is random is
the order of operations.
"""

import random
import time
from collections import Counter

import pytest
from helpers.machine import CacheMachine, run_machine
from helpers.soak import Size

OPERATIONS = (1800, 20_400)
"""Operations over all cores and page sizes, and in soak."""
CORES = ("rust", "python")
PAGE_SIZES = (4, 16, 64)


@pytest.mark.parametrize("page_size", PAGE_SIZES)
@pytest.mark.parametrize("core", CORES)
def test_metadata_stays_true_under_any_history(
    core: str, page_size: int, sglang: None, size: Size
) -> None:
    """R1: no stale read and no mismatch; nine tenths with fixed seeds, the rest with a new one."""
    machine = type(
        f"CacheMachine_{core}_{page_size}",
        (CacheMachine,),
        {"core": core, "page_size": page_size, "counts": Counter(), "seen": Counter()},
    )
    share = size(*OPERATIONS) // (len(CORES) * len(PAGE_SIZES))
    began, fresh = time.process_time(), random.SystemRandom().randrange(2**32)
    print(f"fresh seed {fresh}")
    run_machine(machine, share * 9 // 10, None)
    run_machine(machine, share // 10 + 1, fresh)
    counts: Counter[str] = machine.counts
    took = time.process_time() - began
    print(f"R1 {core} core, page {page_size}: {counts.total()} operations in {took:.0f} CPU s")
    print(", ".join(f"{name} {n}" for name, n in counts.most_common()))
    print(", ".join(f"{name} {n}" for name, n in machine.seen.most_common()))
    assert counts.total() >= share
    for what in ("branched segments", "records built", "records evicted"):
        assert machine.seen[what] > 0, f"no history had {what}"
