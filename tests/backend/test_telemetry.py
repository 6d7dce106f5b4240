"""`telemetry`: attention mass against brute force, and that measuring changes and costs nothing."""

import json
import math
from typing import Any, NoReturn

import pytest
import torch
from helpers.host import Host
from helpers.scenarios import PAGE, PAGES, SPARSE, prompt
from helpers.steps import Live
from helpers.toy_model import GROUP, HEADS, LAYERS, SCALE

from sgl_sparsekv.backend import telemetry_step
from sgl_sparsekv.backend.telemetry import (
    NO_DECODE,
    NO_MASS,
    RARELY,
    SAMPLE_EVERY,
    UNMEASURED,
    UNTIMED,
    LayerMass,
    RequestTelemetry,
)
from sgl_sparsekv.ops import load_ops

ASKING = SPARSE | {"telemetry": True}
TOLERANCE = 1e-5
"""Of float32 log-sums of a few hundred terms, and of six decimals in the report."""


@pytest.fixture
def host(sglang: None) -> Host:
    """A scheduler over SGLang's memory, plain torch kernels."""
    return Host("rust", PAGE, PAGES)


def begin(host: Host, symbol: int, options: dict[str, Any], tokens: int = 1000) -> Live:
    """A request of 6 pages and one token that has been prefilled."""
    live = host.start(prompt(symbol), options)
    host.prefill([live], tokens)
    return live


def telemetry_of(host: Host, live: Live, decode_steps: int = 1) -> dict[str, Any]:
    """Its report, as JSON carries it."""
    entry = host.backend.table.entry(live.row)
    entry.decode_steps = decode_steps  # the recorder that stands for the observer counts none
    report: dict[str, Any] = json.loads(json.dumps(entry.report()))["telemetry"]
    return report


def brute_masses(host: Host, live: Live, layer: int, place: int) -> list[float]:
    """Softmax mass per query head of what the last step read, from K and q in float64."""
    length = live.length
    keys = host.model.keys(layer, live.paths[:length]).double()
    q = host.model.queries(layer, [live.paths[length - 1]])[0].double().view(HEADS, GROUP, -1)
    unit = next(
        group.unit_size
        for group, selection in host.recorder.groups[layer]
        if place in group.index.tolist() and selection is not None
    )
    masses = []
    for head, units in enumerate(host.recorder.units_of(layer, place)):
        weights = (q[head] @ keys[:, head].T * SCALE).softmax(-1)
        read = [i for u in units for i in range(u * unit, min((u + 1) * unit, length))]
        masses += weights[:, read].sum(-1).tolist()
    return masses


@pytest.mark.parametrize("dense_layers", [0, 1])
@pytest.mark.parametrize("device", ["reference", "cpu"])
@pytest.mark.parametrize("method", ["quest", "streaming", "oracle", "shadowkv", "clusterkv"])
def test_attention_mass_is_that_of_brute_force(
    host: Host, method: str, device: str, dense_layers: int
) -> None:
    """Over the sampled steps of a request beside another one, layer by layer and in all."""
    host.backend.ops = load_ops(device)
    host.backend.seal.ops = host.backend.ops
    other = begin(host, 3, SPARSE | {"method": "streaming"})
    asked = {"method": method, "dense_layers": dense_layers}
    live = begin(host, 2, ASKING | asked)
    masses: dict[str, list[float]] = {}
    for step in range(SAMPLE_EVERY + 2):
        host._forward(host._grow([other, live]), 0)
        if step % SAMPLE_EVERY == 0:
            for layer in range(dense_layers, LAYERS):
                masses.setdefault(str(layer), []).extend(brute_masses(host, live, layer, 1))
        host._append_output(other)
        host._append_output(live)
    told = telemetry_of(host, live)
    every = [mass for layer in masses.values() for mass in layer]
    assert told["how"] == "sampled" and told["sampled_steps"] == 2 and told["reason"] is None
    assert told["sampled_layers"] == LAYERS - dense_layers
    mass, near = told["attention_mass"], {"abs": TOLERANCE}
    assert (told["certificate"] is None) == (method not in ("quest", "clusterkv"))
    if told["certificate"] is not None:
        at_least, gap = told["certificate"]["mean"], told["certificate"]["gap"]
        assert 0 < told["certificate"]["least"] <= mass["least"] and at_least <= mass["mean"]
        assert gap == pytest.approx(mass["mean"] - at_least, abs=2e-6)
    assert 0 < min(every) < 1
    assert mass["mean"] == pytest.approx(sum(every) / len(every), **near)
    assert mass["least"] == pytest.approx(min(every), **near)
    assert mass["layers"] == {
        layer: pytest.approx(sum(found) / len(found), **near) for layer, found in masses.items()
    }


