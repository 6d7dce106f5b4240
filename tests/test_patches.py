"""`patches/README.md` names every function of SGLang that is hooked."""

from pathlib import Path

import pytest

from sgl_sparsekv.plugin import HOOKS, Hook

TEXT = (Path(__file__).parents[1] / "patches" / "README.md").read_text()


@pytest.mark.parametrize("hook", HOOKS, ids=lambda hook: hook.target.rpartition(".")[2])
def test_each_hook_has_its_reason_written_down(hook: Hook) -> None:
    """By method name, in the table."""
    method = hook.target.rpartition(".")[2]
    rows = [line for line in TEXT.splitlines() if line.startswith("|")]
    assert any(f"{method}`" in row for row in rows)
