"""What a segment's record holds: arrays, their shapes for one KV head and their types."""

import re

import pytest
import torch

from sgl_sparsekv.segments.index import clusters, products
from sgl_sparsekv.segments.residual import residuals
from sgl_sparsekv.selection.quest import Quest
from sgl_sparsekv.summaries import (
    BoundSummary,
    CodeSummary,
    ResidualSummary,
    SegmentSummary,
    divided,
)

DIM, V_DIM = 48, 32


def test_a_page_summary_is_kept_as_its_planes_in_the_keys_type() -> None:
    assert BoundSummary("bounds", 512, Quest.summary).shapes(DIM, V_DIM) == {
        "planes": ((2, DIM), None)
    }


@pytest.mark.parametrize(
    ("summary", "parts", "codes"), [(clusters(512, 16), 1, 32), (products(512, 4, 5), 4, 32)]
)
def test_a_code_for_each_token_and_a_book_for_each_subspace(
    summary: CodeSummary, parts: int, codes: int
) -> None:
    """Codes are bytes; the vectors that they stand for are of the keys' type."""
    assert summary.shapes(DIM, V_DIM) == {
        "codes": ((parts, 512), torch.uint8),
        "codebooks": ((parts, codes, DIM // parts), None),
    }


@pytest.mark.parametrize("parts", [4, 5])
def test_two_codes_share_a_byte_and_clusters_lie_apart(parts: int) -> None:
    """Vectors are bytes with scales: of centroids, of values, and of each book."""
    dim = 8 * parts
    assert residuals(256, parts).shapes(dim, V_DIM) == {
        "codes": (((parts + 1) // 2, 256), torch.uint8),
        "labels": ((128,), torch.uint8),
        "places": ((256,), torch.int16),
        "ends": ((16,), torch.int16),
        "centroids": ((dim, 16), torch.int8),
        "codebooks": ((parts, 8, 16), torch.int8),
        "values": ((16, V_DIM), torch.int8),
        "scales": ((16 + 16 + parts,), torch.float32),
    }


def test_the_widest_key_of_a_residual_record() -> None:
    summary = residuals(256, 4)
    assert summary.shapes(ResidualSummary.WIDEST, V_DIM)["centroids"][0] == (512, 16)
    with pytest.raises(ValueError, match=r"^head size must be at most 512, got 516$"):
        summary.shapes(ResidualSummary.WIDEST + 4, V_DIM)


def test_a_key_is_cut_into_equal_parts_or_not_at_all() -> None:
    assert divided(48, 4) == 12 and divided(48, 1) == 48
    words = re.escape("head size must be a multiple of 5 sub-vectors, got 48")
    with pytest.raises(ValueError, match=f"^{words}$"):
        divided(48, 5)


def test_a_kind_of_record_says_what_it_holds() -> None:
    with pytest.raises(NotImplementedError):
        SegmentSummary("none", 256).shapes(DIM, V_DIM)
