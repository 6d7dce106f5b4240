"""What is wrong in a request is refused with its name, rule and value; all else passes."""

from dataclasses import fields
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sgl_sparsekv.config import (
    REQUEST_FIELDS,
    RequestOptions,
    ServerOptions,
    parse_request_options,
)
from sgl_sparsekv.errors import RequestOptionError
from sgl_sparsekv.serving import requests
from sgl_sparsekv.serving.front_end import ATTRIBUTE, FrontEnd
from sgl_sparsekv.serving.metrics import ServingMetrics
from sgl_sparsekv.serving.prompts import check_token_ids
from sgl_sparsekv.serving.requests import (
    check_custom_params,
    check_options,
    check_request,
    check_score,
    check_tokenized,
)
from sgl_sparsekv.serving.rules import Limits

VOCAB = 1000  # as the fixture has it
LIMITS = Limits(VOCAB, 4096, 8)


def request(**given: Any) -> Any:
    """A native request as it comes in, before SGLang normalises it."""
    from sglang.srt.managers.io_struct import GenerateReqInput

    if not {"text", "input_ids", "input_embeds"} & set(given):
        given["text"] = "a"
    return GenerateReqInput(**given)


def sampling(**params: Any) -> Any:
    return request(sampling_params=params)


def asking(options: object) -> Any:
    return sampling(custom_params={"sparsekv": options})


def manager_of(front_end: FrontEnd) -> SimpleNamespace:
    return SimpleNamespace(**{ATTRIBUTE: front_end})


GOOD: list[dict[str, Any]] = [
    *({}, {"budget": 512}, {"budget": 0.1}, {"method": "full"}, {"sink": 0, "window": 0}),
    *({"telemetry": True}, {"telemetry": False}, {"share_generated": False}),
]
BAD = [
    ({"budget": "512"}, "budget", "'512'"),
    ({"budget": 0}, "budget", "0"),
    ({"budget": 1.5}, "budget", "1.5"),
    ({"budget": True}, "budget", "True"),
    ({"budget": 5}, "budget", "5"),
    ({"budget": 2**40}, "budget", str(2**40)),
    ({"method": "nope"}, "method", "'nope'"),
    ({"method": "mean_std"}, "method", "on this server"),
    ({"method": ["quest"]}, "method", "['quest']"),
    ({"coverage": 1.0}, "coverage", "1.0"),
    ({"coverage": 0.9, "method": "streaming"}, "coverage", "streaming"),
    ({"budget_split": None}, "budget_split", "None"),
    ({"sink": -1}, "sink", "-1"),
    ({"window": 1.5}, "window", "1.5"),
    ({"dense_layers": None}, "dense_layers", "None"),
    ({"reselect_every": 0}, "reselect_every", "0"),
    ({"telemetry": 1}, "telemetry", "1"),
    ({"telemetry": "true"}, "telemetry", "'true'"),
    ({"telemetry": None}, "telemetry", "None"),
    ({"share_generated": "no"}, "share_generated", "'no'"),
    ({"bugdet": 5}, "bugdet", "is not an option"),
    ({"ⓑudget": 5}, "ⓑudget", "is not an option"),
    ("quest", "sparsekv", "'quest'"),
    ([], "sparsekv", "[]"),
    (None, "sparsekv", "None"),
]


@pytest.mark.parametrize("options", GOOD)
def test_good_options_pass(manager: Any, front_end: FrontEnd, options: dict[str, Any]) -> None:
    check_request(manager, asking(options))
    assert front_end.metrics.snapshot()["rejected_options_total"] == {}


@pytest.mark.parametrize(("options", "name", "value"), BAD)
def test_bad_options_name_field_and_value(
    manager: Any, front_end: FrontEnd, options: object, name: str, value: str
) -> None:
    with pytest.raises(RequestOptionError) as refused:
        check_request(manager, asking(options))
    assert name in str(refused.value) and value in str(refused.value)
    assert sum(front_end.metrics.snapshot()["rejected_options_total"].values()) == 1


def test_without_our_backend_nothing_is_refused() -> None:
    stock = SimpleNamespace()
    check_request(stock, asking("nonsense"))
    check_request(stock, request(input_ids=[-1]))
    check_tokenized(None, stock, request(), [])


