"""What is measured: shapes, and one batch of equally long requests over a paged pool."""

from dataclasses import dataclass

import torch

from bench.gpu.timing import layers_beyond_cache
from sgl_sparsekv.geometry import ceil_div

K = 1024
SPARE_PAGES = 3
"""Pages behind the last one in use. They are NaN, as page 0 is."""
SHARPNESS = 4
"""Spread of queries: a few keys weigh most, so that a key left out shows in the result."""


@dataclass(frozen=True)
class Extents:
    """A model's layer and how it is read.

    Attributes:
        heads: KV heads.
        group: query heads per KV head.
        dim: head size.
        dtype: of q, K and V.
        page: slots per page.
        budget: tokens per row and KV head.
        sink: tokens always kept at the start.
        window: tokens always kept at the end.
    """

    heads: int = 8
    group: int = 4
    dim: int = 128
    dtype: torch.dtype = torch.bfloat16
    page: int = 64
    budget: int = 2048
    sink: int = 16
    window: int = 64

    @property
    def scale(self) -> float:
        """Softmax scale."""
        return self.dim**-0.5

    @property
    def kv_bytes(self) -> int:
        """Bytes of K and V per token."""
        return 2 * self.heads * self.dim * self.dtype.itemsize

    def metadata_bytes(self, unit: int) -> float:
        """Bytes of Quest's fields per token."""
        return self.kv_bytes / unit


LLAMA = Extents()
"""Llama-3.1-8B."""
TOY = Extents(2, 2, 64, budget=192)
"""Small enough for Triton's interpreter."""
UNITS = (64, 16)


@dataclass(frozen=True)
class Shape:
    """Equally long requests.

    Attributes:
        context: tokens of each.
        batch: requests.
        shared: all pages but each request's last are the same.
    """

    context: int
    batch: int
    shared: bool = False

    def __str__(self) -> str:
        return f"{self.context} x {self.batch}{' shared' if self.shared else ''}"


FULL = [Shape(n * K, b) for b in (1, 8, 32) for n in (32, 128, 64, 8)]
QUICK = [Shape(32 * K, 1), Shape(32 * K, 8), Shape(128 * K, 8), Shape(128 * K, 1), Shape(64 * K, 8)]
SHARED = Shape(128 * K, 32, shared=True)
REHEARSED = [Shape(320, 2)]
REHEARSED_ALONE = Shape(320, 1)
SHARED_REHEARSED = Shape(320, 2, shared=True)


@dataclass
class Scene:
    """A batch over pools of several layers.

    Attributes:
        extents: the layer.
        shape: the batch.
        q: `[rows, H, G, D]`.
        kv: K and V `[slots, H, D]` of each layer.
        pages: int32 `[rows, pages]`, physical.
        req_to_token: int32 `[rows + 1, context]`.
        places: int64 `[rows]`, row of `req_to_token` of each request.
        lengths: int64 `[rows]`.
    """

    extents: Extents
    shape: Shape
    q: torch.Tensor
    kv: list[tuple[torch.Tensor, torch.Tensor]]
    pages: torch.Tensor
    req_to_token: torch.Tensor
    places: torch.Tensor
    lengths: torch.Tensor

    @property
    def device(self) -> torch.device:
        """Where everything lies."""
        return self.q.device

    @property
    def slots(self) -> int:
        """Slots of a pool."""
        return self.kv[0][0].shape[0]

    def units(self, unit: int) -> torch.Tensor:
        """Physical units of each row, int64 `[rows, U]`."""
        table = self.req_to_token[self.places]
        return (table[:, ::unit] // unit).long()

    def contiguous(self, tokens: int) -> torch.Tensor:
        """int32 `[rows, pages]`: pages in order, for requests of `tokens` tokens each."""
        count, rows = tokens // self.extents.page, self.shape.batch
        table = torch.arange(rows * count, dtype=torch.int32, device=self.device) + 1
        assert rows * count < self.slots // self.extents.page - SPARE_PAGES
        return table.view(rows, count)


def make_scene(extents: Extents, shape: Shape, device: torch.device, layers: int) -> Scene:
    """Requests at shuffled pages; what no request owns is NaN."""
    rng = torch.Generator().manual_seed(shape.context + shape.batch)
    count = ceil_div(shape.context, extents.page)
    table = page_table(count, shape, rng)
    slots = (int(table.max()) + 1 + SPARE_PAGES) * extents.page
    first = table.long()[:, :, None] * extents.page + torch.arange(extents.page)
    req_to_token = torch.zeros(shape.batch + 1, shape.context, dtype=torch.int32)
    places = torch.randperm(shape.batch + 1, generator=rng)[: shape.batch]
    req_to_token[places] = first.reshape(shape.batch, -1)[:, : shape.context].int()
    q = SHARPNESS * torch.randn(
        shape.batch, extents.heads, extents.group, extents.dim, generator=rng
    )
    kv = [tuple(pool(slots, extents, device) for _ in range(2)) for _ in range(layers)]
    return Scene(
        extents, shape, q.to(extents.dtype).to(device), kv,  # type: ignore[arg-type]
        table.to(device), req_to_token.to(device), places.to(device),
        torch.full((shape.batch,), shape.context, device=device),
    )  # fmt: skip


def page_table(count: int, shape: Shape, rng: torch.Generator) -> torch.Tensor:
    """int32 `[rows, count]`, shuffled; page 0 is nobody's."""
    if not shape.shared:
        table = torch.randperm(shape.batch * count, generator=rng).int() + 1
        return table.view(shape.batch, count)
    own = torch.randperm(count - 1 + shape.batch, generator=rng).int() + 1
    prefix = own[: count - 1].expand(shape.batch, -1)
    return torch.cat((prefix, own[count - 1 :, None]), 1)


def pool(slots: int, extents: Extents, device: torch.device) -> torch.Tensor:
    """Random `[slots, H, D]`; page 0 and the spare pages are NaN."""
    made = torch.empty(slots, extents.heads, extents.dim, dtype=extents.dtype, device=device)
    made.normal_()
    made[: extents.page] = torch.nan
    made[-SPARE_PAGES * extents.page :] = torch.nan
    return made


def layers_of(extents: Extents, shape: Shape, device: torch.device) -> int:
    """Pools to rotate over: what is selected of all of them is beyond the cache."""
    chosen = shape.batch * min(extents.budget, shape.context) * extents.kv_bytes
    return layers_beyond_cache(chosen, device, 32)


def fits(extents: Extents, shape: Shape, layers: int, device: torch.device) -> str | None:
    """None, or one sentence why the pools do not fit."""
    if device.type != "cuda":
        return None
    rows = 1 if shape.shared else shape.batch
    need = rows * shape.context * extents.kv_bytes * layers * 1.3 + (2 << 30)
    free = torch.cuda.mem_get_info(device)[0]
    if need <= free:
        return None
    return f"needs {need / 1e9:.0f} GB of memory, {free / 1e9:.0f} are free"
