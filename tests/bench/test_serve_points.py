"""What is measured, with which arguments, and what is made of what the tools write."""

import json
from dataclasses import replace

import pytest
from serve_samples import GRID, QUEST, RECORDED, recorded

from bench.serve import counters, worker
from bench.serve.grid import FULL, OURS, Point, Variant, offline, plan
from bench.serve.model import QWEN, write_model
from bench.serve.offline import WARMUP_REQUESTS, dataset, offline_command
from bench.serve.programs import row as program_row
from bench.serve.servers import differences, specs
from bench.serve.tool import PointFailed, parse
from bench.serve.workloads import row, serving_arguments

PEER = Variant("torch_native")
SHARED = Point("shared", QUEST, 2048, 2, 4)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return write_model(tmp_path_factory.mktemp("model") / "m", 2)


class Words:
    """Documents whose words are their salts."""

    def text(self, tokens, salt=""):
        return f"{tokens}-{salt or 'document'}"


def after(arguments, flag):
    return arguments[arguments.index(flag) + 1]


def test_every_method_and_budget_meets_every_context():
    hits = {(p.variant.name, p.context) for p in plan(GRID, OURS) if p.workload == "hit"}
    methods = ("full", "quest 256", "quest 512", "clusterkv 256", "clusterkv 512")
    assert hits == {(name, context) for name in methods for context in (1024, 2048)}


def test_a_prompt_is_in_the_cache_before_it_is_asked_for_again():
    for server in GRID.servers:
        cached = None
        for point in plan(GRID, server):
            if point.workload == "cold":
                cached = point.context
            if point.workload == "hit":
                assert point.context == cached


def test_peers_are_measured_wherever_we_are():
    def places(points, full):
        return {(p.workload, p.context, p.concurrency, p.rate) for p in points if p.variant == full}

    assert places(plan(GRID, "torch_native"), PEER) == places(plan(GRID, OURS), Variant(OURS, FULL))
    assert {point.variant.name for point in offline(GRID)} == {
        *("torch_native", "full", "quest 256")
    }


def test_a_peer_gets_the_same_arguments_but_for_the_options(model):
    ours = serving_arguments(SHARED, GRID, model, "http://ours")
    theirs = serving_arguments(Point("shared", PEER, 2048, 2, 4), GRID, model, "http://ours")
    at = ours.index("--extra-request-body") + 1
    bodies = [json.loads(arguments.pop(at))["sampling_params"] for arguments in (ours, theirs)]
    assert ours == theirs
    options = bodies[0].pop("custom_params")["sparsekv"]
    assert options == {"method": "quest", "budget": 256, "dense_layers": 1}
    # The tool's own sampling parameters are lost with the first that it is given.
    assert bodies[0] == bodies[1] == {"temperature": 0, "max_new_tokens": 16, "ignore_eos": True}


def test_a_cold_prompt_meets_an_empty_cache_and_a_hit_the_same_prompt(model):
    cold = serving_arguments(Point("cold", QUEST, 1024, 1, 1), GRID, model, "u")
    hit = serving_arguments(Point("hit", QUEST, 1024, 1, 1), GRID, model, "u")
    assert "--flush-cache" in cold and after(cold, "--warmup-requests") == "0"
    assert "--flush-cache" not in hit
    assert after(hit, "--warmup-requests") == "0"
    on_a_gpu = replace(GRID, device="cuda")
    compiled = serving_arguments(Point("hit", QUEST, 1024, 1, 1), on_a_gpu, model, "u")
    assert after(compiled, "--warmup-requests") == "1"
    for flag in ("--seed", "--num-prompts", "--random-input-len", "--dataset-name"):
        assert after(cold, flag) == after(hit, flag)


def test_a_rate_takes_the_place_of_a_concurrency(model):
    arguments = serving_arguments(Point("shared", QUEST, 2048, 0, 4, 0.5), GRID, model, "u")
    assert after(arguments, "--request-rate") == "0.5"
    assert "--max-concurrency" not in arguments


def test_a_row_is_what_the_tool_found():
    found = row(SHARED, parse(recorded()), 0.25, ["--x"])
    assert (found.itl_ms, found.itl_p99_ms, found.ttft_ms) == (18.1, 35.2, 128.3)
    assert (found.variant, found.context, found.concurrency) == ("quest 256", 2048, 2)
    assert (found.goodput_share, found.goodput_per_s) == (1.0, 4.749)
    assert (found.cached_tokens, found.kv_read) == (2048, 0.25)
    assert found.command == ["python", "-m", "sglang.benchmark.serving", "--x"]
    assert "server_info" not in found.tool and found.tool["ttfts"] == RECORDED["ttfts"]
    assert found.tool["request_rate"] is None
    json.dumps(found.tool, allow_nan=False)


