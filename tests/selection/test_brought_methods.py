"""Methods that another package brings."""

from importlib.metadata import EntryPoint

import pytest

from sgl_sparsekv.errors import ConfigError
from sgl_sparsekv.selection import registry


def brought(monkeypatch, name, target):
    point = EntryPoint(name, target, registry.ENTRY_POINTS)
    monkeypatch.setattr(registry, "entry_points", lambda group: [point])
    return registry._brought()


def test_a_package_brings_a_method_by_an_entry_point(monkeypatch):
    monkeypatch.syspath_prepend("tests/helpers/random_pages")
    found = registry.entry_points(group=registry.ENTRY_POINTS)
    assert [point.value for point in found if point.name == "random_pages"] == [
        "random_pages:RandomPages"
    ]
    monkeypatch.setattr(registry, "METHODS", {**registry.METHODS, **registry._brought()})
    assert registry.load_method("random_pages").name == "random_pages"
    assert "random_pages" in registry.method_names()


def test_a_built_in_method_is_not_replaced(monkeypatch):
    with pytest.raises(ConfigError, match="quest is built in"):
        brought(monkeypatch, "quest", "elsewhere:Quest")


@pytest.mark.parametrize(
    ("name", "target"),
    [
        ("other", "sgl_sparsekv.selection.quest:Quest"),
        ("path", "pathlib:Path"),
    ],
)
def test_what_is_no_method_of_that_name_is_refused(monkeypatch, name, target):
    monkeypatch.setattr(registry, "METHODS", brought(monkeypatch, name, target))
    with pytest.raises(ConfigError, match=f"name '{name}'"):
        registry.load_method(name)
