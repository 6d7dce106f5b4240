"""The benchmark of kernels as a command: what is there is kept."""

import json
from pathlib import Path

import pytest
import torch
from helpers.stop import StoppedAt

from bench.kernels import __main__ as kernels
from bench.kernels import ratios, shared
from bench.kernels.rows import TOKEN_BYTES, UNIT_BYTES, Row
from sgl_sparsekv.ops import load_ops


def row(op: str, context: int, batch: int = 1) -> Row:
    return Row(op, "quest", context, batch, 16, 2048, 1.5, 1.75, 1000, None, None)


def test_a_stopped_run_is_gone_on_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:

    def decode_rows(ops: object, context: int, batch: int, *rest: object) -> list[Row]:
        return [row("decode_sparse", context, batch)]

    timed = StoppedAt(2, decode_rows)

    monkeypatch.setattr(kernels, "read_bandwidth", lambda *args: (1e7, 1e7))
    monkeypatch.setattr(kernels, "decode_rows", timed)
    monkeypatch.setattr(kernels, "prefill_rows", lambda *args: [row("prefill", 64)])
    path = tmp_path / "found.json"
    words = ["--device", "reference", "--json", str(path), "--contexts", "4096,8192"]
    words += ["--batches", "1", "--shared", "0"]
    assert kernels.main(words) == 130
    said = capsys.readouterr().err
    assert "bench.kernels: stopped; --resume goes on with 1 of 3" in said and not path.exists()
    assert kernels.main(words) == 2
    assert "--resume goes on with it" in capsys.readouterr().err
    assert kernels.main([*words, "--resume"]) == 0
    assert [context for _, context, *_ in timed.calls] == [4096, 8192, 8192]
    rows = [Row(**one) for one in json.loads(path.read_text())["rows"]]
    assert rows == [row("decode_sparse", 4096), row("decode_sparse", 8192), row("prefill", 64)]
    assert [one.name for one in tmp_path.iterdir()] == ["found.json"]


def test_a_step_is_held_against_its_peer_turn_by_turn() -> None:
    times = {
        ("decode_sparse", "quest"): [1.0, 2.0, 4.0],
        ("decode_sparse", "residual_pq"): [2.0, 2.0, 2.0],
        ("decode_covering", "quest"): [3.0, 3.0, 3.0],
        ("same_bytes", "quest"): [2.0, 3.0, 1.5],
    }
    found = ratios.beside(times, ("decode_sparse", "residual_pq"))
    assert found == {"beside": "quest", "ratio": 1.0, "ratio_spread": [0.75, 1.5]}
    found = ratios.beside(times, ("decode_covering", "quest"))
    assert found == {"beside": "same_bytes", "ratio": 1.5, "ratio_spread": [1.25, 1.75]}
    assert ratios.beside(times, ("decode_sparse", "quest")) == {}


def test_rows_on_a_prefix_are_held_against_each_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bytes that differ are counted once, and each row is judged by what it is alone."""
    monkeypatch.setattr(shared, "CACHES", 4)
    monkeypatch.setattr(shared, "BUDGET", 256)
    ops = load_ops("cpu")
    rows = {row.op: row for row in shared.shared_rows(ops, 1024, 3, 2, 1e7)}
    assert len(rows) == 8
    for op in ("sparse", "dense", "score", "attend"):
        together, alone = rows[f"shared_{op}"], rows[f"alone_{op}"]
        assert together.beside == f"alone_{op}" and together.ratio and alone.beside is None
        assert together.bytes < alone.bytes
    assert rows["shared_score"].bytes == (1024 + 3 * 512) // 16 * UNIT_BYTES
    assert rows["alone_score"].bytes == 3 * (1024 + 512) // 16 * UNIT_BYTES
    assert rows["shared_dense"].bytes == (1024 + 3 * 512) * TOKEN_BYTES
    read = rows["shared_attend"].bytes
    assert 256 * TOKEN_BYTES < read < 3 * 256 * TOKEN_BYTES

    def spoilt(*args: object) -> tuple[torch.Tensor, torch.Tensor]:
        out, lse = attend(*args)
        out[1:] += 1
        return out, lse

    attend = ops.attend
    monkeypatch.setattr(ops, "attend", spoilt)
    with pytest.raises(AssertionError, match="of row 1 is another alone"):
        shared.shared_rows(ops, 1024, 3, 2, 1e7)
