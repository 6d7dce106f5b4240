"""Two CPU ranks select per head what one rank selects."""

from sgl_sparsekv.models.documents import chain_document
from sgl_sparsekv.tooling.servers import ServerProcess
from sgl_sparsekv.views.stretches import kept_in

from .client import Ask, ask_for, generate
from .fleet import Fleet
from .test_answers import Read, all_selections

METHODS = ("quest", "clusterkv", "snapkv")


def test_two_ranks_select_per_head_what_one_selects(fleet: Fleet, ours: ServerProcess) -> None:
    """KV head h of one rank is head 0 of rank h, in units, in single tokens and in views; a
    response tells which tokens the first rank keeps."""
    pair = fleet.get("two_ranks")
    document = chain_document(3000, num_questions=1, num_hops=8, seed=31)

    def ask(method: str, ranks: int) -> Ask:
        options = {"method": method, "budget": 256, "kept_map": True}
        return ask_for(document, document.questions[0], options, rid=f"tp-{ranks}-{method}")

    ones = all_selections(fleet, ours, [ask(method, 1) for method in METHODS])
    twos = all_selections(fleet, pair, [ask(method, 2) for method in METHODS], ranks=2, at=2)
    for method, one, two in zip(METHODS, ones, twos, strict=True):
        assert len(one) >= 7 * 3 and len(two) == 2 * len(one)
        for (length, layer, _), heads in one.items():
            for head, units in enumerate(heads):
                assert two[length, layer, head] == [units], method
    view = generate(pair.url, ask("snapkv", 2))["meta_info"]["sparsekv"]["view"]
    assert view["map"].keys() == {"0", "1", "2"}
    for number, (head,) in view["map"].items():
        assert [kept_in(head).tolist()] == _before(twos[-1], view["made"], int(number))
    fleet.stop("two_ranks")


def _before(read: Read, made: int, layer: int) -> list[list[int]]:
    """What the first rank read of the first `made` tokens in the step behind them."""
    return [[token for token in head if token < made] for head in read[made + 1, layer, 0]]
