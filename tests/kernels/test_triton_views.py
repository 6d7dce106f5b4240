"""Steps of requests that keep views: what is read of them, what is noted, and whom it touches."""

from dataclasses import dataclass, replace

import pytest
import torch
from sgl_sparsekv.kernels.triton.buffers import VIEW_FIELDS
from triton_kit import compare_attention
from triton_scene import Request, Scene, Step, make_scene

from sgl_sparsekv.types import ViewShape

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning:triton")
LAYERS, FIRST = 2, 5
"""Of a later pipeline stage."""
RING = 8


@dataclass
class Viewed:
    """A step some of whose rows have views.

    Attributes:
        step: over the scene.
        made: by row, tokens of the context when its view was made; 0: not yet.
        lists: by row, layer and KV head, positions int64 `[n]`.
    """

    step: Step
    made: dict[int, int]
    lists: dict[tuple[int, int, int], torch.Tensor]

    @classmethod
    def of(cls, scene: Scene, made: dict[int, int], most: int, seed: int = 1) -> "Viewed":
        """Random lists of up to `most` tokens, other ones in every KV head of every layer."""
        heads, rng = scene.shape.heads, torch.Generator().manual_seed(seed)
        room = ViewShape(len(made) + 2, LAYERS, FIRST, 9000, 2000, False)
        scene = replace(scene, shape=replace(scene.shape, views=room))
        scene.seal(scene.full_units())
        step, lists, end = Step.of(scene), {}, 3
        held = step.fused.buffers.views
        held.kept.fill_(-(10**6))
        held.queries.fill_(torch.nan)
        for number, (row, length) in enumerate(made.items()):
            held.of_request[scene.places[row]] = number + 1
            spans = []
            for layer in range(LAYERS if length else 0):
                for head in range(heads):
                    count = int(torch.randint(0, min(most, length) + 1, (), generator=rng))
                    chosen = torch.randperm(length, generator=rng)[:count].sort().values
                    held.kept[end : end + count] = chosen.int()
                    lists[row, layer, head] = chosen
                    spans += [end, count]
                    end += count
            ring = (number * LAYERS * RING, RING)
            record = torch.tensor([length, *ring, *spans], dtype=torch.int32)
            held.records[number + 1, : len(record)] = record
        return cls(step, made, lists)

    def read(self, row: int, layer: int) -> list[torch.Tensor]:
        """Positions that each KV head of a row has to read."""
        length, made = self.step.scene.batch.lengths[row], self.made.get(row, 0)
        if not 0 < made < length or layer + FIRST < self.step.scene.requests[row].dense_layers:
            return [torch.arange(length)] * self.step.scene.shape.heads
        since = torch.arange(made, length)
        heads = range(self.step.scene.shape.heads)
        return [torch.cat((self.lists[row, layer, head], since)) for head in heads]

    def noted(self, row: int, layer: int) -> torch.Tensor:
        """Queries `[RING, H, G, D]` of a layer of a row's view."""
        shape, nth = self.step.scene.shape, list(self.made).index(row)
        first = (nth * LAYERS + layer) * RING
        ring = self.step.fused.buffers.views.queries[first : first + RING]
        return ring.view(RING, shape.heads, shape.group, shape.head_dim).cpu()


def check(out: torch.Tensor, viewed: Viewed, row: int, layer: int) -> None:
    """One row against float64 attention over what each of its KV heads has to read."""
    scene, tokens = viewed.step.scene, replace(viewed.step.scene.batch, unit_size=1)
    slots = scene.batch.slots(row)[None]
    tokens = replace(tokens, table=slots.expand(row + 1, -1))
    for head, positions in enumerate(viewed.read(row, layer)):
        one = replace(
            tokens, q=tokens.q[:, head : head + 1], keys=tokens.keys[:, head : head + 1],
            values=tokens.values[:, head : head + 1],
        )  # fmt: skip
        scale = tokens.q.shape[-1] ** -0.5
        compare_attention(out[:, head : head + 1], None, one, row, positions[None], scale)


ROWS = [
    Request(420, "nothing"), Request(170, budget=112), Request(130, "nothing"),
    Request(300, "nothing", dense_layers=FIRST + 1), Request(40, "nothing"),
    Request(203, "position", 96), Request(140, "nothing"),
]  # fmt: skip
MADE = {0: 390, 2: 129, 3: 260, 4: 40, 6: 0}
"""Several splits; one that reads its newest token beside; one that is dense in a layer; one
that was taken back to where it was made; one that is not made yet."""


