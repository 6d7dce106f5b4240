"""Selection quality: bytes by hand, figures on cases one can work out, and the command."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.stop import StoppedAt

from bench.quality import report, run
from bench.quality.__main__ import main
from bench.quality.cost import bytes_read, equal_budget
from bench.quality.dump import Dump, LayerDump, dump
from bench.quality.eight_bit import rounded
from bench.quality.low_rank import study
from bench.quality.measure import Bench, Truth, error_of, mass_of
from bench.quality.methods import VARIANTS, Variant, clustered, quantised
from bench.quality.results import load, newest, save
from bench.quality.run import measure_dump
from bench.quality.subjects import QUERIES, facts, spread
from sgl_sparsekv.models.corpus import bpe_tokenizer, learn_merges
from sgl_sparsekv.ops import load_ops
from sgl_sparsekv.selection.two_level import SEGMENT
from sgl_sparsekv.types import Selection

QUEST = VARIANTS[0]
NAMED = {variant.name: variant for variant in VARIANTS}
DIM = 64


def layer(
    length: int = 1536,
    group: int = 1,
    rows: int = 6,
    distinct: int | None = None,
    sharp: float = 3.0,
):
    """A layer whose queries look for one key each; keys of a few kinds, or all different."""
    keys = torch.randn(length, 2, 16)
    if distinct:
        keys = keys[torch.arange(length) % distinct]
    positions = torch.arange(length - rows * 3, length, 3)
    wanted = keys[torch.randint(0, length // 2, (rows,))]
    q = (wanted + 0.3 * torch.randn_like(wanted))[:, :, None].repeat(1, 1, group, 1) * sharp
    values = torch.randn(length, 2, 16)
    one = LayerDump(0, q.bfloat16(), keys.bfloat16(), values.bfloat16(), keys.bfloat16(), 0.5)
    return one, positions


@pytest.mark.parametrize(
    ("variant", "length", "metadata"),
    [
        # Candidates: tokens 16 .. 2032 of 2,100; 16 .. 2928 of 3,000.
        (QUEST, 2100, 126 * 2 * DIM * 2),
        # Whole segments up to 2,048; pages of 8 budgets are more than there are.
        (NAMED["quest_two_level"], 2100, (2048 // SEGMENT + 126) * 2 * DIM * 2),
        (NAMED["quest, 8 bits"], 2100, 126 * 2 * (DIM + 2)),
        (NAMED["shadowkv"], 2100, 252 * (DIM + 1) * 2),
        (clustered(1024, 32), 2100, 2016 + 2 * 32 * DIM * 2),
        (clustered(1024, 32), 3000, 2032 + 2 * 32 * DIM * 2 + 880 * DIM * 2),
        (clustered(1024, 32, True), 2100, 2016 + 2 * 32 * (DIM + DIM + 1) * 2),
        (clustered(4096, 32), 3000, 2912 * DIM * 2),
        (quantised(1024, 2, 6), 2100, 2 * 2016 + 2 * 64 * DIM * 2),
        (quantised(1024, 2, 6, inherited=True), 2100, 2 * 2016 + 64 * DIM * 2),
        (NAMED["streaming"], 2100, 0),
        (NAMED["oracle, units"], 2100, 0),
    ],
    ids=lambda value: getattr(value, "name", str(value)),
)
def test_bytes_are_those_counted_by_hand(variant: Variant, length: int, metadata: int):
    lengths = np.array([length])
    read = bytes_read(variant, variant.plan(lengths, 512), lengths, DIM)
    assert read.metadata == metadata
    tail = (length - 1) % variant.unit_size + 1
    whole = (512 - tail) // variant.unit_size * variant.unit_size
    assert read.kv == (whole + tail) * 2 * DIM * 2


def test_sinks_and_window_are_the_variants_own():
    more = replace(QUEST, sink=64, window=256)
    plan = more.plan(np.array([2100]), 512)
    assert (plan.begin.item(), plan.end.item()) == (64 // 16, (2100 - 256) // 16)
    assert plan.counts.item() == QUEST.plan(np.array([2100]), 512).counts.item()


def test_bounds_in_eight_bits_still_hold():
    planes = torch.randn(5, 2, 2, 16).sort(2).values
    kept = rounded(planes, ("min", "max"))
    assert (kept[:, :, 0] <= planes[:, :, 0] + 1e-6).all()
    assert (kept[:, :, 1] >= planes[:, :, 1] - 1e-6).all()
    assert (kept - planes).abs().max() <= planes.abs().max() / 127 + 1e-6
    means = rounded(planes, ("mean", "std"))
    assert (means - planes).abs().max() <= planes.abs().max() / 254 + 1e-6


@pytest.mark.parametrize("variant", VARIANTS, ids=lambda variant: variant.name)
def test_the_budget_of_equal_bytes_is_the_largest_that_fits(variant: Variant):
    lengths = np.array([30000, 31003, 32761])
    target = bytes_read(QUEST, QUEST.plan(lengths, 1024), lengths, DIM).total

    def total(budget: int) -> float:
        return bytes_read(variant, variant.plan(lengths, budget), lengths, DIM).total

    budget = equal_budget(variant, target, lengths, DIM)
    if budget is None:
        assert total(96) > target
    else:
        assert total(budget) <= target < total(budget + variant.unit_size)
    assert equal_budget(QUEST, target, lengths, DIM) >= 1024


def test_mass_and_error_of_a_case_worked_out_by_hand():
    """Two units; the keys of the first attract e times as much as those of the second."""
    keys = torch.zeros(32, 1, 2)
    keys[:16, :, 0] = 1
    values = torch.cat((torch.ones(16, 1, 2), -torch.ones(16, 1, 2)))
    q = torch.tensor([1.0, 0.0]).expand(1, 1, 1, 2)
    one = LayerDump(0, q.bfloat16(), keys.bfloat16(), values.bfloat16(), keys.bfloat16(), 1.0)
    truth = Truth.of(one, np.array([32]))
    first = torch.zeros(1, 1, 1, dtype=torch.int32)
    selection = Selection(first, first, torch.ones(1, dtype=torch.int32))
    share = math.e / (math.e + 1)
    torch.testing.assert_close(mass_of(truth, selection, 16).item(), share)
    torch.testing.assert_close(truth.out.flatten(), torch.full((2,), 2 * share - 1))
    # What is read says 1 where the truth is 2 * share - 1.
    error = error_of(torch.ones(1, 1, 1, 2), truth.out).item()
    torch.testing.assert_close(error, (2 - 2 * share) / (2 * share - 1))


def test_nobody_covers_more_than_the_oracle_of_its_grain_and_chance_covers_less():
    one, positions = layer()
    bench = Bench(one, positions, load_ops("reference"))
    found = {
        variant.name: (variant.unit_size, bench.measure(variant, 256)[0]) for variant in VARIANTS
    }
    best = {16: found["oracle, units"][1], 1: found["oracle, tokens"][1]}
    eighths = replace(NAMED["oracle, units"], name="oracle, chunks", unit=8)
    best[8] = bench.measure(eighths, 256)[0]
    for unit, quality in found.values():
        assert quality.mass <= best[unit].mass + 1e-5 and quality.recall <= 1
    assert all(quality.recall == 1 for quality in best.values())

    plan = QUEST.plan(bench.lengths, 256)
    runner = bench._runner(QUEST)
    noise = torch.rand(len(positions), 2, plan.num_units.max())
    counts, units = (torch.from_numpy(x).int() for x in (plan.counts, plan.num_units))
    chance = runner.ops.select(noise, runner.candidates(plan), units, counts)
    assert mass_of(bench.truth, chance, 16).mean() < 0.7 * found["quest"][1].mass


def test_reading_everything_is_dense_attention():
    one, positions = layer(length=1100, group=2)
    bench = Bench(one, positions, load_ops("reference"))
    for variant in (QUEST, clustered(1024, 32), clustered(1024, 32, estimate=True)):
        quality, _ = bench.measure(variant, 2048)
        assert quality.mass == pytest.approx(1, abs=1e-5) and quality.error < 1e-5


def test_the_estimate_is_exact_where_every_key_is_its_centroid():
    one, positions = layer(length=1104, distinct=8, rows=3, sharp=0.3)
    bench = Bench(one, positions, load_ops("reference"))
    bare, estimated = (
        bench.measure(clustered(1024, 32, estimate), 700)[0] for estimate in (False, True)
    )
    assert bare.mass < 0.95 and bare.error > 0.1
    assert estimated.error < 0.01


def test_a_dump_holds_what_the_model_attended_with():
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=32,
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
    )
    model, seen = LlamaForCausalLM(config), []
    model.model.layers[1].self_attn.o_proj.register_forward_pre_hook(lambda _, x: seen.append(x[0]))
    found = dump(model, torch.arange(48).remainder(32).tolist(), [40, 20, 46])
    assert found.positions.tolist() == [20, 40, 46] and len(found.layers) == 2
    one = found.layers[1]
    assert one.q.shape == (3, 2, 2, 16) and one.keys.shape == (48, 2, 16)
    truth = Truth.of(one, found.positions.numpy() + 1).out.flatten(1)
    torch.testing.assert_close(truth, seen[0][0, found.positions], atol=1e-3, rtol=2e-2)
    torch.testing.assert_close(one.plain_keys[0], one.keys[0])
    assert not torch.allclose(one.plain_keys[9], one.keys[9], atol=1e-3)
    norms = [keys.float().norm(dim=-1) for keys in (one.plain_keys, one.keys)]
    torch.testing.assert_close(*norms, atol=1e-3, rtol=1e-2)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model of noise, and a text in it."""
    from transformers import LlamaConfig, LlamaForCausalLM

    path = tmp_path_factory.mktemp("tiny")
    text = " ".join(str(number * number) for number in range(1500))
    tokenizer = bpe_tokenizer(learn_merges([text], 300), 4096)
    config = LlamaConfig(
        vocab_size=300,
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
    )
    LlamaForCausalLM(config).save_pretrained(path)
    tokenizer.save_pretrained(path)
    (path / "text.txt").write_text(text)
    return path