def test_decode_inside_a_mixed_batch_is_measured_alike(host: Host) -> None:
    """`--enable-mixed-chunk`: the sampled step rides with another request's prefill."""
    live = begin(host, 2, ASKING)
    other = host.start(prompt(3), SPARSE)
    host._forward([host._admit(other, 40), *host._grow([live])], extend=1)
    expected = [m for layer in range(LAYERS) for m in brute_masses(host, live, layer, 0)]
    told = telemetry_of(host, live)
    assert told["sampled_steps"] == 1 and told["requests_per_group"] == 1
    assert told["select_ms"] > 0 and told["attend_ms"] > 0
    mean = sum(expected) / len(expected)
    assert told["attention_mass"]["mean"] == pytest.approx(mean, abs=TOLERANCE)


@pytest.mark.parametrize("method", ["quest", "streaming", "shadowkv", "clusterkv", "snapkv"])
def test_steps_that_run_on_the_device_are_measured_alike(sglang: None, method: str) -> None:
    """Sampled as on a CPU, beside one that did not ask; inside a mixed batch too; times are not."""
    host = Host("rust", PAGE, PAGES, kind="fused", measure=True)
    other = begin(host, 3, SPARSE | {"method": "streaming"})
    live = begin(host, 2, ASKING | {"method": method, "dense_layers": 1, "renew_every": 0})
    masses: dict[str, list[float]] = {str(layer): [] for layer in range(1, LAYERS)}

    def take(place: int) -> None:
        for layer in range(1, LAYERS):
            masses[str(layer)] += brute_masses(host, live, layer, place)

    third = host.start(prompt(1), SPARSE)
    host._forward([host._admit(third, 40), *host._grow([live])], extend=1)
    take(0)
    host._append_output(live)
    for _ in range(SAMPLE_EVERY):
        host._forward(host._grow([other, live]), 0)
        host._append_output(other)
        host._append_output(live)
    take(1)
    host.backend.table.settle()
    told = telemetry_of(host, live)
    assert told["how"] == "sampled" and told["sampled_steps"] == 2
    assert told["reason"] == UNTIMED and told["select_ms"] is None is told["certificate"]
    mass = told["attention_mass"]
    assert 0 < mass["least"] <= mass["mean"] < 1
    assert mass["layers"] == {
        layer: pytest.approx(sum(found) / len(found), abs=TOLERANCE)
        for layer, found in masses.items()
    }
    assert host.backend.table.entry(other.row).telemetry == RequestTelemetry()


def outputs_of(host: Host, options: list[dict[str, Any]]) -> list[torch.Tensor]:
    """Outputs of every layer and step of requests that decode together past a sampled step."""
    lives, seen = [begin(host, i + 1, own) for i, own in enumerate(options)], []
    for _ in range(SAMPLE_EVERY + 2):
        host.decode(lives)
        seen += [host.recorder.outputs[layer] for layer in range(LAYERS)]
    return seen


@pytest.mark.parametrize("device", ["reference", "cpu"])
def test_measuring_changes_no_bit_of_any_output(sglang: None, device: str) -> None:
    """Neither of who asked nor of who decodes beside."""
    everything = [SPARSE, SPARSE | {"method": "streaming"}, SPARSE | {"method": "full"}]
    both = []
    for asked in ({}, {"telemetry": True}):
        host = Host("rust", PAGE, PAGES)
        host.backend.ops = load_ops(device)
        both.append(outputs_of(host, [everything[0] | asked, *everything[1:]]))
    assert len(both[0]) == LAYERS * (SAMPLE_EVERY + 2)
    assert all(torch.equal(a, b) for a, b in zip(*both, strict=True))


