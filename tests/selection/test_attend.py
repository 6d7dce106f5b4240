"""R6 at the level of one op: attention over a list is attention over its tokens, and no others."""

import pytest
import torch
from helpers.rows import Rows, make_rows

from sgl_sparsekv.ops import load_ops

OPS = load_ops("reference")
BATCHES = 40
LSE_ERROR = 5e-6
"""Of 200 products of 16 float32 terms below 20: 16 roundings of 1.2e-7 of the largest."""


def attend(rows: Rows, table: torch.Tensor, counts: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """The op over listed units `[rows, H, n]`."""
    return OPS.attend(
        rows.q, rows.keys, rows.values, table, counts, rows.tails, rows.scale, rows.unit
    )


def everything(rows: Rows) -> torch.Tensor:
    """One list for all heads: every unit of the row."""
    return rows.table[:, None, :].expand(-1, rows.heads, -1)


def exact(rows: Rows, row: int, tokens: torch.Tensor, head: int) -> tuple[torch.Tensor, ...]:
    """Attention in float64 over some positions of a row, and its log-sum-exp."""
    slots = rows.slots(row)[tokens]
    logits = rows.q[row, head].double() @ rows.keys[slots, head].double().T * rows.scale
    return logits.softmax(-1) @ rows.values[slots, head].double(), logits.logsumexp(-1)


@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16, torch.float16))
def test_a_selection_that_keeps_all_is_bit_equal_to_dense(dtype: torch.dtype) -> None:
    """R6: same kernel, budget >= context, units in order: the same bits."""
    for number in range(BATCHES):
        rows = make_rows(number, count=1 + number % 5, dtype=dtype)
        scores = torch.randn(len(rows.lengths), rows.heads, rows.width)
        selection = OPS.select(scores, rows.candidates, rows.num_units, rows.num_units)
        dense = attend(rows, everything(rows), rows.num_units)
        sparse = attend(rows, selection.physical, selection.counts)
        assert torch.equal(dense[0], sparse[0]) and torch.equal(dense[1], sparse[1])
    print(f"R6: {BATCHES} {dtype} batches bit-equal to dense")


@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16, torch.float16))
def test_dense_is_as_near_to_float64_as_torch(dtype: torch.dtype) -> None:
    """Not further from float64 than twice torch's own attention in float32, plus one rounding."""
    for number in range(BATCHES):
        rows = make_rows(100 + number, count=3, dtype=dtype)
        out, lse = attend(rows, everything(rows), rows.num_units)
        for i, length in enumerate(rows.lengths):
            slots = rows.slots(i)
            for head in range(rows.heads):
                wanted, wanted_lse = exact(rows, i, torch.arange(length), head)
                torch_out = torch.nn.functional.scaled_dot_product_attention(
                    rows.q[i, head].float()[None],
                    rows.keys[slots, head].float()[None],
                    rows.values[slots, head].float()[None],
                    scale=rows.scale,
                )[0]
                band = 2 * (torch_out - wanted).abs().amax() + 4e-7 * wanted.abs().amax()
                band = band + torch.finfo(dtype).eps / 2 * wanted.abs().amax()
                assert (out[i, head] - wanted).abs().amax() <= band
                torch.testing.assert_close(
                    lse[i, head].double(), wanted_lse, rtol=0, atol=LSE_ERROR
                )


def test_listed_tokens_are_read_and_no_others() -> None:
    """Every head its own list; everything else in the pool may be NaN."""
    for number in range(BATCHES):
        rows = make_rows(200 + number, count=4)
        scores = torch.randn(len(rows.lengths), rows.heads, rows.width)
        selection = OPS.select(scores, rows.candidates, rows.num_units, rows.counts)
        out, lse = attend(rows, selection.physical, selection.counts)
        for i, length in enumerate(rows.lengths):
            for head in range(rows.heads):
                units = selection.logical[i, head, : int(rows.counts[i])].long()
                tokens = (units[:, None] * rows.unit + torch.arange(rows.unit)).reshape(-1)
                wanted, wanted_lse = exact(rows, i, tokens[tokens < length], head)
                torch.testing.assert_close(out[i, head].double(), wanted, rtol=1e-5, atol=1e-6)
                torch.testing.assert_close(
                    lse[i, head].double(), wanted_lse, rtol=0, atol=LSE_ERROR
                )


def test_merged_halves_are_the_whole() -> None:
    """Two lists over disjoint units, merged, give what one list over both gives."""
    for number in range(BATCHES):
        rows = make_rows(300 + number, count=2)
        total = rows.num_units
        if int(total.min()) < 2:
            continue
        table, half = everything(rows), total // 2
        later = torch.zeros_like(rows.table)
        for i in range(2):
            rest = int(total[i] - half[i])
            later[i, :rest] = rows.table[i, half[i] : total[i]]
        full_tails = torch.full_like(rows.tails, rows.unit)
        first = OPS.attend(
            rows.q, rows.keys, rows.values, table, half, full_tails, rows.scale, rows.unit
        )
        second = attend(rows, later[:, None].expand_as(table), total - half)
        whole = attend(rows, table, total)
        out, lse = OPS.merge(*first, *second)
        torch.testing.assert_close(out, whole[0], rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(lse, whole[1])


def test_a_row_is_read_alike_alone_and_in_a_batch() -> None:
    """R8: bit for bit."""
    for number in range(BATCHES):
        rows = make_rows(400 + number, count=5)
        out, lse = attend(rows, everything(rows), rows.num_units)
        for i in range(5):
            one = rows.take([i])
            single = attend(one, everything(one), one.num_units)
            assert torch.equal(single[0][0], out[i]) and torch.equal(single[1][0], lse[i])
