"""Options, value by value: what is taken, what is refused and with which words."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from sgl_sparsekv.config import (
    REQUEST_FIELDS,
    SERVER_FIELDS,
    RequestOptions,
    ServerOptions,
    check_chunks,
    check_page_size,
    parse_request_options,
    parse_server_options,
)
from sgl_sparsekv.config_file import ENV_CONFIG, read_config_file, read_env_config
from sgl_sparsekv.errors import ConfigError, RequestOptionError
from sgl_sparsekv.ops import DEVICES
from sgl_sparsekv.routes import ROUTES
from sgl_sparsekv.selection import IndexOptions
from sgl_sparsekv.types import Reduction

INT = "must be an integer in"
METHODS = (
    "adakv, clusterkv, full, h2o, kvcompress, mean_std, oracle, pqcache, pyramidkv, quest, "
    "quest_int8, quest_two_level, quest_two_level_exact, residual_pq, shadowkv, snapkv, streaming"
)
BUDGET = (
    "budget must be a number of tokens (integer > 0) or a share of the context (fraction in "
    "(0, 1], written with a point), got "
)
FLOOR = "head_floor must be a part of the even share (fraction in [0, 1], written with a point),"
COVERAGE = (
    "coverage must be a share of attention (fraction in (0, 1), written with a point) or null, got "
)
UNABLE = (
    "with method %s, whose scores say nothing about shares of attention: take clusterkv, "
    "mean_std, oracle, pqcache, quest, residual_pq"
)
UNTOLD = "coverage must be null on this server: start it with --sparsekv-serve-coverage true"
SHARED = (
    "budget_split must be \"even\" on device triton, where KV heads share no budget, got 'heads'"
)
BAD: list[tuple[dict[str, Any], str]] = [
    ({"method": "Quest"}, f"method must be one of {METHODS}, got 'Quest'"),
    ({"methods": "quest,best"}, f"methods must be among {METHODS}, got 'best'"),
    ({"methods": 3}, "methods must be a list of method names, got 3"),
    ({"methods": ["quest", 3]}, "methods must be a list of method names, got ['quest', 3]"),
    ({"sink": -1}, f"sink {INT} [0, 2147483647], got -1"),
    ({"sink": 2**31}, f"sink {INT} [0, 2147483647], got 2147483648"),
    ({"sink": "4"}, f"sink {INT} [0, 2147483647], got '4'"),
    ({"sink": True}, f"sink {INT} [0, 2147483647], got True"),
    ({"window": 1.0}, f"window {INT} [0, 2147483647], got 1.0"),
    ({"dense_layers": -1}, f"dense_layers {INT} [0, 10000], got -1"),
    ({"dense_layers": 10_001}, f"dense_layers {INT} [0, 10000], got 10001"),
    ({"reselect_every": 0}, f"reselect_every {INT} [1, 1024], got 0"),
    ({"reselect_every": 1025}, f"reselect_every {INT} [1, 1024], got 1025"),
    ({"telemetry": 1}, "telemetry must be true or false, got 1"),
    ({"kept_map": "yes"}, "kept_map must be true or false, got 'yes'"),
    ({"estimate": 1}, "estimate must be true or false, got 1"),
    *(
        ({"coverage": value}, f"{COVERAGE}{value!r}")
        for value in (0.0, 1.0, 1, True, "0.9", float("nan"))
    ),
    ({"budget_split": "layers"}, "budget_split must be one of even, heads, got 'layers'"),
    ({"coverage": 0.9, "method": "shadowkv"}, f"coverage must be null {UNABLE % 'shadowkv'}"),
    (
        {"budget_split": "heads", "method": "streaming"},
        f'budget_split must be "even" {UNABLE % "streaming"}',
    ),
    ({"device": "triton", "budget_split": "heads"}, SHARED),
    ({"device": "triton", "budget_split": "heads", "coverage": 0.9}, SHARED),
    (
        {"device": "triton", "coverage": 0.9, "attend": "fa3"},
        "serve_coverage and coverage must be left out with a stock kernel, which reads as much for "
        "every KV head: got attend fa3",
    ),
    (
        {"device": "triton", "measure": True, "attend": "fa3"},
        "measure and telemetry must be false with a stock kernel, which does not tell what a "
        "selection covers: got attend fa3",
    ),
    ({"share_generated": 1}, "share_generated must be true or false, got 1"),
    ({"unit_size": 2}, f"unit_size {INT} [16, 64], got 2"),
    ({"unit_size": 129}, f"unit_size {INT} [16, 64], got 129"),
    ({"unit_size": 24}, "unit_size must be one of 16, 32, 64, got 24"),
    *(({"budget": value}, f"{BUDGET}{value!r}") for value in (0, -1, 2**31, 0.0, 1.5, True, "5")),
    (
        {"budget": 95},
        "budget must be at least 96 tokens (sink 16 + window 64 in whole units of 16, and one for "
        "the partial tail), got 95",
    ),
    (
        {"budget": 1, "sink": 0, "window": 0},
        "budget must be at least 16 tokens (sink 0 + window 0 in whole units of 16, and one for "
        "the partial tail), got 1",
    ),
    ({"reduction": "sum"}, "reduction must be one of max_softmax, mean_softmax, max, got 'sum'"),
    (
        {"device": "gpu"},
        f"device must be one of {', '.join(['auto', *sorted(DEVICES)])}, got 'gpu'",
    ),
    (
        {"attend": "fa1"},
        f"attend must be one of {', '.join(['triton', *sorted(ROUTES)])}, got 'fa1'",
    ),
    ({"check": "on"}, "check must be one of off, log, raise, got 'on'"),
    ({"check_interval": 0}, f"check_interval {INT} [1, 2147483647], got 0"),
    ({"validate_requests": "yes"}, "validate_requests must be true or false, got 'yes'"),
    (
        {"dense_below": -1},
        f'dense_below must be "auto" or "predicted", or it {INT} [0, 2147483647], got -1',
    ),
    (
        {"dense_below": "no"},
        f'dense_below must be "auto" or "predicted", or it {INT} [0, 2147483647], got \'no\'',
    ),
    ({"trace": "5560"}, "trace must be a ZMQ endpoint such as tcp://*:5560, got '5560'"),
    (
        {"device": "triton", "attend": "fa2", "reselect_every": 2},
        "attend must be triton with reselect_every above 1, got fa2",
    ),
    (
        {"device": "triton", "coverage": 0.9, "reselect_every": 2},
        "reselect_every must be 1 with a coverage on device triton, which draws a sample in every "
        "step, got 2",
    ),
    (
        {"device": "triton", "reduction": "max"},
        "reduction max has no kernels on device triton: take another",
    ),
    (
        {"device": "triton", "estimate": True, "attend": "fa2"},
        "attend must be triton where clusters answer for what is not read (estimate), got fa2",
    ),
    ({"cluster_segment": 63}, f"cluster_segment {INT} [64, 16384], got 63"),
    ({"cluster_segment": 16_512}, f"cluster_segment {INT} [64, 16384], got 16512"),
    ({"cluster_segment": 200}, "cluster_segment must be a multiple of 64 tokens, got 200"),
    ({"pq_segment": 200}, "pq_segment must be a multiple of 64 tokens, got 200"),
    ({"tokens_per_centroid": 0}, f"tokens_per_centroid {INT} [1, 512], got 0"),
    ({"tokens_per_centroid": 513}, f"tokens_per_centroid {INT} [1, 512], got 513"),
    ({"pq_bits": 9}, f"pq_bits {INT} [1, 8], got 9"),
    ({"observation_window": 0}, f"observation_window {INT} [1, 1024], got 0"),
    ({"observation_window": 1025}, f"observation_window {INT} [1, 1024], got 1025"),
    ({"pooling": 0}, f"pooling {INT} [1, 63], got 0"),
    ({"pooling": 65}, f"pooling {INT} [1, 63], got 65"),
    ({"pooling": 6}, "pooling must be odd, got 6"),
    ({"renew_every": -1}, f"renew_every {INT} [0, 1024], got -1"),
    ({"renew_every": 1025}, f"renew_every {INT} [0, 1024], got 1025"),
    ({"pyramid_beta": 0}, f"pyramid_beta {INT} [1, 1000], got 0"),
    ({"pyramid_beta": 1001}, f"pyramid_beta {INT} [1, 1000], got 1001"),
    ({"pack_views": 1}, "pack_views must be true or false, got 1"),
    ({"serve_coverage": 1}, "serve_coverage must be true or false, got 1"),
    ({"measure": 1}, "measure must be true or false, got 1"),
    ({"admit_packed": 1}, "admit_packed must be true or false, got 1"),
    (
        {"pack_views": False, "admit_packed": True},
        "admit_packed must be false where pack_views is: it counts on that",
    ),
    (
        {"device": "triton", "admit_packed": True},
        "admit_packed must be false on device triton: rows are packed on a CPU only",
    ),
    (
        {"device": "triton", "attend": "fa2", "methods": "quest,shadowkv"},
        "attend must be triton with method shadowkv, which selects less than whole units, got fa2",
    ),
    (
        {"device": "triton", "attend": "fa2", "methods": "quest,snapkv"},
        "attend must be triton with method snapkv, whose KV heads read different numbers of "
        "tokens, got fa2",
    ),
    ({"head_floor": 1}, f"{FLOOR} got 1"),
    ({"head_floor": 1.5}, f"{FLOOR} got 1.5"),
    (
        {"method": "snapkv", "estimate": True},
        "estimate must be false with method snapkv, which keeps a view, got true",
    ),
    ({"pq_bits": 0}, f"pq_bits {INT} [1, 8], got 0"),
    ({"pq_subspaces": 3}, "pq_subspaces must be one of 1, 2, 4, 8, 16, got 3"),
]


@pytest.mark.parametrize(("values", "said"), BAD, ids=lambda value: str(value)[:40])
def test_a_wrong_value_is_named_with_its_rule(values: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError) as refused:
        parse_server_options(values)
    assert str(refused.value) == said


@pytest.mark.parametrize(
    "values",
    [
        {"pooling": 9},
        {"head_floor": 0.0},
        {"head_floor": 1.0},
        {"pack_views": False},
        {"pack_views": True, "admit_packed": True},
        {"device": "triton", "methods": "quest,snapkv"},
        {"device": "triton", "methods": "quest", "attend": "fa2"},
        {"device": "triton", "measure": True, "serve_coverage": True},
        {"device": "triton", "coverage": 0.9},
        {"device": "cpu", "measure": True, "attend": "fa2"},
        {"device": "cpu", "methods": "quest,snapkv", "admit_packed": True},
    ],
    ids=str,
)
def test_what_is_no_mistake_is_taken(values: dict[str, Any]) -> None:
    made = parse_server_options(values).as_dict()
    assert {name: made[name] for name in values.keys() - {"methods"}} == {
        name: value for name, value in values.items() if name != "methods"
    }


def test_an_unknown_name_is_told_the_known_ones() -> None:
    with pytest.raises(ConfigError) as refused:
        parse_server_options({"sink": 0, "zebra": 1, "bugdet": 2})
    known = ", ".join((*REQUEST_FIELDS, *SERVER_FIELDS))
    assert str(refused.value) == f"unknown option 'bugdet'; known options are {known}"


def test_values_at_their_limits_are_taken() -> None:
    """Every one of them, together."""
    values = {
        "method": "clusterkv", "methods": "quest, full", "budget": 1.0, "sink": 0, "window": 0,
        "dense_layers": 10_000, "reselect_every": 1024, "telemetry": True, "unit_size": 64,
        "reduction": "mean_softmax", "device": "cpu", "dense_below": 0, "check": "raise",
        "check_interval": 1, "validate_requests": False, "trace": "tcp://*:5560",
        "cluster_segment": 16_384, "tokens_per_centroid": 16_384, "pq_bits": 1, "pq_subspaces": 16,
    }  # fmt: skip
    made = parse_server_options(values)
    assert made.request == RequestOptions(
        "clusterkv",
        1.0,
        0,
        0,
        dense_layers=10_000,
        reselect_every=1024,
        telemetry=True,
        unit_size=64,
    )
    assert made.methods == ("clusterkv", "full", "quest"), "the server's own is always offered"
    assert made.reduction is Reduction.MEAN_SOFTMAX
    assert made.index == IndexOptions(
        cluster_segment=16_384, tokens_per_centroid=16_384, pq_bits=1, pq_subspaces=16
    )
    assert (made.device, made.dense_below, made.check) == ("cpu", 0, "raise")
    assert (made.check_interval, made.validate_requests) == (1, False)
    assert made.trace == "tcp://*:5560"
    assert parse_server_options({"methods": ["quest"]}).methods == ("quest",)
    assert parse_server_options({"budget": 2**31 - 1, "sink": 4}).request.sink == 4


VIEWS = ServerOptions(methods=("full", "kvcompress", "quest", "snapkv"))
WRONG_NAMES: list[tuple[dict[str, Any], str]] = [
    (
        {"max_cache_tokens": 256, "method": "snapkv"},
        "max_cache_tokens must be left out with method 'snapkv': it is an option of kvcompress",
    ),
    (
        {"max_cache_tokens": 256, "target_compression_rate": 0.5},
        "target_compression_rate must be left out beside max_cache_tokens: both set budget",
    ),
    (
        {"budget": 128, "max_cache_tokens": 256},
        "max_cache_tokens must be left out beside budget: both set budget",
    ),
    (
        {"window": 8, "protected_window_size": 8},
        "protected_window_size must be left out beside window: both set window",
    ),
    (
        {"renew_every": 8, "compress_once": True},
        "compress_once must be left out beside renew_every: both set renew_every",
    ),
    ({"compress_once": 1}, "compress_once must be true or false, got 1"),
    ({"max_cache_tokens": 0}, f"max_cache_tokens {INT} [1, 2147483647], got 0"),
    ({"max_cache_tokens": "9"}, f"max_cache_tokens {INT} [1, 2147483647], got '9'"),
    ({"protected_window_size": -1}, f"protected_window_size {INT} [0, 2147483647], got -1"),
    (
        {"target_compression_rate": 8},
        "target_compression_rate must be a fraction in (0, 1], got 8",
    ),
    *(
        (
            {"target_compression_rate": value},
            f"target_compression_rate must be a fraction in (0, 1], got {said}",
        )
        for value, said in ((0, "0"), (1.5, "1.5"), ("half", "'half'"), (True, "True"))
    ),
]


@pytest.mark.parametrize(("raw", "said"), WRONG_NAMES, ids=lambda value: str(value)[:40])
def test_two_names_for_one_option_are_refused(raw: dict[str, Any], said: str) -> None:
    with pytest.raises(RequestOptionError) as refused:
        parse_request_options(raw, VIEWS)
    assert str(refused.value) == f"sparsekv.{said}"


def test_names_of_kv_compress_are_translated() -> None:
    asked = {"max_cache_tokens": 256, "protected_window_size": 32, "compress_once": True}
    made = parse_request_options(asked, VIEWS)
    assert (made.method, made.budget, made.window, made.renew_every) == ("kvcompress", 256, 32, 0)
    unset = {"max_cache_tokens": -1, "target_compression_rate": 1.0, "compress_once": False}
    server = VIEWS.request
    assert parse_request_options(unset, VIEWS) == replace(server, method="kvcompress")
    rate = parse_request_options({"target_compression_rate": 0.25, "max_cache_tokens": -1}, VIEWS)
    assert rate.budget == 0.25
    with pytest.raises(RequestOptionError, match="method must be one of full, quest on this"):
        parse_request_options({"compress_once": True}, ServerOptions(methods=("full", "quest")))


def test_options_written_down_are_read_back() -> None:
    for made in (ServerOptions(), parse_server_options({"budget": 0.5, "methods": "quest"})):
        flat = json.loads(json.dumps(made.as_dict()))
        assert set(flat) == {*REQUEST_FIELDS, *SERVER_FIELDS}
        assert flat["reduction"] == "max_softmax" and flat["methods"] == list(made.methods)
        assert parse_server_options(flat) == made


def test_a_budget_is_of_the_context_and_holds_sinks_and_window() -> None:
    """In whole units, one of them for the partial tail."""
    assert RequestOptions(budget=500).budget_tokens(10**6) == 500
    ratio = RequestOptions(budget=0.25, sink=17, window=65)
    assert ratio.minimum_budget == (2 + 5 + 1) * 16
    assert [ratio.budget_tokens(n) for n in (100, 512, 516, 519, 1000)] == [128, 128, 129, 129, 250]
    assert RequestOptions(budget=96).budget == 96


NO_OPTION = f"is not an option; options are {', '.join(REQUEST_FIELDS)}"
SERVER = parse_server_options({"methods": "quest,full", "budget": 512, "dense_layers": 3})


def test_a_request_changes_what_it_names() -> None:
    asked = parse_request_options({"budget": 0.5, "telemetry": True}, SERVER)
    assert asked == RequestOptions("quest", 0.5, dense_layers=3, telemetry=True)
    assert parse_request_options({}, SERVER) == SERVER.request
    assert parse_request_options({"method": "full"}, SERVER).method == "full"


@pytest.mark.parametrize(
    ("raw", "said"),
    [
        (None, "sparsekv must be an object of options, got None"),
        (["quest"], "sparsekv must be an object of options, got ['quest']"),
        ("x" * 61, "sparsekv must be an object of options, got '" + "x" * 60 + "'... (61 long)"),
        ("x" * 60, "sparsekv must be an object of options, got '" + "x" * 60 + "'"),
        ([0] * 61, "sparsekv must be an object of options, got 'list'... (61 long)"),
        (10**119, "sparsekv must be an object of options, got 1" + "0" * 119),
        (10**130, "sparsekv must be an object of options, got 1" + "0" * 119 + "..."),
        (
            {"bugdet": 1},
            f"sparsekv.bugdet {NO_OPTION}",
        ),
        (
            {"a\nb": 1},
            f"sparsekv.'a\\nb' {NO_OPTION}",
        ),
        ({"unit_size": 16}, f"sparsekv.unit_size {NO_OPTION}"),
        (
            {"method": "oracle"},
            "sparsekv.method must be one of full, quest on this server, got 'oracle'",
        ),
        ({"method": 3}, "sparsekv.method must be one of full, quest on this server, got 3"),
        ({"sink": -1}, "sparsekv.sink must be an integer in [0, 2147483647], got -1"),
    ],
)
def test_a_wrong_request_is_named_with_its_rule(raw: object, said: str) -> None:
    server = parse_server_options({"methods": "full,quest"})
    with pytest.raises(RequestOptionError) as refused:
        parse_request_options(raw, server)
    assert str(refused.value) == said


def test_what_a_server_does_not_share_no_request_may() -> None:
    server = parse_server_options({"share_generated": False})
    assert parse_request_options({"share_generated": False}, server) == server.request
    with pytest.raises(RequestOptionError) as refused:
        parse_request_options({"share_generated": True}, server)
    assert str(refused.value) == (
        "sparsekv.share_generated must be false on a server that was started with it off, got true"
    )
    assert not parse_request_options({"share_generated": False}, SERVER).share_generated


@pytest.mark.parametrize("device", ["cpu", "triton"])
def test_an_estimate_needs_what_it_is_made_of(device):
    server = parse_server_options({"device": device})
    says = "which keeps no clusters: start it with --sparsekv-estimate true"
    with pytest.raises(RequestOptionError, match=f"estimate must be false .* {says}"):
        parse_request_options({"estimate": True}, server)
    assert not parse_request_options({"estimate": False}, server).estimates
    for keeps in ({"estimate": True}, {"methods": ["quest", "residual_pq"]}):
        server = parse_server_options({**keeps, "device": device})
        assert parse_request_options({"estimate": True, "method": "quest"}, server).estimates


def test_a_device_that_serves_whole_steps_holds_what_it_was_started_for() -> None:
    asked, server = {"reselect_every": 2}, parse_server_options({"device": "triton"})
    with pytest.raises(RequestOptionError) as refused:
        parse_request_options(asked, server)
    assert str(refused.value) == (
        "sparsekv.reselect_every must be at most 1 on device triton, as the server was started "
        "with, got 2"
    )
    server = parse_server_options({"device": "triton", "reselect_every": 4, "budget": 1024})
    assert parse_request_options(asked, server).reselect_every == 2
    assert parse_request_options({"budget": 512}, server).reselect_every == 4
    for budget in (2048, 0.5):  # a share may be more tokens, whatever it is
        assert parse_request_options({"budget": budget}, server).reselect_every == 1
        with pytest.raises(RequestOptionError) as refused:
            parse_request_options(asked | {"budget": budget}, server)
        assert str(refused.value) == (
            "sparsekv.reselect_every must be 1 on device triton with a budget that is not within "
            "the server's, 1024, got 2"
        )
    assert parse_request_options(asked | {"budget": 2048}, SERVER).reselect_every == 2
    server = parse_server_options({"device": "triton", "reselect_every": 4, "serve_coverage": True})
    assert parse_request_options({"coverage": 0.9}, server).reselect_every == 1
    with pytest.raises(RequestOptionError, match=r"\.reselect_every must be 1 with a coverage on"):
        parse_request_options(asked | {"coverage": 0.9}, server)
    server = parse_server_options({"device": "triton", "reselect_every": 4, "budget": 0.25})
    assert parse_request_options({"budget": 0.25}, server).reselect_every == 4
    assert parse_request_options({"budget": 0.5}, server).reselect_every == 1
    own = {"budget": 0.5, "reselect_every": 1}
    assert parse_request_options(own, server).reselect_every == 1, "it may say so itself"


@pytest.mark.parametrize(
    ("asked", "rule"),
    [
        ({"coverage": 0.9}, UNTOLD),
        ({"budget_split": "heads"}, SHARED),
    ],
)
def test_what_is_read_depends_on_keys_only_where_the_device_counts_by_head(
    asked: dict[str, Any], rule: str
) -> None:
    assert parse_request_options(asked, SERVER).adaptive
    with pytest.raises(RequestOptionError) as refused:
        parse_request_options(asked, parse_server_options({"device": "triton"}))
    assert str(refused.value) == f"sparsekv.{rule}"
    serving = parse_server_options({"device": "triton", "serve_coverage": True})
    assert parse_request_options({"coverage": 0.9}, serving).coverage == 0.9
    both = {"device": "triton", "serve_coverage": True, "methods": "quest,residual_pq"}
    with pytest.raises(RequestOptionError, match="which ranks tokens of open clusters alone"):
        covered = {"coverage": 0.9, "method": "residual_pq"}
        parse_request_options(covered, parse_server_options(both))
    assert parse_request_options({"reselect_every": 2}, SERVER).reselect_every == 2


def test_a_stock_kernel_has_as_many_dense_layers_as_it_was_given() -> None:
    server = parse_server_options({"attend": "fa2", "dense_layers": 2})
    assert parse_request_options({"dense_layers": 2}, server).dense_layers == 2
    with pytest.raises(RequestOptionError) as refused:
        parse_request_options({"dense_layers": 3}, server)
    assert str(refused.value) == (
        "sparsekv.dense_layers must be at most 2 on a server with attend fa2, got 3"
    )
    assert parse_request_options({"dense_layers": 9}, SERVER).dense_layers == 9


@pytest.mark.parametrize(
    "text", ['{"budget": 512, "method": "full"}', "budget: 512\nmethod: full\n"]
)
def test_a_file_is_json_or_yaml(text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, values = tmp_path / "options", {"budget": 512, "method": "full"}
    path.write_text(text)
    assert read_config_file(str(path)) == values
    for environment, read in ((f" {text} ", values), (f"@{path}", values), ("", {}), ("  ", {})):
        monkeypatch.setenv(ENV_CONFIG, environment)
        assert read_env_config() == read
    monkeypatch.delenv(ENV_CONFIG)
    assert read_env_config() == {}


def test_a_file_that_holds_no_options_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "options"
    with pytest.raises(ConfigError) as refused:
        read_config_file(str(path))
    assert str(refused.value) == f"config file {path}: No such file or directory"
    for text, rule in (
        ("a: [1", "must be JSON or YAML"),
        ("[1, 2]", "must be a mapping of option names to values"),
        ("1: 2", "must be a mapping of option names to values"),
    ):
        path.write_text(text)
        with pytest.raises(ConfigError) as refused:
            read_config_file(str(path))
        assert str(refused.value) == f"config file {path} {rule}"
        monkeypatch.setenv(ENV_CONFIG, text)
        with pytest.raises(ConfigError) as refused:
            read_env_config()
        assert str(refused.value) == f"{ENV_CONFIG} {rule}"


def test_a_page_is_of_a_served_size_that_the_unit_divides() -> None:
    check_page_size(16)
    check_page_size(32, 32)
    check_page_size(64, 32)
    with pytest.raises(ConfigError) as refused:
        check_page_size(1)
    assert str(refused.value) == (
        "--page-size must be one of 16, 32, 64 for the sparsekv backend, got 1; leave "
        "the flag out to get 64"
    )
    with pytest.raises(ConfigError, match=r"got 128 from SGLang .*; add --page-size 64"):
        check_page_size(128, named=False)
    for page, unit in ((16, 32), (32, 64)):
        with pytest.raises(ConfigError) as refused:
            check_page_size(page, unit)
        assert (
            str(refused.value) == f"--sparsekv-unit-size {unit} must divide --page-size, got {page}"
        )


def test_chunks_of_prefill_end_with_a_page() -> None:
    for whole in (None, -1, 0, 64, 128):
        check_chunks(whole, 64)
    for tokens in (1, 100):
        with pytest.raises(ConfigError) as refused:
            check_chunks(tokens, 64)
        assert str(refused.value) == (
            f"--chunked-prefill-size must be a multiple of the page size 64, got {tokens}"
        )