def test_only_sampled_steps_of_who_asked_read_more(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One more attend per sparse layer, over the asking rows alone."""
    rows: list[int] = []
    attend = host.backend.ops.attend

    def counted(q: torch.Tensor, *args: Any) -> Any:
        rows.append(q.shape[0])
        return attend(q, *args)

    monkeypatch.setattr(host.backend.ops, "attend", counted, raising=False)
    lives = [begin(host, 2, ASKING | {"dense_layers": 1}), begin(host, 3, SPARSE | {"budget": 96})]
    for step in range(SAMPLE_EVERY + 1):
        rows.clear()
        host.decode(lives)
        # Layer 0: one row dense, one sparse. Layer 1: both sparse, then the sampled one again.
        assert rows == ([1, 1, 2, 1] if step % SAMPLE_EVERY == 0 else [1, 1, 2])


def test_steps_in_which_nobody_asked_are_left_alone(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The clock is not even looked at."""

    def forbidden() -> NoReturn:
        raise AssertionError("the clock was read")

    monkeypatch.setattr(telemetry_step, "perf_counter", forbidden)
    lives = [begin(host, 2, SPARSE), begin(host, 3, SPARSE | {"method": "full"})]
    for _ in range(3):
        host.decode(lives)
    entry = host.backend.table.entry(lives[0].row)
    assert entry.telemetry == RequestTelemetry() and entry.report()["telemetry"] is None
    asking = begin(host, 1, ASKING)
    with pytest.raises(AssertionError, match="clock"):
        host.decode([*lives, asking])


@pytest.mark.parametrize("options", [{"method": "full"}, {"budget": 1.0}, {"dense_layers": LAYERS}])
def test_rows_that_read_everything_cover_everything(host: Host, options: dict[str, Any]) -> None:
    """By definition: nothing more is read for them."""
    live = begin(host, 2, ASKING | options)
    host.decode([live])
    told = telemetry_of(host, live)
    assert told["attention_mass"] == {"mean": 1.0, "least": 1.0, "layers": {}}
    assert told["certificate"] == {"mean": 1.0, "least": 1.0, "gap": 0.0}
    assert told["how"] == "everything" and told["sampled_steps"] == 0 and told["select_ms"] == 0
    assert told["attend_ms"] > 0 and told["reason"] is None


def test_the_times_of_a_group_are_told_with_its_size(host: Host) -> None:
    """Two requests of one method share their times; the one of another method does not."""
    pair = [begin(host, 2, ASKING), begin(host, 3, ASKING)]
    alone = begin(host, 1, ASKING | {"method": "streaming"})
    host.decode([*pair, alone])
    told = [telemetry_of(host, live) for live in (*pair, alone)]
    assert [one["requests_per_group"] for one in told] == [2, 2, 1]
    assert told[0]["select_ms"] == told[1]["select_ms"] > 0
    assert told[0]["attend_ms"] == told[1]["attend_ms"] > 0


def test_samples_fall_on_every_tail_and_on_selections_of_every_age() -> None:
    """Else a mean would tell of fresh selections and of one tail length only."""
    told = RequestTelemetry()
    sampled = [step for step in range(SAMPLE_EVERY * 32) if told.begin_step(True)]
    assert sampled[:2] == [0, SAMPLE_EVERY]
    for every in (2, 3, 4, 8, 16, 32):
        assert {step % every for step in sampled} == set(range(every))
    assert not told.begin_step(False) and told.sparse_steps == SAMPLE_EVERY * 32


def test_what_was_not_measured_is_null_with_a_reason(sglang: None) -> None:
    """Before any decode step; on a GPU whose graphs do not measure; untimed kernels."""
    numbers = (
        "attention_mass",
        "certificate",
        "sampled_steps",
        "sampled_layers",
        "select_ms",
        "attend_ms",
    )
    fused = Host("rust", PAGE, PAGES, kind="fused")
    live = begin(fused, 2, ASKING)
    for reason, steps in ((NO_DECODE, 0), (UNMEASURED, 1)):
        if steps:
            fused.decode([live])
        told = telemetry_of(fused, live, steps)
        assert told["reason"] == reason and all(told[name] is None for name in numbers)
    host = Host("rust", PAGE, PAGES)
    live = begin(host, 2, ASKING)
    host.backend.on_cpu = False
    host.decode([live])
    told = telemetry_of(host, live)
    assert told["reason"] == UNTIMED and told["select_ms"] is None is told["attend_ms"]
    assert 0 < told["attention_mass"]["mean"] < 1


def test_attention_that_is_not_finite_gives_no_number() -> None:
    """A NaN must not reach a JSON answer."""
    told = RequestTelemetry(steps=1, sparse_steps=1, samples=1, attends=1)
    told.masses[0] = LayerMass()
    told.masses[0].add(torch.tensor([1.0, math.nan]))
    report = told.report(1)
    assert report["attention_mass"] is None is report["certificate"]
    assert report["reason"] == NO_MASS


def test_who_asks_for_coverage_is_told_what_it_got(host: Host) -> None:
    """Without telemetry as well, from the first sparse step and rarely behind it."""
    live = begin(host, 2, SPARSE | {"coverage": 0.9, "budget": 0.9})
    for _ in range(SAMPLE_EVERY + 1):
        host.decode([live])
    told = telemetry_of(host, live)
    assert told["sampled_steps"] == 1 and 0 < told["certificate"]["least"] < 1
    assert told["certificate"]["mean"] <= told["attention_mass"]["mean"]
    entry = host.backend.table.entry(live.row)
    assert entry.telemetry.every == RARELY > SAMPLE_EVERY
