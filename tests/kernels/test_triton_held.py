"""Selections that serve several steps, on the device: what the CPU chooses, step by step.

Scores are given, in place of what the launches in front of `select` leave, and other ones in every
step: what a row holds must not depend on those that came later.
"""

from collections import defaultdict
from dataclasses import dataclass, field, replace

import numpy as np
import pytest
import torch
from sgl_sparsekv.kernels.triton import held_ops
from sgl_sparsekv.kernels.triton.spec import HOLDS, ORDINARY, USES
from test_triton_narrow import CHUNK, begun, drawn, give, make_tokens, wanted
from triton_kit import DEVICE
from triton_scene import POISON, Request, Scene, Step

from sgl_sparsekv.backend.held_scores import HeldScores
from sgl_sparsekv.segments.residual import residuals
from sgl_sparsekv.selection.policy import RowOptions, RowPlan, plan_rows
from sgl_sparsekv.types import HeldShape, Ranking, RecordShape

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning:triton")
LAYERS, ROOM = 2, 340
REQUESTS = [
    Request(760, "clusters", 300, finer=4),
    Request(700, "clusters", 140, 40, 21, finer=4),
    Request(640, "min_max", 112, 16, 33),
    Request(690, "min_max", 128, 0, 0, dense_layers=1),
    Request(500, "position", 96),
    Request(130, "clusters", 118, 0, 0, finer=4),
    Request(90, "clusters", 512, finer=4),
]
"""The sixth has hardly more candidates than it reads: units that are new since are among them."""
EVERY = [4, 7, 5, 3, 4, 6, 4]
RATIOS = {1: 0.21, 2: 0.3, 5: 0.93}
"""Rows whose budgets are a share of the context."""
FIELDS = ("budget", "sink", "window")
STEPS = 16


