"""Methods of one segment summary share its records, and a step decides once what they index."""

from collections import Counter

import torch
from helpers.machine import CacheMachine

OPTIONS = {
    "method": "clusterkv",
    "budget": 48,
    "sink": 0,
    "window": 0,
    "dense_layers": 0,
    "reselect_every": 1,
    "telemetry": False,
    "share_generated": True,
}


def test_a_record_built_for_one_method_is_not_forgotten_by_its_sibling(sglang: None) -> None:
    """`quest_two_level` takes the only record while `quest_two_level_exact` is served, too."""
    machine = type(
        "TwoReaders",
        (CacheMachine,),
        {"core": "rust", "page_size": 64, "counts": Counter(), "seen": Counter()},
    )()
    machine.make(pages=8, poison=False, dtype=torch.float32, records=1)
    machine.start(blocks=[4], chunk=100, namespace=None, options=OPTIONS, times=4, twice=False)
    machine.branch(nth=0, options=OPTIONS, part=0.5, which=0)
    records = machine.host.metadata.records["min_max_segment"]
    built = records.built
    machine.select(options={**OPTIONS, "method": "quest_two_level"}, which=0)
    machine.holds()
    assert len(records.held) == records.capacity == 1 and records.built == built + 1
    machine.select(options={**OPTIONS, "method": "quest_two_level"}, which=0)
    machine.holds()
    assert records.built == built + 1, "what was found in the step before is built again"
    machine.teardown()
