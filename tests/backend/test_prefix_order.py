"""Rows that begin alike stand together."""

import numpy as np

from sgl_sparsekv.backend.prefix_order import BLOCK, in_common, order_of, prefix_of, together


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


def rows_of(*prefixes: list[int]) -> np.ndarray:
    """Tables of 8 units: a prefix, and then pages that are nobody else's."""
    return np.array(
        [[*own, *range(100 * i + 100, 100 * i + 108 - len(own))] for i, own in enumerate(prefixes)],
        dtype=np.int32,
    )


def test_neighbours_have_in_common_what_they_begin_with() -> None:
    table = rows_of([1, 2, 3], [1, 2, 3, 4], [1, 9], [], [5])
    assert in_common(table).tolist() == [0, 3, 1, 0, 0]
    assert in_common(table[[0, 0]]).tolist() == [0, 8], "all that there is"
    assert in_common(table[:1]).tolist() == [0]


def test_rows_of_a_tree_become_neighbours() -> None:
    """Two trees in turn, one of them with a branch."""
    table = rows_of([1, 2, 3], [7, 8], [1, 2], [7], [1, 2, 3], [7, 8])
    order = together(table)
    assert sorted(order.tolist()) == list(range(6))
    assert sorted(in_common(table[order]).tolist()) == [0, 0, 1, 2, 2, 3]


def test_rows_stay_as_they_come_where_nothing_is_gained() -> None:
    for table in (
        rows_of([1], [1], [1]),
        rows_of([], [], []),
        rows_of([1, 2], [1, 2], [9], [1])[:2],
    ):
        assert together(table).tolist() == list(range(len(table)))
    assert together(rows_of([1], [2], [1])).tolist() != [0, 1, 2]