def test_the_command_measures_a_folder(tiny: Path, tmp_path: Path, capsys):
    words = [str(tiny), "--text", str(tiny / "text.txt"), "--contexts", "1300", "--budgets", "256"]
    methods = "quest,clusterkv 32/1024,streaming"
    assert main([*words, "--methods", methods, "--out", str(tmp_path)]) == 0
    assert "| quest |" in capsys.readouterr().out
    ((_, run, rows),) = newest(tmp_path)
    assert (run.queries, run.heads, run.head_dim) == (QUERIES, 1, 16)
    assert {row.method for row in rows} >= {"quest", "clusterkv 32/1024", "streaming"}
    for row in rows:
        if row.equal == "bytes" and row.budget:
            assert row.share <= rows[0].share + 1e-3
    path = save(run, rows, tmp_path / "again")
    assert load(path)[0] == run
    with pytest.raises(FileExistsError):
        save(run, rows, tmp_path / "again")


def test_a_stopped_run_is_gone_on_with(
    tiny: Path, tmp_path: Path, capsys, monkeypatch: pytest.MonkeyPatch
):
    """What was measured before is not measured again, and the rows are those of one run."""
    words = [str(tiny), "--text", str(tiny / "text.txt"), "--contexts", "1300,1200"]
    words += ["--budgets", "256", "--methods", "quest,streaming"]
    assert main([*words, "--out", str(tmp_path / "whole")]) == 0
    ((_, _, whole),) = newest(tmp_path / "whole")
    measure = StoppedAt(3, run.measure_variant)
    monkeypatch.setattr(run, "measure_variant", measure)
    words += ["--out", str(tmp_path / "parts")]
    assert main(words) == 130
    assert "bench.quality: stopped; --resume goes on with 3 of" in capsys.readouterr().err
    assert not newest(tmp_path / "parts")
    assert main(words) == 2
    assert "is there already; --resume goes on with it" in capsys.readouterr().err
    assert main([*words, "--resume"]) == 0
    assert "3 of 10; " in capsys.readouterr().err
    ((_, _, rows),) = newest(tmp_path / "parts")
    assert rows == whole
    measured = [(context, variant.name) for _, _, context, variant, _ in measure.calls]
    assert len(set(measured)) == len(measured) - 1, "only the interrupted one was begun twice"
    assert not list((tmp_path / "parts").glob("*.part.jsonl"))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nowhere"], "MODEL must be a folder with a config.json, got nowhere"),
        (["trained", "--contexts", "many"], "contexts must be numbers of tokens from 256 on"),
        (["trained", "--methods", "magic"], "methods must name a variant, got magic"),
    ],
)
def test_what_cannot_be_measured_is_one_sentence(words: list[str], message: str, capsys):
    assert main(words) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


