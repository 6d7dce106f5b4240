"""Random schedules of requests that keep views: nothing is lost, no neighbour is touched."""

from collections import Counter
from functools import partial
from typing import Any

import pytest
from helpers.host import Host
from helpers.machine import CacheMachine
from helpers.memory import VIEWS
from helpers.soak import Size, record
from helpers.steps import Live
from hypothesis import HealthCheck, seed, settings
from hypothesis.stateful import run_state_machine_as_test

SCHEDULES = (16, 1000)
"""Over both tree cores, and in soak."""
STEPS = 30
LONG = 100
"""Tokens of the shortest prompt."""
LITTLE = {"budget": 48, "sink": 1, "window": 3}
PLAIN = {"coverage": None, "budget_split": "even", "estimate": None}


def only_views(counts: Counter[str], host: Host) -> None:
    """Nearly every request keeps a view of a prompt that is longer, most can be packed, and half
    of the time memory is short."""
    served, decode, start = host.served, host.decode, host.start

    def narrowed(options: dict[str, Any]) -> dict[str, Any]:
        if options.get("method") not in ("full", *VIEWS):
            options = options | PLAIN | {"method": VIEWS[host.serial % len(VIEWS)]}
        if host.serial % 4:
            options = options | {"telemetry": False, "dense_layers": 0, **LITTLE}
        return served(options)

    def short(lives: list[Live], **how: Any) -> None:
        scarce = host.serial % 2 and not host.fail_next_alloc  # which is meant for the step
        counts["rows packed"] += bool(scarce and host.pack())
        decode(lives, **how)

    def long(prompt: list[int], *how: Any) -> Live:
        return start(prompt * -(-LONG // len(prompt)), *how)

    host.served, host.decode, host.start = narrowed, short, long  # type: ignore[method-assign]


@pytest.mark.parametrize(("core", "page_size"), [("rust", 16), ("python", 4)])
def test_views_are_right_and_nothing_is_lost_under_any_schedule(
    core: str, page_size: int, sglang: None, size: Size
) -> None:
    """Prefill in chunks, hits, aborts, retractions, steps that die, packing, at any time."""
    schedules = size(*SCHEDULES) // 2
    counts: Counter[str] = Counter()
    machine: Any = type(
        f"ViewMachine_{core}_{page_size}",
        (CacheMachine,),
        {
            "core": core,
            "page_size": page_size,
            "counts": counts,
            "seen": Counter(),
            "changed": partial(only_views, counts),
        },
    )
    how = settings(
        max_examples=schedules,
        stateful_step_count=STEPS,
        deadline=None,
        database=None,
        print_blob=False,
        suppress_health_check=list(HealthCheck),
    )
    run_state_machine_as_test(seed(7)(machine), settings=how)
    told = {"schedules": schedules, "operations": counts.total(), **dict(counts.most_common())}
    print(f"{core}, page {page_size}: {told}")
    assert counts["rows packed"] + counts["pack"] > 0
    assert counts["retract"] > 0 and counts["abort"] > 0
    if schedules == SCHEDULES[1] // 2:
        record(f"views-{core}", told)