def make_held(monkeypatch: pytest.MonkeyPatch, chunk: int, tokens: bool = True) -> Scene:
    """A scene of a server with requests that choose every r-th step; where they choose tokens, its
    clusters answer for what is not read, and it serves coverage."""
    monkeypatch.setattr(held_ops, "HELD_CHUNK", chunk)
    scene = make_tokens(REQUESTS, monkeypatch, chunk, tokens)
    shape = replace(scene.shape, held=HeldShape(5, LAYERS, 0, ROOM))
    if tokens:
        kind = RecordShape(residuals(64, 1), 4, shape.pool_units // 4)
        shape = replace(
            shape, records=(*shape.records, kind), estimates=True, covered=range(LAYERS)
        )
    return replace(scene, shape=shape)


@dataclass
class Period:
    """A step, and the CPU's way of holding scores beside it.

    Attributes:
        step: on the device.
        held: the CPU's.
        every, owner: of the rows.
        seed: of the next scores.
        did: by row, what it did in each of its steps.
        unscored: candidates without a score that were read.
    """

    step: Step
    held: HeldScores = field(default_factory=HeldScores)
    every: dict[int, int] = field(default_factory=dict)
    owner: dict[int, int] = field(default_factory=dict)
    seed: int = 0
    did: defaultdict[int, list[int]] = field(default_factory=lambda: defaultdict(list))
    unscored: int = 0

    def ask(self, row: int, place: int, owner: int, fits: bool = True) -> None:
        """Tell the device whose a row is, and where it holds what it chooses: -1 for nowhere."""
        self.every[row], self.owner[row] = EVERY[row] if place >= 0 and fits else 1, owner
        asked = self.step.fused.buffers.holds.asked
        told = torch.tensor([EVERY[row], place, owner], dtype=torch.int32, device=DEVICE)
        asked[self.step.scene.places[row]] = told

    def plan(self, lengths: dict[int, int]) -> RowPlan:
        """Of all requests; those without a length are as long as they get."""
        requests, scene = self.step.scene.requests, self.step.scene
        tokens = np.array([lengths.get(row, r.length) for row, r in enumerate(requests)])
        columns = [np.array([getattr(r, name) for r in requests]) for name in FIELDS]
        for row, ratio in RATIOS.items():
            columns[0][row] = max(columns[0][row], int(ratio * tokens[row]))
        unit_sizes = scene.shape.unit_size >> np.array([request.finer for request in requests])
        return plan_rows(tokens, RowOptions(*columns), scene.geometry, unit_sizes)

    def run(self, lengths: dict[int, int], ends: bool = True) -> None:
        """One step of some rows, compared in every layer; it may break off behind the last one."""
        step, rows, plan = self.step, list(lengths), self.plan(lengths)
        scene, fused, held = step.scene, step.fused, step.fused.buffers
        for row in rows:
            every = self.every[row] if ends else 1
            self.held.begin_step(row, self.owner[row], lengths[row], every)
        told = torch.tensor(list(lengths.values()), device=DEVICE)
        fused.begin(step.sealed, scene.places[rows].to(DEVICE), told, scene.req_to_token.to(DEVICE))
        for row, did in zip(rows, held.holds.does[0].tolist(), strict=False):
            self.did[row].append(did)
        for layer in range(LAYERS):
            self.seed += 1
            held.logical.fill_(POISON)
            scores = drawn(plan, ("shares", "few values", "anything")[self.seed % 3], self.seed)
            for place, row in enumerate(rows):
                give(step, plan, place, row, scores[row])
            if fused.cover is not None:  # of rows without a goal it takes what they draw
                q = torch.zeros(len(rows), *held.logits.shape[1:3], scene.shape.head_dim)
                q = q.to(DEVICE, scene.shape.dtype)
                fused.cover.choose(layer, q, q[:, :, 0], held, 1.0)
            fused._select(layer, len(rows), None)
            fused.held.choose(layer, len(rows), held, True)
            for place, row in enumerate(rows):
                if self.chooses(plan, layer, row):
                    self.compare(plan, layer, place, row, scores[row])
                elif scene.requests[row].formula != "position":
                    assert (held.logical[place] == POISON).all(), "it reads everything"
        if ends:
            step.end()

    def chooses(self, plan: RowPlan, layer: int, row: int) -> bool:
        """Whether a row ranks units in a layer."""
        request = self.step.scene.requests[row]
        dense = bool(plan.dense[row]) or layer < request.dense_layers
        return not dense and request.formula != "position"

    def compare(
        self, plan: RowPlan, layer: int, place: int, row: int, scores: torch.Tensor
    ) -> None:
        """What was chosen is what the CPU chooses by scores of today, or by those that it holds."""
        held, unit = self.step.fused.buffers, torch.arange(scores.shape[1])
        inside = (unit >= int(plan.begin[row])) & (unit < int(plan.end[row]))
        ranking = Ranking(scores.masked_fill(~inside, -torch.inf))
        (self.held.load if self.held.holds(row, layer) else self.held.store)(row, layer, ranking)
        count = int(plan.counts[row])
        chosen = held.logical[place, :, :count].cpu()
        assert torch.equal(chosen, wanted(self.step.scene, plan, row, ranking.scores)), (layer, row)
        read = inside[chosen.long()] & ranking.scores.gather(1, chosen.long()).isneginf()
        self.unscored += int(read.sum())
        if held.cover is not None:
            assert (held.cover.chosen[place] == count).all()
            marks = held.marks[place, :, : len(unit)].cpu()
            assert torch.equal(marks, torch.zeros_like(marks).scatter(1, chosen.long(), 1))
        physical = self.step.scene.own_units(row).table[row][chosen.long()]
        assert torch.equal(held.selected[place, :, :count].cpu(), physical)


def started(scene: Scene) -> Period:
    """Nothing is held yet; whatever a launch should write first is garbage."""
    step = begun(scene)
    held = step.fused.buffers
    for tensor in (held.holds.keys, held.holds.units, held.holds.drawn, held.holds.drafts):
        tensor.fill_(POISON)
    if held.clusters is not None:
        held.marks.fill_(POISON % 256)
    for row, ratio in RATIOS.items():
        place = scene.places[row]
        held.options[place, 2], held.options[place, 1] = held.options[place, 1].clone(), 0
        held.ratios[place] = ratio
    return Period(step)


@pytest.mark.parametrize("tokens", [True, False], ids=["three launches", "one launch"])
def test_every_step_of_a_period(tokens: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows that come and go, one that is set back, one with another owner, one with no place at
    first and then with that of another row, and a step that broke off."""
    scene = make_held(monkeypatch, CHUNK, tokens)
    rows = [row for row, r in enumerate(REQUESTS) if tokens or r.formula != "clusters"]
    period, rng = started(scene), np.random.default_rng(3)
    places = {0: 3, 1: 0, 2: 4, 3: 1, 4: 2}
    for row in rows:
        period.ask(row, places.get(row, -1), 10 + row)
    lengths = {row: REQUESTS[row].length - STEPS for row in rows}
    for number in range(STEPS):
        lengths = {row: length + 1 for row, length in lengths.items()}
        if number == 5 and tokens:
            period.ask(0, places[0], 99)
        if number == 7:
            lengths[2] -= 3
            period.ask(4, -1, 14)
            if tokens:
                period.ask(5, places[4], 15)
        period.run({row: lengths[row] for row in rows if row in (0, 1, 5) or rng.random() < 0.8})
    for row in rows:
        did = set(period.did[row])
        if row in (4, 6):
            assert did == {ORDINARY}
        else:
            assert did >= {HOLDS, USES} and (ORDINARY in did) == (row == 5)
    assert (period.unscored > 0) == tokens, "units that are new since were wanted, or are never"


def test_a_step_that_broke_off_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """In another one's row neither."""
    period = started(make_held(monkeypatch, CHUNK, tokens=False))
    period.ask(2, 1, 7)
    period.ask(3, -1, 8)
    period.run({2: 600}, ends=False)
    period.run({3: 600})
    period.run({2: 601})
    period.run({2: 602})
    assert period.did == {2: [HOLDS, HOLDS, USES], 3: [ORDINARY]}


def test_what_is_planned_and_not_decoded_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """As a prefill, which lists what its rows have filled."""
    period = started(make_held(monkeypatch, CHUNK, tokens=False))
    period.ask(2, 1, 7)
    step, scene = period.step, period.step.scene
    places, table = scene.places[[2]].to(DEVICE), scene.req_to_token.to(DEVICE)
    step.fused.begin(step.sealed, places, torch.tensor([600], device=DEVICE), table)
    step.end()
    assert step.fused.buffers.holds.does[0, 0] == HOLDS
    period.run({2: 601})
    assert period.did[2] == [HOLDS]


def test_who_would_hold_too_much_chooses_in_every_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """And one that just fits does not."""
    scene = make_held(monkeypatch, CHUNK, tokens=False)
    for units, did in ((7, [HOLDS, USES]), (6, [ORDINARY, ORDINARY])):
        room = replace(scene.shape.held, units=units)
        period = started(replace(scene, shape=replace(scene.shape, held=room)))
        period.ask(3, 1, 7, fits=HOLDS in did)
        period.run({3: 600})
        period.run({3: 601})
        assert period.did[3] == did
