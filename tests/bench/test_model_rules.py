"""What must hold of the byte model whatever the figures, and its command."""

import json
import math
from dataclasses import replace
from itertools import pairwise

import pytest
from figures import K, agrees

from bench.model import (
    GPUS,
    LLAMA_3_1_8B,
    METADATA,
    Costs,
    Workload,
    break_even,
    break_even_by_bytes,
    fa3_us,
    floors,
    max_selection_for_step,
    max_selection_us,
    shared_floors,
    spare_us,
)
from bench.model.__main__ import main

H200, LLAMA = GPUS["h200"], LLAMA_3_1_8B


@pytest.mark.parametrize("method", METADATA)
@pytest.mark.parametrize("page", [16, 64])
def test_sparse_is_dense_at_the_break_even(method, page):
    work = Workload(1, 4, page, 2048, method)
    tokens = break_even_by_bytes(LLAMA, work)
    if tokens == math.inf or method == "streaming":
        assert tokens in (math.inf, work.budget)
        return
    below, above = (
        floors(H200, LLAMA, replace(work, context=around(tokens)))
        for around in (math.floor, math.ceil)
    )
    if tokens > work.budget + 1:
        assert below.attention_gain <= 1
    assert above.attention_gain >= 1


@pytest.mark.parametrize("batch", [1, 8, 32])
def test_sparse_is_dense_at_the_break_even_of_a_price(batch):
    tokens = break_even(H200, LLAMA, Workload(1, batch), 12.0, 5.0)
    work = Workload(round(tokens), batch)
    found = floors(H200, LLAMA, work, Costs(selection_us=12.0, launch_us=2.5))
    assert found.attention_gain == pytest.approx(1, rel=1e-3)
    assert found.step_gain == pytest.approx(1, rel=1e-3)


def test_a_budget_that_covers_the_context_is_dense():
    for costs in (None, Costs(selection_us=20, launch_us=3), Costs(dense_us=9, attend_us=2)):
        found = floors(H200, LLAMA, Workload(2048, 8, budget=2048), costs)
        assert found.attention_gain == found.step_gain == 1


def test_gains_grow_with_batch_and_context_and_fall_with_price():
    price = Costs(selection_us=10)
    shapes = [(16 * K, 1), (32 * K, 1), (32 * K, 8), (128 * K, 8), (128 * K, 32)]
    gains = [floors(H200, LLAMA, Workload(*shape), price) for shape in shapes]
    for one, other in pairwise(gains):
        assert one.attention_gain < other.attention_gain
        assert one.step_gain < other.step_gain
    steps = [
        floors(H200, LLAMA, Workload(32 * K), Costs(selection_us=us)).step_gain
        for us in (0, 5, 10, 20)
    ]
    assert steps == sorted(steps, reverse=True)
    batches = [break_even(H200, LLAMA, Workload(1, batch), 10) for batch in (1, 2, 4, 8)]
    assert batches == sorted(batches, reverse=True)


def test_ratios_do_not_depend_on_bandwidth():
    work = Workload(32 * K, 8)
    slow, fast = (floors(replace(H200, tb_per_s=speed), LLAMA, work) for speed in (1.0, 4.3))
    assert slow.attention_gain == pytest.approx(fast.attention_gain)
    assert slow.step_gain == pytest.approx(fast.step_gain)


@pytest.mark.parametrize("gain", [1.0, 1.5, 2.0])
def test_the_greatest_price_gives_the_wanted_gain(gain):
    work = Workload(32 * K, 8)
    free = floors(H200, LLAMA, work, Costs(selection_us=0))
    attention = Costs(selection_us=max_selection_us(free.dense_us, free.attend_us, gain))
    assert floors(H200, LLAMA, work, attention).attention_gain == pytest.approx(gain)
    step = Costs(selection_us=max_selection_for_step(free, gain))
    assert floors(H200, LLAMA, work, step).step_gain == pytest.approx(gain)


def test_the_spare_time_costs_its_share_of_the_step():
    work = Workload(32 * K, 8)
    found = floors(H200, LLAMA, work)
    dearer = Costs(selection_us=found.selection_us + spare_us(found, 0.1))
    slower = floors(H200, LLAMA, work, dearer).sparse_step_us
    assert slower == pytest.approx(1.1 * found.sparse_step_us)


def test_sharing_nothing_shares_nothing():
    work = Workload(32 * K, 8)
    found = shared_floors(H200, LLAMA, work, prefix=0)
    assert found.cascade_us == pytest.approx(found.dense_us)
    assert found.shared_us == pytest.approx(found.sparse_us)
    alone = shared_floors(H200, LLAMA, replace(work, batch=1))
    assert alone.cascade_us == pytest.approx(alone.dense_us)
    with pytest.raises(ValueError, match="prefix must be"):
        shared_floors(H200, LLAMA, work, prefix=work.context + 1)


def test_anchors_lie_on_a_line_between_measurements():
    assert fa3_us(4096, 8) == pytest.approx(41.6)
    assert fa3_us(2560, 1) == pytest.approx((11.0 + 14.5) / 2)
    for tokens, batch in ((512, 1), (64 * K, 8), (4096, 4)):
        with pytest.raises(ValueError, match="for FA3"):
            fa3_us(tokens, batch)


def test_the_command_prints_a_table_and_json(capsys):
    args = ["--context", "32768", "--batch", "8", "--page", "64", "--budget", "2048"]
    assert main([*args, "--selection-us", "10"]) == 0
    assert "9.75x" in capsys.readouterr().out
    assert main([*args, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    agrees(found["gain"]["step"], "2.79")
    agrees(found["break_even_tokens"]["bytes"], "2081")
    assert main(["--fa3", "--budget", "1024", "--selection-us", "5", "--json"]) == 0
    agrees(json.loads(capsys.readouterr().out)["gain"]["attention"], "2.72")


@pytest.mark.parametrize(
    "args",
    [
        ["--context", "many"],
        ["--context", "0"],
        ["--gpu", "abacus"],
        ["--model", "abacus"],
        ["--method", "abacus"],
        ["--dense-us", "0"],
        ["--selection-us", "-1"],
        ["--launch-us", "nan"],
        ["--fa3", "--batch", "3"],
        ["--fa3", "--dense-us", "3"],
        ["--abacus"],
    ],
)
def test_wrong_arguments_give_one_sentence(args, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(args)
    assert stopped.value.code == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("bench.model: ")
    assert printed.err.count("\n") == 1
