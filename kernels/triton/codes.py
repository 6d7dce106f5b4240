"""Ranks of candidate tokens by what their codes stand for, in two launches over the same walk.

A token's key is put together from one centroid for each of its sub-vectors, so its product with a
query is a sum of entries of `table[g, j, k] = q[g, part j]·codebook[j, k]`. Tokens without a record
are multiplied by their own keys.

    parts   maximum and sum of exponentials of every block of tokens
    ranks   reduced softmax of every candidate over all of them

The second launch computes the logits anew: codes are 1 to 8 bytes a token and logits would be 4 G,
written and read. Both get them from the same function, so they are the same bits.

Grid `[rows, H, chunks]`. A program takes every `chunks`-th run, tokens of one segment that are
looked up in one table of it, and every `chunks`-th block without a record, of which there are few
and each reads far more. What is written lies at places fixed in the sequence, whoever wrote it.
"""

import triton
import triton.language as tl

from .primitives import UNIT_BITS, joined, key_rows, load_group, padded, share_of, take_turn
from .score import group_dot
from .select import normalisers, reduced_share


@triton.jit
def load_parts(
    q, stride_group, GROUP: tl.constexpr, DIM: tl.constexpr, SUBSPACES: tl.constexpr,
    UPCAST: tl.constexpr,
):  # fmt: skip
    """The sub-vectors of a group's queries: SUBSPACES of `[16 or more, padded D / m]`."""
    WIDTH: tl.constexpr = DIM // SUBSPACES
    g, d = tl.arange(0, padded(GROUP, 16)), tl.arange(0, padded(WIDTH, 16))
    mask = (g < GROUP)[:, None] & (d < WIDTH)[None, :]
    found = ()
    for j in tl.static_range(SUBSPACES):
        where = q + j * WIDTH + g[:, None] * stride_group + d[None, :]
        rows = tl.load(where, mask=mask, other=0.0)
        found += (rows.to(tl.float32) if UPCAST else rows,)
    return found


@triton.jit
def entries(table, column, GROUP: tl.constexpr):
    """Of a table `[16 or more, K]` its first rows at these columns: `[padded GROUP, tokens]`."""
    WIDTH: tl.constexpr = table.shape[1]
    g = tl.arange(0, padded(GROUP))
    place = g[:, None] * WIDTH + column[None, :]
    flat = tl.reshape(table, [table.shape[0] * WIDTH])
    picked = tl.gather(flat, tl.reshape(place, [padded(GROUP) * column.shape[0]]), 0)
    return tl.reshape(picked, [padded(GROUP), column.shape[0]])


