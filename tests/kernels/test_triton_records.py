"""The map of segment records on the device, against one that is kept by hand."""

from collections.abc import Iterator

import pytest
import torch
from sgl_sparsekv.kernels.triton import coded
from sgl_sparsekv.kernels.triton.coded import CodedRows
from sgl_sparsekv.kernels.triton.records import TAKEN, allocate_records
from triton_kit import DEVICE

from sgl_sparsekv.segments.index import clusters, products
from sgl_sparsekv.types import RecordShape, Reduction, StepShape

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning:triton")
PAGE, PAGES, ROWS, CONTEXT = 16, 40, 4, 512
SIZES, CAPACITIES = (64, 128), (11, 5)


class ByHand:
    """One kind of records: pages in the order that they were given records."""

    def __init__(self, size: int, capacity: int) -> None:
        self.size, self.capacity, self.next = size, capacity, 0
        self.page_of = [-1] * capacity
        self.built = self.evicted = 0

    def reserve(self, page: int) -> int:
        """The record that a page gets, or -1."""
        if page < 1 or page in self.page_of:
            return -1
        ring = [(self.next + i) % self.capacity for i in range(self.capacity)]
        record = next((r for r in ring if self.page_of[r] < 0), self.next)
        self.evicted += self.page_of[record] >= 0
        self.built += 1
        self.page_of[record], self.next = page, (record + 1) % self.capacity
        return record

    def forget(self, page: int) -> None:
        """The page starts anew."""
        self.page_of = [-1 if p == page else p for p in self.page_of]


@pytest.fixture
def rows(monkeypatch: pytest.MonkeyPatch) -> Iterator[CodedRows]:
    """Two kinds of records; none is really built."""
    summaries = clusters(SIZES[0], 8), products(SIZES[1], 2, 2)
    kinds = tuple(
        RecordShape(s, capacity, PAGES) for s, capacity in zip(summaries, CAPACITIES, strict=True)
    )
    shape = StepShape(
        ROWS, 9, CONTEXT // 16, CONTEXT, PAGES, 1, 1, 64, 64, 16, PAGE, torch.float32, DEVICE,
        frozenset({"clusters", "products"}), Reduction.MAX_SOFTMAX, None, 1, kinds,
    )  # fmt: skip
    held = allocate_records(
        list(SIZES), list(CAPACITIES), ROWS, CONTEXT // SIZES[0], PAGES, DEVICE
    )  # fmt: skip
    assert (held.page_of[1, CAPACITIES[1] :] == TAKEN).all()
    monkeypatch.setattr(coded, "index_segments", lambda *_: None)
    yield CodedRows(shape, held)


def test_records_live_and_die_with_their_pages(rows: CodedRows) -> None:
    """Any order of whole segments, pages that start anew, and rows that are listed."""
    rng = torch.Generator().manual_seed(1)
    hands = {
        name: ByHand(*x)
        for name, x in zip(rows._kinds, zip(SIZES, CAPACITIES, strict=True), strict=True)
    }
    slots = torch.zeros(9, CONTEXT, dtype=torch.int32)
    nothing = torch.empty(0, device=DEVICE)
    arrays = {"codes": nothing, "codebooks": nothing}

    def draw(high: int, count: int = 1) -> list[int]:
        return torch.randint(high, (count,), generator=rng).tolist()

    for _ in range(60):
        (request,) = draw(9)
        pages = torch.randint(0, PAGES, (CONTEXT // PAGE,), generator=rng)
        slots[request] = (pages[:, None] * PAGE + torch.arange(PAGE)).flatten().int()
        table = slots.to(DEVICE)
        written = torch.tensor([p * PAGE + at for p in draw(PAGES, 3) for at in draw(PAGE)])
        rows.forget(written.to(DEVICE))
        for (name, hand), kind in zip(hands.items(), range(2), strict=True):
            for slot in written.tolist():
                hand.forget(slot // PAGE)
            jobs = [[r, n, -7] for r in draw(9, 2) for n in draw(CONTEXT // hand.size, 2)]
            ends = [int(slots[r, (n + 1) * hand.size - 1]) // PAGE for r, n, _ in jobs]
            want = [hand.reserve(page) for page in ends]
            there = torch.tensor(jobs, dtype=torch.int32, device=DEVICE)
            rows.build(name, there, table, (nothing, nothing), (nothing, nothing), arrays, 16)
            assert there[:, 2].tolist() == want
            held = rows.held
            assert held.page_of[kind, : hand.capacity].tolist() == hand.page_of
            assert held.told[kind].tolist() == [hand.built, hand.evicted]
            assert int(held.next[kind]) == hand.next
        places, lengths = torch.tensor(draw(9, ROWS)), torch.tensor(draw(CONTEXT, ROWS)) + 1
        rows.begin(places.to(DEVICE), lengths.to(DEVICE), table)
        for kind, hand in enumerate(hands.values()):
            for row, (place, length) in enumerate(
                zip(places.tolist(), lengths.tolist(), strict=True)
            ):
                ends = slots[place, hand.size - 1 : length : hand.size] // PAGE
                known = {page: r for r, page in enumerate(hand.page_of) if page >= 0}
                found = [known.get(page, -1) for page in ends.tolist()]
                listed = held.table[kind, row].tolist()
                assert listed == found + [-1] * (len(listed) - len(found))
    assert all(hand.evicted for hand in hands.values())