def test_other_custom_params_are_left_alone(front_end: FrontEnd) -> None:
    for params in (None, {}, {"thinking_budget": 3}, ["anything"], "text"):
        check_custom_params(params, front_end.options)


def test_a_batch_names_the_item(manager: Any, front_end: FrontEnd) -> None:
    good: dict[str, Any] = {"custom_params": {"sparsekv": {"budget": 512}}}
    bad: dict[str, Any] = {"custom_params": {"sparsekv": {"budget": -3}}}
    with pytest.raises(RequestOptionError, match=r"request 2 of the batch: sparsekv\.budget .*-3"):
        check_request(manager, request(text=["a"] * 3, sampling_params=[good, good, bad]))
    assert front_end.metrics.snapshot()["rejected_options_total"] == {"budget": 1}


@pytest.mark.parametrize(
    ("ids", "complaint"),
    [
        ([1, 2, -3], r"input_ids\[2\] must be a token id in \[0, 1000\), got -3"),
        ([1000], r"input_ids\[0\] .* got 1000"),
        ([5, 2**63], r"input_ids\[1\] .* got 9223372036854775808"),
        ([5, -(2**70)], r"input_ids\[1\]"),
        ([5, "6"], r"input_ids\[1\] .* got '6'"),
        ([5, 1.5], r"input_ids\[1\] .* got 1.5"),
        ([[1, 2], [3, 4, 1000]], r"input_ids\[1\]\[2\] .* got 1000"),
    ],
)
def test_token_ids_outside_the_vocabulary(
    manager: Any, front_end: FrontEnd, ids: list[Any], complaint: str
) -> None:
    with pytest.raises(ValueError, match=complaint):
        check_request(manager, request(input_ids=ids))
    assert front_end.metrics.snapshot()["rejected_options_total"] == {"input_ids": 1}


@pytest.mark.parametrize("ids", [[], [[]], [0, 999], [[0], [999, 5]]])
def test_token_ids_inside_the_vocabulary(manager: Any, ids: Any) -> None:
    check_request(manager, request(input_ids=ids))


def test_placeholders_beside_media_of_a_multimodal_model_are_left_alone() -> None:
    seeing = manager_of(FrontEnd(ServerOptions(), LIMITS, ServingMetrics(), multimodal=True))
    check_request(seeing, request(input_ids=[-200], image_data="x"))
    check_request(seeing, request(input_ids=[[-200], [5]], image_data=[["x"], None]))
    with pytest.raises(ValueError, match=r"input_ids\[1\]\[0\]"):
        check_request(seeing, request(input_ids=[[5], [-200]], image_data=[["x"], None]))


@pytest.mark.parametrize("image_data", ["x", ["x", "y"], [None, None]])
def test_media_hide_nothing_from_a_text_model(manager: Any, image_data: Any) -> None:
    with pytest.raises(ValueError, match=r"input_ids\[1\]\[1\]"):
        check_request(manager, request(input_ids=[[5], [5, -200]], image_data=image_data))


def test_nothing_but_our_options_is_looked_at_when_switched_off() -> None:
    options = ServerOptions(validate_requests=False)
    off = manager_of(FrontEnd(options, LIMITS, ServingMetrics()))
    check_request(off, request(input_ids=[-1], sampling_params={"stop_token_ids": [-1]}))
    check_tokenized(None, off, request(), [])
    with pytest.raises(RequestOptionError):
        check_request(off, asking({"budget": 0}))


@pytest.mark.parametrize("tokens", [{-1}, [1000], {5, 2000}])
def test_stop_tokens_outside_the_vocabulary(manager: Any, tokens: Any) -> None:
    with pytest.raises(ValueError, match=r"stop_token_ids must be token ids in \[0, 1000\)"):
        check_request(manager, sampling(stop_token_ids=tokens))


def test_a_prompt_without_tokens(manager: Any, front_end: FrontEnd) -> None:
    with pytest.raises(ValueError, match="prompt must have at least one token"):
        check_tokenized(None, manager, request(), [])
    assert front_end.metrics.snapshot()["rejected_options_total"] == {"prompt": 1}
    check_tokenized(None, manager, request(), [5])
    check_tokenized(None, manager, request(input_embeds=[[0.5]]), [])
    check_tokenized(None, manager, request(), None)


