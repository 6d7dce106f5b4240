"""Options that SGLang would drop are refused with the right place named; other keys are not."""

from typing import Any

import pytest

from sgl_sparsekv.errors import RequestOptionError
from sgl_sparsekv.serving.placement import check_native, check_openai, check_other, is_ours

OPTIONS = {"budget": 512}
NATIVE = "sampling_params.custom_params.sparsekv"


@pytest.mark.parametrize(
    ("body", "path"),
    [
        ({"sparsekv": OPTIONS}, "sparsekv"),
        ({"sparse": True}, "sparse"),
        ({"SparseKV": OPTIONS}, "SparseKV"),
        ({"sparsekv_budget": 512}, "sparsekv_budget"),
        ({"custom_params": {"sparsekv": OPTIONS}}, "custom_params.sparsekv"),
        ({"extra_body": {"custom_params": {"sparsekv": {}}}}, "extra_body.custom_params.sparsekv"),
        ({"sampling_params": {"sparsekv": OPTIONS}}, "sampling_params.sparsekv"),
        ({"sampling_params": [{}, {"sparse": 1}]}, "sampling_params[1].sparse"),
        (
            {"sampling_params": {"custom_params": {"budget": 512}}},
            "sampling_params.custom_params.budget",
        ),
        (
            {"sampling_params": {"custom_params": {"sparse": OPTIONS}}},
            "sampling_params.custom_params.sparse",
        ),
    ],
)
def test_native_misplacements(body: dict[str, Any], path: str) -> None:
    with pytest.raises(RequestOptionError) as refused:
        check_native(body)
    assert str(refused.value) == f"{path} would be ignored here; it belongs in {NATIVE}"


@pytest.mark.parametrize(
    ("body", "path"),
    [
        ({"sparsekv": OPTIONS}, "sparsekv"),
        ({"sampling_params": {"custom_params": {"sparsekv": {}}}}, "sampling_params.custom_params"),
        ({"extra_body": {"sparsekv": OPTIONS}}, "extra_body.sparsekv"),
        ({"custom_params": {"method": "quest"}}, "custom_params.method"),
        ({"custom_params": {"sparsekv-budget": 5}}, "custom_params.sparsekv-budget"),
    ],
)
def test_openai_misplacements(body: dict[str, Any], path: str) -> None:
    with pytest.raises(RequestOptionError, match=r"belongs in custom_params\.sparsekv") as refused:
        check_openai(body)
    assert str(refused.value).startswith(path)


@pytest.mark.parametrize(
    "body",
    [
        {"text": "sparsekv sparse budget", "sampling_params": {"temperature": 0}},
        {"sampling_params": {"custom_params": {"sparsekv": OPTIONS}}},
        {"sampling_params": {"custom_params": {"thinking_budget": 9}}},
        {"custom_logit_processor": "x", "sampling_params": {"custom_params": {"budget": 5}}},
        {"sampling_params": [{"custom_params": {"sparsekv": OPTIONS}}, None, 3]},
        {"sampling_params": "wrong", "budget": 5, "method": "x"},
        {"custom_params": ["sparsekv"]},
    ],
)
def test_native_bodies_that_are_none_of_our_business(body: dict[str, Any]) -> None:
    check_native(body)


@pytest.mark.parametrize(
    "body",
    [
        {"messages": [{"role": "user", "content": "sparsekv"}], "tools": [{"sparsekv": 1}]},
        {"custom_params": {"sparsekv": OPTIONS}},
        {"custom_params": {"budget": 3}, "custom_logit_processor": "x"},
        {"metadata": {"sparsekv": "mine"}},
    ],
)
def test_openai_bodies_that_are_none_of_our_business(body: dict[str, Any]) -> None:
    check_openai(body)


def test_routes_without_a_place_say_so() -> None:
    with pytest.raises(RequestOptionError, match="/v1/messages takes no options of ours"):
        check_other({"custom_params": {"sparsekv": OPTIONS}}, "/v1/messages")
    check_other({"custom_params": {"other": 1}}, "/v1/messages")


def test_only_unmistakable_names_are_ours() -> None:
    assert is_ours("sparsekv") and is_ours("Sparse") and is_ours("sparsekv-window")
    for name in ("budget", "sparse_attention", "sparsity", "method", 3, None):
        assert not is_ours(name)