@pytest.mark.parametrize("heads,group,dim,dtype,unit,page", [
    (2, 4, 128, torch.bfloat16, 16, 64),
    (1, 7, 64, torch.float16, 32, 32),
    (3, 1, 96, torch.float32, 16, 16),
])  # fmt: skip
def test_rows_with_views_read_what_is_listed_and_all_since(
    heads: int, group: int, dim: int, dtype: torch.dtype, unit: int, page: int
) -> None:
    """In one batch with rows that have none; lists of 0 to 400 tokens in every KV head."""
    scene = make_scene(ROWS, heads, group, dim, dtype, unit, page)
    viewed = Viewed.of(scene, MADE, 400)
    viewed.step.begin()
    for layer in range(LAYERS):
        out = viewed.step.decode(layer + FIRST)
        assert not viewed.step.fused.buffers.tickets.any()
        for row in (0, 2, 3, 4, 6):
            check(out, viewed, row, layer)


def test_a_row_without_a_view_gets_the_same_bits_beside_others_and_on_a_server_without() -> None:
    scene = make_scene(ROWS, heads=2, dim=64)
    viewed, plain = Viewed.of(scene, MADE, 100), Step.of(scene)
    for step in (viewed.step, plain):
        step.begin()
    for layer in range(LAYERS):
        beside, without = (step.decode(layer + FIRST) for step in (viewed.step, plain))
        for row in (1, 5):
            assert torch.equal(beside[row], without[row])
        assert not torch.equal(beside[0], without[0])


def test_a_row_with_a_view_gets_the_same_bits_alone() -> None:
    scene = make_scene(ROWS, heads=2, dim=64)
    viewed = Viewed.of(scene, MADE, 300)
    viewed.step.begin()
    together = viewed.step.decode(FIRST + 1)
    for row in (0, 2, 3):
        viewed.step.begin([row])
        assert torch.equal(viewed.step.decode(FIRST + 1, [row])[0], together[row])


def test_queries_are_noted_where_a_view_will_look_for_them() -> None:
    """At their position modulo the ring's size, made or not, in layers that are not dense."""
    scene = make_scene(ROWS, heads=2, group=3, dim=64)
    viewed = Viewed.of(scene, MADE, 100)
    viewed.step.begin()
    for layer in range(LAYERS):
        viewed.step.decode(layer + FIRST)
    for row in MADE:
        for layer in range(LAYERS):
            noted, at = viewed.noted(row, layer), (ROWS[row].length - 1) % RING
            if row == 3 and layer == 0:
                assert noted.isnan().all(), "a dense layer has no view"
                continue
            assert torch.equal(noted[at], scene.batch.q[row])
            assert noted[[i for i in range(RING) if i != at]].isnan().all()
    rest = viewed.step.fused.buffers.views.queries[len(MADE) * LAYERS * RING :]
    assert rest.isnan().all(), "a row without a view left queries"


def test_a_view_without_a_ring_leaves_nothing() -> None:
    scene = make_scene(ROWS[:1], heads=2, dim=64)
    viewed = Viewed.of(scene, {0: 390}, 100)
    viewed.step.fused.buffers.views.records[:, 2] = 0
    viewed.step.begin()
    check(viewed.step.decode(FIRST), viewed, 0, 0)
    assert viewed.step.fused.buffers.views.queries.isnan().all()


@pytest.mark.parametrize("what", ["list", "count", "made"])
def test_what_a_record_says_is_what_is_read(what: str) -> None:
    """A neighbour's list, one token fewer, or tokens since another length: each is seen."""
    scene = make_scene(ROWS, heads=2, dim=64)
    viewed = Viewed.of(scene, MADE, 300, seed=3)
    records = viewed.step.fused.buffers.views.records
    if what == "list":
        records[1, VIEW_FIELDS] = records[1, VIEW_FIELDS + 2]
    elif what == "count":
        records[1, VIEW_FIELDS + 1] -= 1
    else:
        records[1, 0] += 1
    viewed.step.begin()
    with pytest.raises(AssertionError):
        check(viewed.step.decode(FIRST), viewed, 0, 0)