def test_positions_outside_the_prompt(manager: Any) -> None:
    check_tokenized(None, manager, request(token_indices_to_pool=[0, 2]), [5, 6, 7])
    with pytest.raises(ValueError, match=r"token_indices_to_pool must be positions .* got 3"):
        check_tokenized(None, manager, request(token_indices_to_pool=[0, 3]), [5, 6, 7])


def test_positions_that_are_told_are_those_of_the_prompt(manager: Any, front_end: FrontEnd) -> None:
    """The first one that lies outside, with the prompt's length."""
    with pytest.raises(ValueError) as refused:
        check_tokenized(None, manager, request(multi_item_delimiter_indices=[1, 3, 4]), [5, 6, 7])
    assert str(refused.value) == (
        "multi_item_delimiter_indices must be positions in the prompt, below 3, got 3"
    )
    counted = front_end.metrics.snapshot()["rejected_options_total"]
    assert counted == {"multi_item_delimiter_indices": 1}


@pytest.mark.parametrize(
    ("more", "multimodal", "passes"),
    [
        ({}, False, False), ({"image_data": "x"}, True, True), ({"image_data": "x"}, False, False),
        ({"session_params": {"id": "s"}}, False, True), ({"session_params": None}, False, False),
        ({"audio_data": "x"}, True, True), ({}, True, False),
    ],
)  # fmt: skip
def test_a_prompt_may_lack_tokens_where_something_else_brings_them(
    more: dict[str, Any], multimodal: bool, passes: bool
) -> None:
    """Media of a model that sees them, or earlier turns of a session."""
    chosen = FrontEnd(ServerOptions(), LIMITS, ServingMetrics(), multimodal=multimodal)
    if passes:
        check_tokenized(None, manager_of(chosen), request(**more), [])
        return
    with pytest.raises(ValueError) as refused:
        check_tokenized(None, manager_of(chosen), request(**more), [])
    assert str(refused.value) == "prompt must have at least one token, got none"


def scoring(**options: Any) -> tuple[SimpleNamespace, FrontEnd]:
    """A server whose embeddings have 4 channels."""
    chosen = FrontEnd(ServerOptions(**options), Limits(VOCAB, 4096, 4), ServingMetrics())
    return manager_of(chosen), chosen


def test_embeddings_of_a_score_are_rows_of_the_models_size() -> None:
    """Those of the query are one list, those of the items a list each; either may be missing."""
    server, chosen = scoring()
    row, narrow, broken = torch.ones(4), torch.ones(2, 3), torch.tensor([[1, 2, torch.nan, 4]])
    for query, items in ((None, None), ([], []), ([row], None), ([row], [None, [row, row]])):
        check_score(server, query_embed_overrides=query, item_embed_overrides=items)
    cases: list[tuple[Any, Any, str, str]] = [
        ([row, narrow], None, "query_embed_overrides", "[2, 3]"),
        ([row], [None, [row, broken]], "item_embed_overrides", "[1, 4]"),
        (None, [[narrow]], "item_embed_overrides", "[2, 3]"),
    ]
    for query, items, name, shape in cases:
        with pytest.raises(ValueError) as refused:
            check_score(server, "text", query_embed_overrides=query, item_embed_overrides=items)
        assert (
            str(refused.value)
            == f"{name} must be rows of 4 finite numbers, got one of shape {shape}"
        )
    assert sum(chosen.metrics.snapshot()["rejected_options_total"].values()) == 3


def test_a_score_is_not_looked_at_where_nobody_asked_for_it() -> None:
    wrong: Any = [torch.ones(3)]
    check_score(scoring(validate_requests=False)[0], query_embed_overrides=wrong)
    check_score(SimpleNamespace(), query_embed_overrides=wrong)


def test_one_text_has_one_list_of_ids_beside_it(manager: Any) -> None:
    for turn in (None, {"id": "s"}):
        with pytest.raises(ValueError, match="input_ids must be one list of ids beside one text"):
            check_request(manager, request(text="a", input_ids=[[]], session_params=turn))
    check_request(manager, request(text="a", input_ids=[5]))


