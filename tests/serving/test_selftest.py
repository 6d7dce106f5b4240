"""What `sparsekv doctor` runs can fail on a kernel that is right for short rows only."""

from sgl_sparsekv.geometry import UNIT_SIZE
from sgl_sparsekv.serving.selftest import LENGTHS, make_case


def test_a_row_selects_more_than_64_tokens_of_a_longer_context() -> None:
    """Shorter contexts and smaller budgets have hidden broken kernels elsewhere."""
    case = make_case()
    read = (case.counts * UNIT_SIZE).tolist()
    assert any(64 < tokens < length for tokens, length in zip(read, LENGTHS, strict=True))
