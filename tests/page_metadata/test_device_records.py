"""One mutant per way in which a record on a device can be wrong, each caught.

The device finds records by the page a segment ends with; the host says which segments are whole.
"""

from collections.abc import Callable
from typing import Any

import pytest
from helpers import scenarios
from helpers.host import Host
from helpers.invariants import Broken
from helpers.scenarios import CODED, PAGE, PAGES, Script, prompt
from helpers.torch_fused import TorchFused
from pytest import MonkeyPatch

from sgl_sparsekv.backend import device_records, fused
from sgl_sparsekv.backend.request_table import RequestEntry


def fused_script() -> Script:
    """A script over the fused backend."""
    script = Script("rust")
    script.host = Host("rust", PAGE, PAGES, kind="fused")
    script.checker = type(script.checker)(script.host)
    return script


def kept_when_pages_start_anew(patch: MonkeyPatch) -> None:
    patch.setattr(TorchFused, "forget_record", lambda self, page: None)


def whole_before_its_last_token_is_written(patch: MonkeyPatch) -> None:
    jobs = device_records.DeviceRecords._jobs

    def early(name: str, records: Any, rows: list[tuple[int, RequestEntry, int]]) -> Any:
        return jobs(name, records, [(row, entry, length + 3) for row, entry, length in rows])

    patch.setattr(device_records.DeviceRecords, "_jobs", staticmethod(early))


def one_record_for_two_pages(patch: MonkeyPatch) -> None:
    def always_the_first(self: TorchFused, kind: int, page: int) -> int:
        of_page = self.buffers.records.of_page[kind]
        if page < 1 or of_page[page] >= 0:
            return -1
        of_page[page] = 0
        return 0

    patch.setattr(TorchFused, "reserve", always_the_first)


def the_sinks_teach(patch: MonkeyPatch) -> None:
    patch.setattr(device_records, "SINKS", 0)


def a_hit_asks_for_nothing(patch: MonkeyPatch) -> None:
    """What was there when a request began is never looked at."""
    note = fused.FusedBackend._note_extends

    def noted(self: Any, *args: Any) -> Any:
        filled, written = note(self, *args)
        for _, entry, length in written:
            if not entry.indexed:
                entry.indexed = {
                    name: length // records.summary.segment_size
                    for name, records in self.records.kinds.items()
                }
        return filled, written

    patch.setattr(fused.FusedBackend, "_note_extends", noted)


def keys_of_another_layer(patch: MonkeyPatch) -> None:
    build = TorchFused.build

    def turned(self: TorchFused, *args: Any) -> None:
        caches = self.caches_of
        self.caches_of = lambda: caches()[::-1]
        build(self, *args)
        self.caches_of = caches

    patch.setattr(TorchFused, "build", turned)


def a_retracted_request_asks_for_nothing(patch: MonkeyPatch) -> None:
    class Kept(dict[str, int]):
        def clear(self) -> None:
            """Not."""

    init = RequestEntry.__init__

    def made(self: RequestEntry, *args: Any, **kwargs: Any) -> None:
        init(self, *args, **kwargs)
        self.indexed = Kept()

    patch.setattr(RequestEntry, "__init__", made)


def retracted(script: Script) -> None:
    """A request loses its pages, and comes back on others that no step of ours wrote."""
    live = script.serve(2, **CODED)
    script.retract(live)
    script.evict(PAGES * PAGE)
    script.load_back(prompt(2))
    script.prefill([live], 1000)
    script.decode([live])


@pytest.mark.parametrize("scenario", [
    scenarios.segment_branch, scenarios.segment_reuse, scenarios.segment_grows,
    scenarios.segment_taken_back, scenarios.segment_load_back, scenarios.segment_died,
    scenarios.segment_second_batch, retracted,
], ids=lambda scenario: scenario.__name__)  # fmt: skip
def test_correct_code_passes(scenario: Callable[[Script], None], sglang: None) -> None:
    """And rows read records in each."""
    script = fused_script()
    scenario(script)
    assert script.checker.indexed


@pytest.mark.parametrize(
    ("install", "scenario"),
    [
        (kept_when_pages_start_anew, scenarios.segment_reuse),
        (whole_before_its_last_token_is_written, scenarios.segment_grows),
        (one_record_for_two_pages, scenarios.segment_second_batch),
        (the_sinks_teach, scenarios.segment_branch),
        (a_hit_asks_for_nothing, scenarios.segment_load_back),
        (keys_of_another_layer, scenarios.segment_branch),
        (a_retracted_request_asks_for_nothing, retracted),
    ],
    ids=lambda value: value.__name__,
)
def test_every_mutant_is_caught(
    install: Callable[[MonkeyPatch], None],
    scenario: Callable[[Script], None],
    sglang: None,
    monkeypatch: MonkeyPatch,
) -> None:
    """By a check in the step that would read the record, or before."""
    install(monkeypatch)
    with pytest.raises(Broken):
        scenario(fused_script())