def test_a_text_that_is_too_short_is_one_sentence(tiny: Path, capsys):
    assert main([str(tiny), "--text", str(tiny / "config.json"), "--contexts", "4k"]) == 2
    assert "the text must have more than 4096 tokens" in capsys.readouterr().err


def test_a_basis_of_the_prefix_carries_what_is_like_it_and_nothing_else():
    cos, sin = torch.ones(400, 16), torch.zeros(400, 16)
    plain = torch.cat((torch.randn(200, 4) @ torch.randn(4, 32), torch.randn(200, 32)))
    keys = plain.view(400, 2, 16).bfloat16()
    positions = torch.arange(380, 396, 4)
    one = LayerDump(0, torch.randn(4, 2, 1, 16).bfloat16(), keys, keys, keys, 0.25)
    own, prefix = study(Dump(positions, (one,), 1.0, cos, sin), share=0.25)
    assert prefix.first < 0.05 and own.second < prefix.second
    assert own.exact < 1e-3 < own.chosen
    assert prefix.second == pytest.approx((24 / 32) ** 0.5, rel=0.2)


def test_positions_spread_over_the_last_part():
    ids, positions = facts(4096)
    assert len(ids) >= 4096 and len(set(positions)) == QUERIES
    assert 3072 <= min(positions) < 3200 and 4000 < max(positions) < 4095
    import random

    places = spread(32768, QUERIES, random.Random(0))
    assert places == sorted(places) and len({place % 16 for place in places}) > 8


def test_budgets_beyond_the_context_are_left_out():
    one, positions = layer(length=600)
    rows = measure_dump(
        Dump(positions, (one,), 1.0, torch.empty(0), torch.empty(0)),
        600,
        (256, 1024),
        (QUEST,),
        load_ops("reference"),
    )
    assert {row.quest_budget for row in rows} == {256}


def test_the_page_is_what_the_files_give():
    assert report.main(["--check"]) == 0, "run `python -m bench.quality.report`"


def test_the_page_says_plainly_who_covers_less():
    from bench.quality.results import Row

    _, run, _ = newest()[0]
    rows = [
        Row(report.JUDGED, name, "bytes", 512, 512, 1.0, 0.1, 0.1, 0.5, mass, 0.1, 0.1)
        for name, mass in (
            ("quest", 0.8),
            (report.CLUSTERS.name, 0.81),
            (report.PRODUCTS.name, 0.7),
        )
    ]
    line = report.acceptance([("file", run, rows)]).splitlines()[-1]
    assert line.split(" | ")[5] == "yes" and line.endswith("| no |")
