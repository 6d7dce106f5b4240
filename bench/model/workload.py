"""One batch in one step, and the bytes of metadata that choosing reads."""

from dataclasses import dataclass

from bench.model.hardware import Model, find


@dataclass(frozen=True)
class MetadataFormat:
    """What is kept per unit and KV head.

    Attributes:
        vectors: vectors of `head_dim` elements.
        unit: tokens per unit; None: a page.
        element_bytes: bytes per element; None: as K.
        codes: bytes in place of vectors, 0 if there are none.
    """

    vectors: int
    unit: int | None = None
    element_bytes: int | None = None
    codes: int = 0

    def bytes_per_token(self, model: Model, page: int) -> float:
        """Bytes per token and KV head."""
        element = self.element_bytes or model.dtype_bytes
        return (self.vectors * model.head_dim * element + self.codes) / (self.unit or page)


METADATA = {
    "quest": MetadataFormat(2),
    "mean_std": MetadataFormat(2),
    "quest_fp32": MetadataFormat(2, element_bytes=4),
    "quest_fp8": MetadataFormat(2, element_bytes=1),
    "mean": MetadataFormat(1),
    "landmark8": MetadataFormat(1, unit=8),
    "centroids": MetadataFormat(1, unit=80),
    "pq": MetadataFormat(0, unit=1, codes=2),
    "streaming": MetadataFormat(0),
}
"""Quest: arXiv 2406.10774. quest_fp32: as SGLang's own sparsity package keeps it. landmark8:
ShadowKV, arXiv 2410.21465. centroids: ClusterKV, arXiv 2412.03213, one per 80 tokens. pq: PQCache,
arXiv 2407.12820, 2 bytes of codes per token and head, without its table of inner products."""


@dataclass(frozen=True)
class Workload:
    """Equally long requests that decode one token each.

    Attributes:
        context: tokens per request.
        batch: requests.
        page: tokens per unit that is scored.
        budget: tokens read per request and KV head.
        method: a key of `METADATA`.

    Raises:
        ValueError: a number below 1, or a method that is not known.
    """

    context: int
    batch: int = 1
    page: int = 64
    budget: int = 2048
    method: str = "quest"

    def __post_init__(self) -> None:
        for name in ("context", "batch", "page", "budget"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        find(METADATA, "method", self.method)

    @property
    def sparse(self) -> bool:
        """Whether the budget leaves anything out; otherwise the step is dense."""
        return self.budget < self.context


def metadata_bytes(model: Model, work: Workload) -> float:
    """Bytes of metadata per request and layer; `context / page` units, the last one in part."""
    per_token = METADATA[work.method].bytes_per_token(model, work.page)
    return per_token * model.kv_heads * work.context


def metadata_share(model: Model, work: Workload) -> float:
    """Bytes of metadata over bytes of K and V."""
    return metadata_bytes(model, work) / (work.context * model.kv_bytes)
