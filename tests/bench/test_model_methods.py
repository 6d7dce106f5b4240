"""What methods are predicted to cost, against bytes counted by hand."""

import pytest

from bench.model.hardware import LLAMA_3_1_8B
from bench.model.methods import choosing, layer
from sgl_sparsekv.selection import load_method

FLOORS = {
    "quest": 8 * 32_768 * 16,
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