@triton.jit
def key_logits(
    q, keys, table, first, begin, end, scale, stride_slot, GROUP: tl.constexpr, DIM: tl.constexpr,
    UNIT: tl.constexpr, BLOCK: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """Scaled logits `[padded GROUP, BLOCK]` of a block by its tokens' keys; q as `load_group`'s."""
    token = first + tl.arange(0, BLOCK)
    inside = (token >= begin) & (token < end)
    unit = (tl.load(table + token // UNIT, mask=inside, other=0) & UNIT_BITS).to(tl.int64)
    rows = key_rows(keys, unit, inside, token % UNIT, stride_slot, UNIT, DIM)
    return scale * entries(group_dot(q, rows, UPCAST), tl.arange(0, BLOCK), GROUP)


@triton.jit
def table_of(
    q, codebook, there, first, CODES: tl.constexpr, WIDTH: tl.constexpr, PIECE: tl.constexpr,
    UPCAST: tl.constexpr,
):  # fmt: skip
    """Products `[16 or more, PIECE]` with PIECE centroids of `[K, D / m]`, from `first` on."""
    k, d = first + tl.arange(0, PIECE), tl.arange(0, padded(WIDTH, 16))
    mask = (k < CODES)[:, None] & (d < WIDTH)[None, :] & there
    rows = tl.load(codebook + k[:, None] * WIDTH + d[None, :], mask=mask, other=0.0)
    return group_dot(q, rows, UPCAST)


@triton.jit
def coded_logits(
    queries, codes, codebooks, there, scale, GROUP: tl.constexpr, DIM: tl.constexpr,
    SUBSPACES: tl.constexpr, CODES: tl.constexpr, SEGMENT: tl.constexpr, RUN: tl.constexpr,
    PIECE: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """Scaled logits `[padded GROUP, RUN]` of a run by its codes.

    Args:
        queries: as `load_parts` returns them.
        codes: uint8 `[m, S]` of the run's record, from the run's first token on.
        codebooks: `[m, K, D / m]` of it.
        there: whether it has one; else nothing is read.
    """
    WIDTH: tl.constexpr = DIM // SUBSPACES
    logit = tl.zeros([padded(GROUP), RUN], tl.float32)
    for j in tl.static_range(SUBSPACES):
        where = codes + j * SEGMENT + tl.arange(0, RUN)
        code = tl.load(where, mask=there, other=0).to(tl.int32)
        codebook = codebooks + j * CODES * WIDTH
        if CODES <= PIECE:
            table = table_of(queries[j], codebook, there, 0, CODES, WIDTH, PIECE, UPCAST)
            logit += entries(table, code, GROUP)
        else:
            found = tl.zeros([padded(GROUP), RUN], tl.float32)
            for first in range(0, CODES, PIECE):
                table = table_of(queries[j], codebook, there, first, CODES, WIDTH, PIECE, UPCAST)
                among = (code >= first) & (code < first + PIECE)
                some = entries(table, tl.where(among, code - first, 0), GROUP)
                found = tl.where(among[None, :], some, found)
            logit += found
    return scale * logit


@triton.jit
def leave_parts(
    logit, first, there, begin, end, parts, BLOCK: tl.constexpr, GROUP: tl.constexpr
):  # fmt: skip
    """Maximum and sum of each block of logits `[padded GROUP, tokens]`, as `score_kernel`'s."""
    BLOCKS: tl.constexpr = logit.shape[1] // BLOCK
    token = first + tl.arange(0, logit.shape[1])
    inside = (token >= begin) & (token < end)
    logit = tl.where(inside[None, :], logit, float("-inf"))
    blocks = tl.reshape(logit, [padded(GROUP), BLOCKS, BLOCK])
    best = tl.max(blocks, 2)
    total = tl.sum(share_of(blocks, best[:, :, None]), 2)
    g = tl.arange(0, padded(GROUP))
    start = first + tl.arange(0, BLOCKS) * BLOCK
    written = (g < GROUP)[:, None] & ((start < end) & (start + BLOCK > begin) & there)[None, :]
    part = parts + (start // BLOCK)[None, :] * 2 * GROUP + g[:, None]
    tl.store(part, best, mask=written)
    tl.store(part + GROUP, total, mask=written)


@triton.jit
def leave_ranks(
    logit, first, there, begin, end, whole, ranks, mean, GROUP: tl.constexpr
):  # fmt: skip
    """Log of the reduced softmax of candidates, as `select.group_rank` has it.

    Args:
        logit: `[padded GROUP, tokens]`.
        whole: `[padded GROUP]`, log-sum-exp over all candidates.
        ranks: of the row and KV head.
        mean: reduction over the group by mean, else by maximum.
    """
    token = first + tl.arange(0, logit.shape[1])
    inside = (token >= begin) & (token < end) & there
    real = tl.broadcast_to((tl.arange(0, padded(GROUP)) < GROUP)[:, None], logit.shape)
    rank = reduced_share(logit - whole[:, None], real, mean, GROUP)
    tl.store(ranks + token, rank, mask=inside)


@triton.jit
def leave(
    logit, first, there, begin, end, whole, parts, ranks, mean, RANKS: tl.constexpr,
    BLOCK: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    """Whichever of the two this launch is for."""
    if RANKS:
        leave_ranks(logit, first, there, begin, end, whole, ranks, mean, GROUP)
    else:
        leave_parts(logit, first, there, begin, end, parts, BLOCK, GROUP)


@triton.jit(do_not_specialize=["layer", "chunks", "blocks", "segments"])
def codes_kernel(
    q,
    keys,
    codes,
    codebooks,
    table,
    records,
    formulas,
    begins,
    ends,
    dense_layers,
    goals,
    known,
    parts,
    ranks,
    scale,
    layer,
    chunks,
    blocks,
    width,
    segments,
    stride_q_row,
    stride_q_head,
    stride_q_group,
    stride_slot,
    stride_key_head,
    stride_code_record,
    stride_code_head,
    stride_book_record,
    stride_book_head,
    stride_table,
    stride_records,
    RANKS: tl.constexpr,
    MEAN: tl.constexpr,
    CODED: tl.constexpr,
    GROUP: tl.constexpr,
    DIM: tl.constexpr,
    UNIT: tl.constexpr,
    SUBSPACES: tl.constexpr,
    CODES: tl.constexpr,
    SEGMENT: tl.constexpr,
    RUN: tl.constexpr,
    BLOCK: tl.constexpr,
    PIECE: tl.constexpr,
    PARTS: tl.constexpr,
    STAGES: tl.constexpr,
    UPCAST: tl.constexpr,
    COVERS: tl.constexpr,
    EARLY: tl.constexpr = False,
):
    """A share of the candidates of one row and KV head: their parts, or when RANKS their ranks.

    Args:
        q: `[rows, H, G, D]`.
        keys: `[slots, H, D]`.
        codes: uint8 `[records, H, m, S]`; codebooks: `[records, H, m, K, D / m]`.
        table: int32 `[rows, stride_table]`, physical units; the sign is not looked at.
        records: int32 `[rows, stride_records]`, record of each segment, negative for none. Of
            `segments` in a row those are read that begin below `end`.
        formulas, begins, ends, dense_layers: int32 `[rows]`; candidates are tokens here. Rows
            with another formula than CODED, or dense in this layer, are left alone.
        goals, known: see `cover.spread_kernel`; read when COVERS and RANKS. Ranks of rows with
            a goal are by mean, and of all attention.
        parts: float32 `[rows, H, blocks, 2, G]`: maximum and sum of each block with candidates,
            written; or read when RANKS.
        ranks: float32 `[rows, H, width]`, written for candidates alone when RANKS, else anything.
        MEAN: reduction over the group by mean, else by maximum.
        RUN: tokens that are looked up at a time; divides SEGMENT, and BLOCK divides it.
        PIECE: centroids that are multiplied at a time.
        PARTS: blocks whose sums are added at a time.
        EARLY: see `take_turn`.
    """
    take_turn(EARLY)
    row, chunk = tl.program_id(0).to(tl.int64), tl.program_id(2)
    head = tl.program_id(1).to(tl.int64)
    pair = row * tl.num_programs(1) + head
    begin, end = tl.load(begins + row), tl.load(ends + row)
    ranked = (tl.load(formulas + row) == CODED) & (layer >= tl.load(dense_layers + row))
    if (ranked == 0) | (begin >= end):
        return
    q += row * stride_q_row + head * stride_q_head
    keys += head * stride_key_head
    codes += head * stride_code_head
    codebooks += head * stride_book_head
    table += row * stride_table
    records += row * stride_records
    parts += pair * blocks * 2 * GROUP
    ranks += pair * width
    whole, mean = tl.zeros([padded(GROUP)], tl.float32), MEAN
    if RANKS:
        g = tl.arange(0, padded(GROUP))
        whole = normalisers(parts, begin, end, g, BLOCK, GROUP, PARTS)
        if COVERS:
            mean = mean | (tl.load(goals + row) > 0)
            beside = tl.load(known + pair * GROUP + g, mask=g < GROUP, other=0.0)
            whole = tl.where(tl.load(goals + row) > 0, joined(whole, beside), whole)
    queries = load_group(q, stride_q_group, GROUP, DIM, UPCAST)
    for block in range(begin // BLOCK + chunk, tl.cdiv(end, BLOCK), chunks):
        segment = block * BLOCK // SEGMENT
        if tl.load(records + segment, mask=segment < segments, other=-1) < 0:
            logit = key_logits(
                queries, keys, table, block * BLOCK, begin, end, scale, stride_slot,
                GROUP, DIM, UNIT, BLOCK, UPCAST,
            )  # fmt: skip
            leave(
                logit, block * BLOCK, True, begin, end, whole, parts, ranks, mean,
                RANKS, BLOCK, GROUP,
            )  # fmt: skip
    cut = load_parts(q, stride_q_group, GROUP, DIM, SUBSPACES, UPCAST)
    last = tl.cdiv(tl.minimum(end, segments * SEGMENT), RUN)
    for run in tl.range(begin // RUN + chunk, last, chunks, num_stages=STAGES):
        record = tl.load(records + run * RUN // SEGMENT).to(tl.int64)
        logit = coded_logits(
            cut, codes + record * stride_code_record + run * RUN % SEGMENT,
            codebooks + record * stride_book_record, record >= 0, scale,
            GROUP, DIM, SUBSPACES, CODES, SEGMENT, RUN, PIECE, UPCAST,
        )  # fmt: skip
        leave(
            logit, run * RUN, record >= 0, begin, end, whole, parts, ranks, mean,
            RANKS, BLOCK, GROUP,
        )  # fmt: skip
