"""Two CPU ranks select per head what one rank selects."""

from sgl_sparsekv.models.documents import chain_document
from sgl_sparsekv.tooling.servers import ServerProcess

from .client import ask_for
from .fleet import Fleet
from .test_answers import selections

METHODS = ("quest", "clusterkv", "snapkv")


def test_two_ranks_select_per_head_what_one_selects(fleet: Fleet, ours: ServerProcess) -> None:
    """KV head h of one rank is head 0 of rank h, in units and in single tokens."""
    pair = fleet.get("two_ranks")
    document = chain_document(3000, num_questions=1, num_hops=8, seed=31)
    for method in METHODS:
        options = {"method": method, "budget": 256}
        asks = [
            ask_for(document, document.questions[0], options, rid=f"tp-{ranks}-{method}")
            for ranks in (1, 2)
        ]
        one = selections(fleet, ours, asks[0])
        two = selections(fleet, pair, asks[1], ranks=2, at=2)
        assert len(one) >= 7 * 3 and len(two) == 2 * len(one)
        for (length, layer, _), heads in one.items():
            for head, units in enumerate(heads):
                assert two[length, layer, head] == [units], method
    fleet.stop("two_ranks")
