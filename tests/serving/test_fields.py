"""Every field of a request has a rule, and a value that breaks one is refused by name."""

from dataclasses import fields
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sgl_sparsekv.serving.fields import MOST_SAMPLES, REQUEST, SAMPLING
from sgl_sparsekv.serving.patterns import is_patterns
from sgl_sparsekv.serving.requests import check_request
from sgl_sparsekv.serving.rules import Limits

LIMITS = Limits(1000, 4096, 2, frozenset({"team"}))


def native(**given: Any) -> Any:
    from sglang.srt.managers.io_struct import GenerateReqInput

    if not {"text", "input_ids", "input_embeds"} & set(given):
        given["text"] = "a"
    return GenerateReqInput(**given)


def test_every_field_of_a_request_has_a_rule() -> None:
    """What SGLang adds shows here: give it a rule, or `free` with the reason."""
    from sglang.srt.managers.io_struct import EmbeddingReqInput, GenerateReqInput
    from sglang.srt.sampling.sampling_params import SamplingParams

    assert set(SAMPLING) == set(SamplingParams.__struct_fields__)
    known = {entry.name for cls in (GenerateReqInput, EmbeddingReqInput) for entry in fields(cls)}
    assert set(REQUEST) == known
    assert all(rule.text for rule in (*SAMPLING.values(), *REQUEST.values()))


def test_what_sglang_takes_by_default_passes(manager: Any) -> None:
    from sglang.srt.managers.io_struct import EmbeddingReqInput
    from sglang.srt.sampling.sampling_params import SamplingParams

    defaults = SamplingParams()
    params = {name: getattr(defaults, name) for name in SamplingParams.__struct_fields__}
    del params["stop_strs"], params["stop_regex_strs"]
    check_request(manager, native(sampling_params=params))
    check_request(manager, native(sampling_params=None))
    check_request(manager, EmbeddingReqInput(text="a"))


def test_none_is_as_good_as_nothing(manager: Any) -> None:
    """SGLang's own clients name fields that they do not set."""
    from sglang.srt.managers.io_struct import GenerateReqInput

    names = {entry.name for entry in fields(GenerateReqInput)} - {"text"}
    check_request(manager, native(**dict.fromkeys(names)))


SAMPLING_BAD = [
    ("top_k", 2**40), ("top_k", 0), ("top_k", True), ("top_k", 1.0), ("n", 5_000_000), ("n", 0),
    ("n", None), ("n", "2"), ("logit_bias", {"5": 1e39}), ("logit_bias", {"5": None}),
    ("logit_bias", {"5": "x"}), ("logit_bias", {"5": -1e39}), ("logit_bias", {"5": float("nan")}),
    ("logit_bias", {"1000": 1.0}), ("logit_bias", {"-1": 1.0}), ("logit_bias", {"x": 1.0}),
    ("logit_bias", [5]), ("temperature", float("nan")), ("temperature", 1e39), ("temperature", "1"),
    ("temperature", -1), ("top_p", 0), ("top_p", 1e-320), ("min_p", 2), ("repetition_penalty", 0),
    ("repetition_penalty", 1e-45), ("frequency_penalty", float("inf")), ("presence_penalty", 3),
    ("max_new_tokens", -1), ("max_new_tokens", 2**31), ("max_new_tokens", 1.5),
    ("min_new_tokens", 2**63), ("sampling_seed", 2**63), ("sampling_seed", 0.5), ("stop", [1]),
    ("stop", "x" * 5000), ("stop", ["x"] * 33), ("stop", "\ud800"), ("stop_token_ids", [1000]),
    ("stop_token_ids", [None]), ("stop_regex", "("), ("stop_regex", "(a+)+$"),
    ("stop_regex", "a*a*a*b"), ("stop_regex", "a" * 300), ("ignore_eos", 1), ("beam_width", 2),
    ("stream_interval", 0), ("regex", "a" * 70_000), ("json_schema", {}),
    ("json_schema", '{"anyOf":' * 129 + "1" + "}" * 129),
    ("ebnf", "root ::= " + "(" * 200), ("custom_params", [1]),
    ("watermark", {"context_window": 2**70}), ("is_normalized", True), ("stop_str_max_len", 5),
    ("stop_strs", ["x"]), ("unknown", 1), ("seed", 1),
]  # fmt: skip


@pytest.mark.parametrize(("name", "value"), SAMPLING_BAD)
def test_bad_sampling_parameters(manager: Any, name: str, value: Any) -> None:
    with pytest.raises(ValueError) as refused:
        check_request(manager, native(sampling_params={name: value}))
    _is_one_short_line(str(refused.value), name)
    good = {"max_new_tokens": 1}
    with pytest.raises(ValueError, match="request 1 of the batch"):
        check_request(manager, native(text=["a"] * 2, sampling_params=[good, {name: value}]))


