"""The Grafana dashboard and the alert rules: what they ask of Prometheus, panel by panel."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from .promql import Expression, parse

FOLDER = Path(__file__).parents[2] / "grafana"
DASHBOARD: dict[str, Any] = json.loads((FOLDER / "sparsekv.json").read_text())
ALERTS: dict[str, Any] = yaml.safe_load((FOLDER / "alerts.yml").read_text())
_LABEL_VALUES = re.compile(r"label_values\((.*), (\w+)\)")


def rules() -> list[dict[str, Any]]:
    """Every alert rule."""
    return [rule for group in ALERTS["groups"] for rule in group["rules"]]


def queries() -> Iterator[tuple[str, Expression, str]]:
    """(where, expression, legend) of every panel, every rule and every variable."""
    for panel in DASHBOARD["panels"]:
        for target in panel.get("targets", ()):
            yield panel["title"], parse(target["expr"]), target["legendFormat"]
    for rule in rules():
        texts = " ".join((*rule["annotations"].values(), *rule["labels"].values()))
        yield rule["alert"], parse(rule["expr"]), texts
    for variable in DASHBOARD["templating"]["list"]:
        if variable["type"] == "query":
            match = _LABEL_VALUES.fullmatch(variable["query"]["query"])
            assert match is not None, variable
            yield variable["name"], parse(f"sum by ({match[2]}) ({match[1]})"), ""
