"""What methods are predicted to cost, against bytes counted by hand."""

import pytest

from bench.model.hardware import LLAMA_3_1_8B
from bench.model.methods import beside, choosing, layer
from sgl_sparsekv.selection import load_method

FLOORS = {
    "quest": 8 * 32_768 * 16,
    "quest_int8": 8 * 32_768 * 9,
    "quest_two_level": 8 * (32_768 * 4 + 8 * 512 * 16),
    "shadowkv": 8 * 4096 * 258,
    "clusterkv": 8 * 64 * (512 + 32 * 256),
    "pqcache": 8 * 64 * (4 * 512 + 16 * 256),
    "residual_pq": 8 * 64 * (3 * 16 * 128 + 4 * 36 + 512 * 4 + 16 * 2),
}
"""Bytes of metadata of 32k tokens and 8 KV heads of 128 channels."""


@pytest.mark.parametrize("method", FLOORS)
def test_the_floor_is_what_must_be_read(method: str) -> None:
    found = layer("h200", method, 32_768, 1, 512)
    want = (FLOORS[method] + 512 * 8 * 512) / 4.2e6
    assert found.floor == pytest.approx(want)
    assert found.choose + found.attend > found.floor
    assert choosing(LLAMA_3_1_8B)[method].unit == (load_method(method).unit_size or 32)


@pytest.mark.parametrize("method", FLOORS)
def test_finer_units_read_hardly_more(method: str) -> None:
    """An entry of the list is 4 bytes beside 512 of K and V."""
    found = layer("h200", method, 32_768, 1, 512)
    assert 0.999 < found.bytes_over_pages < 1.01


def test_one_program_opens_the_clusters_of_a_row() -> None:
    """16 for each segment of 512, 256 at a time, whatever the batch."""
    choose = [layer("h200", "residual_pq", 1 << 17, n, 512).choose for n in (1, 2)]
    read = FLOORS["residual_pq"] * 4 * 2 / 4.2e6 / 0.85
    assert choose[1] - choose[0] == pytest.approx(read + 3 * 2 * 0.5)
    assert choose[0] > 16 * 1.2 + 4 + read


def test_tokens_are_chosen_in_parallel() -> None:
    """64 chunks of 8 KV heads are two rounds of programs in each of three launches, whatever is
    kept; a row of one chunk is one program's."""
    choose = {n: layer("h200", "pqcache", 1 << n, 1, 512).choose for n in (11, 16, 17)}
    read = (FLOORS["pqcache"] * 2 / 4.2e6) / 0.85  # of 32k, twice
    assert choose[17] - choose[16] == pytest.approx(2 * read + 3 * 0.5)
    assert choose[16] - choose[11] == pytest.approx(read * (2 - 2**-4) + 4.5 + 2.5 + 2 * 0.5)
    assert layer("h200", "pqcache", 1 << 17, 1, 4096).choose == choose[17]


def test_the_best_segments_alone_are_looked_into() -> None:
    """A context four times as long: bounds of its segments, and as many units as before."""
    found = [layer("h200", "quest_two_level", n, 1, 512) for n in (1 << 15, 1 << 17)]
    more = 3 * 32_768 * 4 * 8 / 4.2e6
    assert found[1].floor - found[0].floor == pytest.approx(more)
    quest = layer("h200", "quest", 1 << 15, 1, 512)
    assert found[0].choose - quest.choose > 2.5 - 8 * 32_768 * 16 / 4.2e6


def test_what_is_held_saves_reading_and_no_launches() -> None:
    """At a price of one launch, in every step."""
    for batch in (1, 8):
        choose = layer("h200", "quest", 1 << 17, batch, 512).choose
        held = beside("h200", "quest", 1 << 17, batch, 512, every=4).held
        assert held == pytest.approx(3 + (choose + 3 * (2.5 + 3)) / 4)
    assert beside("h200", "quest", 1 << 17, 8, 512).held < choose / 1.5


def test_telemetry_reads_all_keys_and_a_coverage_looks_at_chunks_in_parallel() -> None:
    found = {n: beside("h200", "clusterkv", n, 1, 512) for n in (1 << 15, 1 << 17)}
    keys = (1 << 15) * 8 * 256 / 4.2e6 / 0.88
    assert found[1 << 15].telemetry == pytest.approx(3.5 + keys)
    assert found[1 << 17].telemetry == pytest.approx(3.5 + 4 * keys)
    assert found[1 << 15].coverage == pytest.approx(5 * 2.5 + 3 + 0.3 + 2)
    assert found[1 << 17].coverage == pytest.approx(5 * 2.5 + 3 * 2 + 0.3 + 2), "1,024 chunks"
    quest = beside("h200", "quest", 1 << 15, 1, 512).coverage
    assert quest == pytest.approx(5 * 2.5 + 3 + 32 * 0.3 + 2), "units of 32 tokens, one by one"
