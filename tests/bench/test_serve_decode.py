import json
from contextlib import contextmanager
from types import SimpleNamespace

import pytest
from helpers.stop import StoppedAt

from bench.serve import decode as serve
from bench.serve import timing
from bench.serve.client import Generation


def generation(step_s, report=None):
    arrivals = tuple((1.0 + step_s * i, 1 + i) for i in range(5))
    return Generation(16_384, 1.0, arrivals, report)


def test_a_row_leaves_out_the_first_token():
    report = {"tokens_attended": 10, "tokens_in_context": 80}
    runs = [generation(0.1, report), generation(0.3, report), generation(0.2, report)]
    row = serve._row("quest", "sparsekv", runs, None, dense=1.25)
    assert row.tokens_per_s == pytest.approx(5)
    assert row.ratio == pytest.approx(4)
    assert row.kv_read_fraction == 0.125
    assert row.repeats == pytest.approx((10, 10 / 3, 5))


def test_a_result_is_never_overwritten(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(serve, "measure", lambda *args: pytest.fail("it was measured anyway"))
    path = tmp_path / "found.json"
    path.write_text("{}")
    assert serve.main(["--json", str(path)]) == 2
    assert "not overwritten" in capsys.readouterr().err
    assert path.read_text() == "{}"


def test_a_stopped_run_is_gone_on_with(tmp_path, monkeypatch, capsys):
    """Both caches are filled anew; what was timed before is not timed again."""

    def answer(url, ids, tokens, options=None):
        return generation(0.1, options and {"tokens_attended": 1, "tokens_in_context": 2})

    @contextmanager
    def servers(specs, folder, progress):
        yield {spec.name: SimpleNamespace(url=spec.name) for spec in specs}

    generate = StoppedAt(5, answer)
    monkeypatch.setattr(timing, "generate", generate)
    monkeypatch.setattr(serve, "serve", servers)
    path = tmp_path / "found.json"
    words = ["--json", str(path), "--repeats", "1", "--context", "256", "--layers", "1"]
    assert serve.main(words) == 130
    assert "stopped; --resume goes on with 4 of 5 in" in capsys.readouterr().err
    assert serve.main([*words[:-1], "2", "--resume"]) == 2
    assert "has layers 1, asked for is 2" in capsys.readouterr().err
    assert serve.main([*words, "--resume"]) == 1, "no faster than dense"
    filled = [("torch_native", 1), ("sparsekv", 1)]
    timed = [("torch_native", 33), ("sparsekv", 33), ("sparsekv", 33)]
    asked = [(url, tokens) for url, _, tokens, *_ in generate.calls]
    assert asked == [*filled, *timed, *filled, timed[2]]
    methods = [options["method"] for *_, options in generate.calls if isinstance(options, dict)]
    assert methods == ["full", "quest", "quest"]
    rows = json.loads(path.read_text())["rows"]
    assert [row["ratio"] for row in rows] == pytest.approx([1, 1, 1])
    assert [row["kv_read_fraction"] for row in rows] == [1, 0.5, 0.5]
    assert [one.name for one in tmp_path.iterdir()] == ["found.json"]


@pytest.mark.parametrize(("ratio", "status"), [(4.2, 0), (3.9, 1)])
def test_the_target_decides_the_exit_code(tmp_path, monkeypatch, capsys, ratio, status):
    row = serve._row("quest", "sparsekv", [generation(0.1)], None, dense=10 / ratio)
    result = {
        "rows": [serve.asdict(row)],
        "ratio": row.ratio,
        "passed": row.ratio >= serve.TARGET,
        "prefill_s": {"torch_native": 1.0, "sparsekv": 1.0},
        "environment": serve.environment(),
        **dict.fromkeys(("shape", "layers", "context", "tokens"), 1),
    }
    monkeypatch.setattr(serve, "measure", lambda *args: result)
    path = tmp_path / "results" / "found.json"
    assert serve.main(["--json", str(path)]) == status
    assert json.loads(path.read_text())["ratio"] == pytest.approx(ratio)
    assert f"{ratio:.2f}x" in capsys.readouterr().out


def test_a_shape_with_eight_kv_heads_is_cut_with_its_words(tmp_path, capsys):
    args = serve._arguments(["--shape", "llama-3.2-1b", "--layers", "4"])
    serve.server_flags(tmp_path, args)
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    assert config["num_hidden_layers"] == 4 and config["num_key_value_heads"] == 8
    assert config["vocab_size"] == 128_256 // 4
    assert serve.SHAPES[args.shape].dense_layers(4) == 1
    whole = serve._arguments(["--shape", "llama-3.2-1b"])
    assert whole.layers == 16 and serve.SHAPES[whole.shape].dense_layers(16) == 2
    assert serve.SHAPES[whole.shape].cut(16)["vocab_size"] == 128_256
    with pytest.raises(SystemExit):
        serve._arguments(["--layers", "25"])
    assert "--layers must be in [1, 24], got 25" in capsys.readouterr().err


def test_both_servers_get_a_model_of_the_named_shape(tmp_path):
    args = serve._arguments(["--layers", "3"])
    flags = serve.server_flags(tmp_path, args)
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    assert config["num_hidden_layers"] == 3
    assert config["hidden_size"] // config["num_attention_heads"] == 64
    assert int(flags[flags.index("--chunked-prefill-size") + 1]) >= args.context