def test_what_a_kind_of_request_has_no_field_for_is_not_asked_for(manager: Any) -> None:
    """Embeddings have no sessions and no positions; what is None is left to SGLang."""
    from sglang.srt.managers.io_struct import EmbeddingReqInput

    check_request(manager, EmbeddingReqInput(text="a", rid="x"))
    check_request(manager, EmbeddingReqInput(text=["a", "b"], rid=["x", "y"]))
    with pytest.raises(ValueError, match="rid must be a list, one for each prompt, got 'x'"):
        check_request(manager, EmbeddingReqInput(text=["a", "b"], rid="x"))
    check_request(manager, request(stream=None, return_logprob=None))
    seeing = manager_of(FrontEnd(ServerOptions(), LIMITS, ServingMetrics(), multimodal=True))
    for server in (manager, seeing):
        check_tokenized(None, server, SimpleNamespace(), [5])
        with pytest.raises(ValueError, match="at least one token"):
            check_tokenized(None, server, SimpleNamespace(), [])


@pytest.mark.parametrize(
    ("params", "told"),
    [
        ({"top_k": "5"}, r"top_k must be .*, got '5'"),
        ({"topk": 5}, r"sampling_params\.'topk' is not a parameter"),
        ("greedy", r"sampling_params must be an object, got 'greedy'"),
        ([{}], r"sampling_params must be an object, got a list of 1"),
    ],
)
def test_parameters_of_one_request_are_an_object_of_known_names(
    manager: Any, params: Any, told: str
) -> None:
    with pytest.raises(ValueError, match=f"^{told}$"):
        check_request(manager, request(sampling_params=params))


@pytest.mark.parametrize(
    ("params", "told"),
    [
        ([{}], r"sampling_params must be an object, or a list of 2, got a list of 1"),
        ([{}, {"top_k": "5"}], r"request 1 of the batch: top_k must be .*, got '5'"),
        ([{"topk": 5}, {}], r"request 0 of the batch: sampling_params\.'topk' is not a parameter"),
        ([{}, 5], r"sampling_params must be an object, got 5"),
        ({"top_k": "5"}, r"top_k must be .*, got '5'"),
    ],
)
def test_parameters_of_a_batch_are_one_object_or_one_for_each(
    manager: Any, params: Any, told: str
) -> None:
    with pytest.raises(ValueError, match=f"^{told}$"):
        check_request(manager, request(text=["a", "b"], sampling_params=params))


