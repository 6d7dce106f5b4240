"""Dashboard and alert rules name only series and labels that a server shows, and fit the page."""

import ast
import re
from itertools import combinations
from pathlib import Path

import pytest
from helpers.dashboard import DASHBOARD, queries, rules
from helpers.promql import parse

from sgl_sparsekv.serving.metrics import METRICS

SCRAPED = {"instance", "job"}
"""Labels that Prometheus adds."""
SGLANG_LABELS = {"model_name", "engine_type"}
"""Labels of every series of SGLang's."""
FUNCTIONS = {"sum", "max", "rate", "increase", "histogram_quantile", "vector"}
SUFFIXES = {"Counter": ("",), "Gauge": ("",), "Histogram": ("_bucket", "_sum", "_count")}


def sglang_series() -> dict[str, set[str]]:
    """Labels by name of every series that the installed SGLang defines, read from its source."""
    import sglang

    folder = Path(sglang.__file__).parent / "srt" / "observability"
    found: dict[str, set[str]] = {}
    for path in folder.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            kind = getattr(node.func, "id", "") if isinstance(node, ast.Call) else ""
            if kind not in SUFFIXES:
                continue
            given = {keyword.arg: keyword.value for keyword in node.keywords}
            name = given.get("name")
            if isinstance(name, ast.Constant) and str(name.value).startswith("sglang:"):
                names = ast.walk(given["labelnames"]) if "labelnames" in given else ()
                own = {n.value for n in names if isinstance(n, ast.Constant)}
                for suffix in SUFFIXES[kind]:
                    bucket = {"le"} if suffix == "_bucket" else set()
                    found[f"{name.value}{suffix}"] = {*SGLANG_LABELS, *own, *bucket}
    assert len(found) > 100
    return found


def series() -> dict[str, set[str]]:
    """Labels by name of every series that a scrape can show."""
    ours = {metric.name: {metric.label} - {""} for metric in METRICS}
    return {name: labels | SCRAPED for name, labels in {**sglang_series(), **ours}.items()}


def test_every_expression_names_series_and_labels_that_exist() -> None:
    """In every panel, rule and variable; a legend shows only labels that are left."""
    known, asked = series(), 0
    for where, expression, legend in queries():
        assert expression.metrics, where
        assert expression.metrics <= set(known), (where, expression.metrics - set(known))
        assert expression.functions <= FUNCTIONS, (where, expression.functions)
        common = set.intersection(*(known[name] for name in expression.metrics))
        anywhere = set.union(*(known[name] for name in expression.metrics))
        assert expression.labels <= anywhere, (where, expression.labels)
        shown = set(re.findall(r"\{\{\s*(?:\$labels\.)?(\w+)\s*\}\}", legend))
        aggregated = "by (" in expression.text or "sum(" in expression.text
        assert shown <= (expression.labels if aggregated else common), (where, shown)
        asked += 1
    assert asked > 30


def test_every_metric_of_ours_is_on_the_dashboard() -> None:
    """Whatever is counted can be seen."""
    titles = {panel["title"] for panel in DASHBOARD["panels"]}
    shown = {m for where, e, _ in queries() if where in titles for m in e.metrics}
    assert {metric.name for metric in METRICS} <= shown


def test_panels_have_their_own_id_and_place() -> None:
    """No two overlap, none leaves the 24 columns, every panel has a text and the data source."""
    panels = DASHBOARD["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    places = [panel["gridPos"] for panel in panels]
    for a, b in combinations(places, 2):
        beside = a["x"] + a["w"] <= b["x"] or b["x"] + b["w"] <= a["x"]
        above = a["y"] + a["h"] <= b["y"] or b["y"] + b["h"] <= a["y"]
        assert beside or above, (a, b)
    assert all(place["x"] >= 0 and place["x"] + place["w"] <= 24 for place in places)
    for panel in panels:
        if panel["type"] != "row":
            assert panel["description"] and panel["targets"], panel["title"]
            assert panel["datasource"] == {"type": "prometheus", "uid": "${DS_PROMETHEUS}"}
            references = [target["refId"] for target in panel["targets"]]
            assert len(set(references)) == len(references)


def test_variables_are_defined_and_used() -> None:
    """`$name` in any expression is a variable of the dashboard or one that Grafana has."""
    defined = {variable["name"] for variable in DASHBOARD["templating"]["list"]}
    texts = " ".join(expression.text for _, expression, _ in queries())
    used = set(re.findall(r"\$(\w+)", texts)) | {"DS_PROMETHEUS"}
    assert used - {"__rate_interval"} == defined == {"DS_PROMETHEUS", "model", "instance"}
    assert DASHBOARD["schemaVersion"] >= 39


def test_rules_are_complete() -> None:
    """A name of its own, a severity, a summary and what to do; no variable of the dashboard."""
    names = [rule["alert"] for rule in rules()]
    assert len(set(names)) == len(names) >= 3
    watched = {metric for rule in rules() for metric in parse(rule["expr"]).metrics}
    assert {f"sparsekv:{n}_total" for n in ("stale_units", "rejected_options")} <= watched
    for rule in rules():
        assert set(rule) <= {"alert", "expr", "for", "labels", "annotations"}
        assert rule["labels"]["severity"] in ("warning", "critical")
        assert rule["annotations"]["summary"] and rule["annotations"]["description"]
        assert "$" not in rule["expr"]


@pytest.mark.parametrize(
    ("text", "metrics", "labels"),
    [
        ("a:b", {"a:b"}, set()),
        ('sum by (x, y) (rate(a_total{l=~"by (z)", m!="}"}[5m])) > 0.05', {"a_total"}, set("xylm")),
        ("histogram_quantile(0.5, sum(rate(h_bucket[1h])) by (le)) or vector(0)", {"h_bucket"},
         {"le"}),
        ("a * on (x) group_left (y) b offset 5m", {"a", "b"}, {"x", "y"}),
    ],
)  # fmt: skip
def test_expressions_are_read(text: str, metrics: set[str], labels: set[str]) -> None:
    """The reader of this file's other tests."""
    found = parse(text)
    assert found.metrics == metrics and found.labels == labels


@pytest.mark.parametrize("text", ["sum(a", "a{b='1'", "rate(a[5 apples])", "a)", "a ; b"])
def test_what_is_no_expression_is_refused(text: str) -> None:
    """A typing error is not read as something else."""
    with pytest.raises(ValueError):
        parse(text)
