"""What a GPU server does where the user named no unit."""

from types import SimpleNamespace

import pytest

from sgl_sparsekv.backend.gpu_defaults import UNIT_SIZE, with_gpu_unit


@pytest.mark.parametrize(
    ("named", "page_size", "unit"),
    [
        ({}, None, UNIT_SIZE),
        ({}, 32, UNIT_SIZE),
        ({}, 16, 16),
        ({"unit_size": 16}, None, 16),
        ({"unit_size": 64}, 64, 64),
        ({"device": "triton"}, None, UNIT_SIZE),
        ({"device": "reference"}, None, 16),
        ({"budget": 160}, None, UNIT_SIZE),
        ({"budget": 112}, None, 16),
        ({"budget": 0.1}, None, UNIT_SIZE),
    ],
)
def test_the_unit_is_larger_where_page_and_budget_take_it(
    named: dict[str, object], page_size: int | None, unit: int
) -> None:
    """A budget of 112 has room for sink, window and one more in units of 16, not of 32."""
    assert with_gpu_unit(named, page_size).request.unit_size == unit


def test_options_of_a_server_follow_its_device(
    sglang: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sglang.srt.arg_groups import overrides

    from sgl_sparsekv.backend import flags

    monkeypatch.setattr(flags, "is_chosen", lambda _: True)
    monkeypatch.setattr(overrides, "resolved_view", lambda arguments: arguments)
    for device, unit in (("cuda", UNIT_SIZE), ("cpu", 16)):
        arguments = SimpleNamespace(device=device, page_size=None)
        options = flags.options_of(arguments)
        assert options is not None and options.request.unit_size == unit