def test_parameters_that_a_batch_shares_are_checked_once(
    front_end: FrontEnd, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SGLang repeats one dict for every item."""
    one, two, seen = {"custom_params": 1}, {"custom_params": 2}, []
    with monkeypatch.context() as patch:
        patch.setattr(requests, "check_custom_params", lambda found, _: seen.append(found))
        check_options([one, two, one, two, one], front_end.options)
    assert seen == [1, 2]
    shared: dict[str, Any] = {"custom_params": {"sparsekv": {"budget": -3}}}
    with pytest.raises(RequestOptionError, match=r"^request 0 of the batch: sparsekv\.budget"):
        check_options((shared, shared), front_end.options)
    with pytest.raises(RequestOptionError, match=r"^sparsekv\.budget"):
        check_options(shared, front_end.options)
    for params in (None, "text", [None, 5, {}], [{"custom_params": None}]):
        check_options(params, front_end.options)


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"rid": ["r"]}, r"rid must have one entry per prompt \(2\), got 1"),
        ({"image_data": ["x"]}, r"image_data must have one entry per prompt \(2\), got 1"),
        ({"logprob_start_len": [0, "1"]}, r"logprob_start_len\[1\] must be .*, got '1'"),
        ({"token_ids_logprob": [[5], [-1]]}, r"token_ids_logprob\[1\] must be .*"),
        ({"token_ids_logprob": [[5]]}, r"token_ids_logprob must have one entry per prompt .*"),
        ({"token_ids_logprob": [5, -1]}, r"token_ids_logprob must be .*"),
        ({"return_logprob": "yes"}, r"return_logprob must be .*, got 'yes'"),
    ],
)
def test_a_field_of_a_batch_has_an_entry_for_each_prompt_or_one_for_all(
    manager: Any, given: dict[str, Any], told: str
) -> None:
    with pytest.raises(ValueError, match=f"^{told}$"):
        check_request(manager, request(text=["a", "b"], **given))


@pytest.mark.parametrize(
    "given",
    [
        {"rid": ["r", "s"]}, {"image_data": ["x", None]}, {"image_data": []},
        {"logprob_start_len": [0, 1]}, {"logprob_start_len": 1}, {"token_ids_logprob": [5, 6]},
        {"token_ids_logprob": [[5], None]}, {"token_ids_logprob": []}, {"return_logprob": True},
    ],
)  # fmt: skip
def test_fields_of_a_batch_that_are_right_pass(manager: Any, given: dict[str, Any]) -> None:
    check_request(manager, request(text=["a", "b"], **given))


@pytest.mark.parametrize("number", [-1, VOCAB + 1, 10**9, [0, VOCAB + 1]])
def test_more_log_probabilities_than_tokens(manager: Any, number: Any) -> None:
    text = ["a", "b"] if isinstance(number, list) else "a"
    with pytest.raises(ValueError, match=r"top_logprobs_num\S* must be an integer in \[0, 1000\]"):
        check_request(manager, request(text=text, top_logprobs_num=number))
    check_request(manager, request(text=["a"] * 3, top_logprobs_num=[0, 5, VOCAB]))


JUNK = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=200),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=20), inner),
    max_leaves=12,
)
OPTIONS = st.dictionaries(st.sampled_from(REQUEST_FIELDS) | st.text(max_size=20), JUNK, max_size=5)


def test_a_server_that_shares_nothing_generated_lets_no_request_share() -> None:
    """Else one client could undo for all what the server promises."""
    server = ServerOptions(request=RequestOptions(share_generated=False))
    for options in ({}, {"share_generated": False}, {"method": "full"}):
        assert not parse_request_options(options, server).share_generated
    with pytest.raises(RequestOptionError, match="share_generated must be false on a server"):
        parse_request_options({"share_generated": True}, server)


@settings(max_examples=400, deadline=None)
@given(JUNK | OPTIONS)
def test_anything_is_served_or_refused_in_one_short_line(options: object) -> None:
    server = ServerOptions()
    try:
        check_options([{"custom_params": {"sparsekv": options}}], server)
    except RequestOptionError as error:
        text = str(error)
        assert text.startswith("request 0 of the batch: sparsekv") and len(text) < 600
        assert len(text.splitlines()) == 1
    else:
        assert isinstance(options, dict)
        assert set(options) <= {field.name for field in fields(RequestOptions)}


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(-(2**65), 2**65) | st.integers(0, VOCAB - 1), min_size=1, max_size=50))
def test_the_first_bad_token_is_named(ids: list[int]) -> None:
    chosen = FrontEnd(ServerOptions(), LIMITS, ServingMetrics())
    bad = [position for position, value in enumerate(ids) if not 0 <= value < VOCAB]
    if not bad:
        check_token_ids("input_ids", ids, chosen)
        return
    with pytest.raises(ValueError) as refused:
        check_token_ids("input_ids", ids, chosen)
    assert str(refused.value).startswith(f"input_ids[{bad[0]}] ")


@pytest.mark.parametrize("rid", [None, "x", ["x", "y"], [{}]])
def test_a_refused_request_has_nothing_that_runs(manager: Any, rid: Any) -> None:
    refused = request(rid=rid, sampling_params={"top_k": 0})
    with pytest.raises(ValueError, match=r"rid|top_k"):
        check_request(manager, refused)
    assert refused.is_single and refused.rid is None


@pytest.mark.parametrize(("rid", "single"), [(None, True), ("x", True), (["x"], False)])
def test_a_request_that_sglang_may_refuse_has_one_name_or_many(
    manager: Any, rid: Any, single: bool
) -> None:
    taken = request(text="a" if single else ["a"], rid=rid)
    check_request(manager, taken)
    assert (taken.is_single, taken.rid) == (single, rid)


def test_beams_are_refused_with_the_cure(manager: Any) -> None:
    with pytest.raises(ValueError, match=r"beam_width must be 1 .*take n samples.*, got 4"):
        check_request(manager, sampling(beam_width=4))
    check_request(manager, sampling(beam_width=1))