@pytest.mark.parametrize(("workload", "cached"), [("cold", 64), ("hit", 0), ("shared", 1984)])
def test_a_point_that_found_another_cache_is_no_measurement(workload, cached):
    found = parse(recorded(cached_tokens=[cached]))
    with pytest.raises(PointFailed, match="came from the cache"):
        row(Point(workload, QUEST, 2048, 1, 1), found, None, [])


def test_a_request_without_an_answer_fails_the_point():
    with pytest.raises(PointFailed, match="3 of 4 requests were answered: refused"):
        parse(recorded(completed=3, errors=["", "Traceback\nrefused", "", ""]))


def test_counters_are_summed_over_ranks_and_a_peer_has_none():
    ours = {"counters": {"tokens_attended_total": 2, "tokens_in_context_total": 8}}
    assert counters.totals({"internal_states": [{"sparsekv": ours}, {"sparsekv": ours}]}) == (4, 16)
    assert counters.totals({"internal_states": [{}]}) is None


def test_servers_differ_in_their_backend_alone(model):
    found = specs(GRID, model, ["--log-level", "info"])
    assert differences(found) == [
        "torch_native: --attention-backend torch_native",
        "sparsekv: --attention-backend sparsekv --sparsekv-methods full,quest,clusterkv",
    ]
    assert int(after(found[OURS].flags, "--chunked-prefill-size")) >= GRID.longest
    assert "--log-level" in found["torch_native"].flags


def test_layers_and_vocabulary_are_cut_alike_and_every_id_is_a_word(model):
    from transformers import AutoTokenizer

    config = json.loads((model.folder / "config.json").read_text())
    assert config["num_hidden_layers"] * 12 == 24
    assert abs(config["vocab_size"] * 12 - QWEN["vocab_size"]) <= 12 * 32
    tokenizer = AutoTokenizer.from_pretrained(model.tokenizer)
    ids = list(range(3, config["vocab_size"]))
    text = tokenizer.decode(ids)
    assert tokenizer.encode(text, add_special_tokens=False) == ids
    assert model.dense_layers == 1


def test_our_engine_needs_plugins_and_a_peer_runs_the_tool_as_it_is(model, tmp_path):
    found = specs(GRID, model)
    point = Point("offline", QUEST, 2048, 2, 4)
    ours = offline_command(point, GRID, found[OURS], tmp_path / "d", tmp_path / "o")
    assert ours[:4] == [
        *("python", "-m", "sgl_sparsekv.with_plugins", "sglang.benchmark.offline_throughput")
    ]
    body = json.loads(after(ours, "--extra-request-body"))
    assert body == {"custom_params": {"sparsekv": QUEST.options}}
    peer = Point("offline", PEER, 2048, 2, 4)
    theirs = offline_command(peer, GRID, found["torch_native"], tmp_path / "d", tmp_path / "o")
    assert theirs[:3] == ["python", "-m", "sglang.benchmark.offline_throughput"]
    assert "--extra-request-body" not in theirs


def test_offline_requests_share_a_document_and_suffice_for_the_warm_up():
    rows = dataset(Words(), Point("offline", QUEST, 2048, 2, 4))
    prompts = {one["conversations"][0]["value"] for one in rows}
    assert len(prompts) == len(rows) == WARMUP_REQUESTS
    assert all(prompt.startswith("2048-document ") for prompt in prompts)
    assert all(len(one["conversations"]) == 2 for one in rows)


def test_a_program_is_timed_in_its_second_turn():
    answers = [{"cached_tokens": 2048}, {"cached_tokens": 1984}]
    found = program_row(Point("program", QUEST, 2048, 2, 2), GRID, [9.0, 0.5], answers, 0.5)
    assert found.tokens_per_s == 64 and found.seconds == 0.5 and found.cached_tokens == 2016
    assert "SparseKVEndpoint" in found.command[0] and "budget=256" in found.command[0]


class FakeTool:
    def __init__(self, script):
        self.cli_main = script


def fails():
    raise RuntimeError("no such dataset")


def sleeps():
    import time

    time.sleep(30)


@pytest.mark.parametrize(
    ("script", "status", "said"),
    [
        (lambda: print("done"), 0, "done"),
        (fails, 1, "RuntimeError: no such dataset"),
        (lambda: exit(3), 3, ""),
        (sleeps, -9, ""),
    ],
)
def test_each_command_line_runs_in_a_process_of_its_own(tmp_path, script, status, said):
    log = tmp_path / "log"
    job = {"arguments": ["--x"], "log": str(log), "timeout": 1.0}
    assert worker._run(FakeTool(script), job) == status
    assert said in log.read_text()
