"""Rows that begin alike stand together."""

from sgl_sparsekv.backend.prefix_order import BLOCK, order_of, prefix_of


def test_prompts_are_alike_as_far_as_their_blocks() -> None:
    text = list(range(3 * BLOCK + 5))
    assert len(prefix_of(text)) == 3 and prefix_of(text[: BLOCK - 1]) == ()
    other = [*text[: 2 * BLOCK], 7, *text[2 * BLOCK + 1 :]]
    assert prefix_of(other)[:2] == prefix_of(text)[:2] and prefix_of(other)[2] != prefix_of(text)[2]
    assert prefix_of(text) == prefix_of([*text, 1]), "what is no whole block says nothing"


def test_rows_of_two_prefixes_in_turn_are_put_together() -> None:
    a, b = (prefix_of([start] * 2 * BLOCK) for start in (1, 2))
    order = order_of([a, b, (*a, 5), b, (), a]).tolist()
    assert sorted(order) == list(range(6))
    assert abs(order.index(1) - order.index(3)) == 1
    places = [order.index(row) for row in (0, 2, 5)]
    assert max(places) - min(places) == 2
    assert order_of([(), (), ()]).tolist() == [0, 1, 2], "rows that are alike keep their order"