FIELDS_BAD: list[tuple[str, Any]] = [
    ("rid", ["x", "y"]), ("rid", ["x"]), ("rid", 5), ("rid", "\ud800"), ("rid", "x" * 600),
    ("logprob_start_len", -2), ("logprob_start_len", 2**40), ("logprob_start_len", [0]),
    ("top_logprobs_num", 10**6), ("token_ids_logprob", [1000]), ("token_ids_logprob", [None]),
    ("return_logprob", [True]), ("return_logprob", 1), ("input_embeds", [[0.5]]),
    ("input_embeds", [[0.5, float("nan")]]), ("input_embeds", []), ("priority", 2**31),
    ("session_params", {"id": 5}), ("session_params", {"offset": "x"}), ("session_params", [1]),
    ("lora_path", [None]), ("lora_id", "x"), ("bootstrap_port", 70_000), ("bootstrap_room", -1),
    ("routed_dp_rank", -1), ("return_hidden_states", "all"), ("return_hidden_states", 1),
    ("positional_embed_overrides", {"a": 1}), ("positional_embed_overrides", [1]),
    ("custom_labels", {"other": "x"}), ("received_time", float("nan")),
    ("multi_item_delimiter_indices", [5000]), ("token_indices_to_pool", ["x"]),
    ("http_worker_ipc", "ipc://x"), ("num_items_assigned", {"a": 1}), ("max_dynamic_patch", 9999),
    ("sampling_params", "x"), ("sampling_params", []), ("sampling_params", [{}]),
    ("sampling_params", [1]), ("extra_key", 5), ("sampling_logprobs_mode", "other"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "value"), FIELDS_BAD)
def test_bad_fields(manager: Any, name: str, value: Any) -> None:
    # Given alone, embeddings are the prompt.
    with pytest.raises(ValueError) as refused:
        check_request(manager, native(**{name: value}))
    _is_one_short_line(str(refused.value), name)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("rid", ["x"]),
        ("return_logprob", [True] * 3),
        ("logprob_start_len", [0]),
        ("video_data", [None]),
        ("token_ids_logprob", [[1]]),
        ("custom_logit_processor", ["x"]),
        ("sampling_params", [{}]),
    ],
)
def test_lists_that_do_not_fit_their_batch(manager: Any, name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=name):
        check_request(manager, native(text=["a", "b"], **{name: value}))


@pytest.mark.parametrize("prompts", [{"text": []}, {"text": {}}, {"input_ids": [[1], 2]}])
def test_batches_that_are_none(manager: Any, prompts: Any) -> None:
    with pytest.raises(ValueError):
        check_request(manager, native(**prompts))


GOOD: list[dict[str, Any]] = [
    {"sampling_params": {"top_k": -1, "n": MOST_SAMPLES, "stop": ["a", "b"], "stop_regex": "a+ b"}},
    {"sampling_params": {"logit_bias": {"5": -100, "999": 1e9}, "temperature": 0, "top_p": 1}},
    {"sampling_params": {"stop_token_ids": [999], "max_new_tokens": None, "sampling_seed": -1}},
    {"rid": "x", "return_logprob": True, "top_logprobs_num": 5, "token_ids_logprob": [1, 2]},
    {"text": ["a", "b"], "rid": ["x", "y"], "return_logprob": True, "token_ids_logprob": [1, 2]},
    {"text": ["a", "b"], "rid": "x", "token_ids_logprob": [[1], [2]], "lora_path": [None, "x"]},
    {"text": ["a", "b"], "sampling_params": [{}, {"n": 1}], "logprob_start_len": [0, -1]},
    {"input_ids": [], "session_params": {"id": "x"}},
    {"session_params": {"id": "x", "rid": None, "offset": 3, "replace": True}},
    {"image_data": ["x", "y"], "priority": -5, "extra_key": "k", "stream": True},
    {"token_indices_to_pool": [1, 2], "return_hidden_states": "last"},
]


@pytest.mark.parametrize("given_fields", GOOD)
def test_what_clients_send_passes(manager: Any, given_fields: dict[str, Any]) -> None:
    check_request(manager, native(**given_fields))


def test_samples_of_many_prompts(manager: Any) -> None:
    check_request(manager, native(text=["a"] * 5000))
    with pytest.raises(ValueError, match="n must be at most 65 for 1000 prompts, got 1024"):
        check_request(manager, native(text=["a"] * 1000, sampling_params={"n": 1024}))


@pytest.mark.parametrize(
    ("pattern", "harmless"),
    [
        (r"\d+\.\d+", True),
        ("(yes|no){1,3}", True),
        ("end$", True),
        ([r"a+", "b*?"], True),
        ("(a*)*", False),
        ("(?:a|b+)+", False),
        ("(?=a+)(b*c)*", False),
        (".*a.*b.*", False),
        ("[", False),
        (["a"] * 33, False),
        (5, False),
    ],
)
def test_patterns_that_backtrack_without_end(pattern: Any, harmless: bool) -> None:
    assert is_patterns(pattern) is harmless


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=99),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=9), inner),
    max_leaves=9,
)


@settings(max_examples=300, deadline=None)
@given(st.sampled_from([*SAMPLING.items(), *REQUEST.items()]), ANYTHING)
def test_every_rule_answers_with_one_short_line(rule: Any, value: Any) -> None:
    name, made = rule
    try:
        made.check(name, value, LIMITS)
    except ValueError as error:
        _is_one_short_line(str(error), name)


def _is_one_short_line(message: str, name: str) -> None:
    assert name in message and len(message) < 900 and len(message.splitlines()) == 1
    message.encode()  # half of a surrogate pair could not be sent
