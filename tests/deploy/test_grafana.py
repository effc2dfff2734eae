"""The Grafana dashboard: its queries are parsed, and ask for nothing but what fingerpost reports, and for all of that."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from fingerpost.observers.metrics import Metrics
from fingerpost.records import Attempt, Decision, Exchange, Usage
from fingerpost.routes import Backend
from fingerpost.server import workers
from fingerpost.upstreams.health import Guard

promql = pytest.importorskip("promql_parser")

ROOT = Path(__file__).parents[2]
DASHBOARD = json.loads((ROOT / "deploy/grafana/fingerpost.json").read_text(encoding="utf-8"))
PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
TARGETS = [
    pytest.param(panel, target, id=f"{panel['title']} {target['refId']}") for panel in PANELS for target in panel["targets"]
]
WIDTH = 24
"""Columns of Grafana's grid."""

JOB = 'job=~"$job"'
"""Narrows a query to the chosen jobs; the label is Prometheus's own, which puts it on all that it scrapes."""


def reported() -> dict[str, set[str]]:
    """The labels of every sample in a report, by the sample's name: of several workers, after all has happened once."""
    backend = Backend("small", "m", "http://localhost/v1")
    decision = Decision("chat", (backend,), "why", "fixed", 1.0, elapsed=0.004)
    attempts = (Attempt("big", None, kind="open"), Attempt("big", None, "broke"), Attempt("small", 200, kind="failover"))
    metrics = Metrics(["chat"])
    metrics.observe(Exchange("a", "completed", 200, False, 1.0, decision, attempts, 0.3, 9, Usage(3, 4), "", "ann", backend))
    metrics.observe(Exchange("b", "rejected", 400, False, 0.1))
    metrics.reloaded(ok=True)
    metrics.renewed(ok=False)
    # What the parent of several workers adds is written in the middle of its work, so its source is asked.
    added = re.findall(r"# TYPE (fingerpost_\w+)", Path(workers.__file__).read_text(encoding="utf-8"))
    assert len(added) == 2
    samples = [
        sample
        for family in text_string_to_metric_families(metrics.render(1, [Guard(backend)]).decode())
        for sample in family.samples
    ]
    return {name: set() for name in added} | {sample.name: set(sample.labels) for sample in samples}


REPORTED = reported()


def parsed(expression: str) -> Any:
    """The query as Grafana sends it."""
    return promql.parse(expression.replace("$__rate_interval", "1m").replace("$__range", "6h"))


def under(expression: Any) -> list[Any]:
    """The expression and all that it is made of."""
    found: list[Any] = []
    promql.walk(expression, found.append)
    return found


def selectors(expression: Any) -> list[Any]:
    """What it asks for: each metric with its matchers."""
    return [node for node in under(expression) if isinstance(node, promql.VectorSelector)]


def sources(value: Any) -> Iterator[Any]:
    """Everything in the dashboard that is said to be a data source."""
    if isinstance(value, dict):
        for key, inner in value.items():
            if key == "datasource":
                yield inner
            yield from sources(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from sources(inner)


def stem(name: str) -> str:
    """The metric that a sample belongs to."""
    return re.sub(r"_(bucket|count|sum)$", "", name)


def test_every_panel_has_a_title_a_description_and_a_unit() -> None:
    assert 12 <= len(PANELS) <= 16
    assert len({panel["title"] for panel in PANELS}) == len(PANELS)
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])
    for panel in PANELS:
        assert panel["title"]
        assert panel["description"]
        assert panel["fieldConfig"]["defaults"]["unit"]


def test_no_panel_lies_on_another() -> None:
    boxes = [panel["gridPos"] for panel in DASHBOARD["panels"]]
    assert all(box["x"] >= 0 and box["w"] > 0 and box["h"] > 0 and box["x"] + box["w"] <= WIDTH for box in boxes)
    for one, other in combinations(boxes, 2):
        beside = one["x"] + one["w"] <= other["x"] or other["x"] + other["w"] <= one["x"]
        above = one["y"] + one["h"] <= other["y"] or other["y"] + other["h"] <= one["y"]
        assert beside or above


def test_it_belongs_to_no_particular_grafana() -> None:
    first, second = DASHBOARD["templating"]["list"]
    assert (first["name"], first["type"], first["query"]) == ("datasource", "datasource", "prometheus")
    assert (second["name"], second["query"]["query"]) == ("job", "label_values(fingerpost_in_flight, job)")
    assert DASHBOARD["id"] is None
    assert "uid" not in DASHBOARD
    found = list(sources(DASHBOARD))
    assert len(found) == 1 + len(PANELS) + len(TARGETS)
    assert all(source == {"type": "prometheus", "uid": "${datasource}"} for source in found)


@pytest.mark.parametrize(("panel", "target"), TARGETS)
def test_every_query_asks_for_what_fingerpost_reports(panel: dict[str, Any], target: dict[str, Any]) -> None:
    found = selectors(parsed(target["expr"]))
    assert found
    assert target["expr"].count(f"{{{JOB}") == len(found)
    for selector in found:
        assert selector.name in REPORTED
        assert {matcher.name for matcher in selector.matchers.matchers} - {"job"} <= REPORTED[selector.name]


@pytest.mark.parametrize(("panel", "target"), TARGETS)
def test_every_query_groups_and_names_by_labels_that_are_there(panel: dict[str, Any], target: dict[str, Any]) -> None:
    groups = [node for node in under(parsed(target["expr"])) if isinstance(node, promql.AggregateExpr)]
    assert groups
    kept = set(groups[0].modifier.labels) if groups[0].modifier else set()
    for group in groups:
        labels = set(group.modifier.labels) if group.modifier else set()
        assert all(labels <= REPORTED[selector.name] for selector in selectors(group))
    named = set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"]))
    assert kept - {"le"} == (named if panel["type"] != "table" else {"key"})
    assert panel["type"] == "table" or target["legendFormat"]


@pytest.mark.parametrize(("panel", "target"), TARGETS)
def test_counters_are_asked_for_their_growth_and_gauges_for_their_value(panel: dict[str, Any], target: dict[str, Any]) -> None:
    growing = re.findall(r"(?:rate|increase)\((\w+)\{", target["expr"])
    asked = [selector.name for selector in selectors(parsed(target["expr"]))]
    assert growing == [name for name in asked if re.search(r"_(total|bucket|count|sum)$", name)]
    assert "[" not in re.sub(r"\[\$__(rate_interval|range)\]", "", target["expr"])


def test_every_metric_is_in_some_panel() -> None:
    asked = {
        stem(selector.name) for panel in PANELS for target in panel["targets"] for selector in selectors(parsed(target["expr"]))
    }
    assert asked == {stem(name) for name in REPORTED}


def test_values_that_matchers_name_are_ones_that_are_reported() -> None:
    source = "".join(
        (ROOT / "src/fingerpost" / file).read_text(encoding="utf-8") for file in ("records.py", "observers/metrics.py")
    )
    values = {
        matcher.value
        for panel in PANELS
        for target in panel["targets"]
        for selector in selectors(parsed(target["expr"]))
        for matcher in selector.matchers.matchers
        if matcher.name != "job"
    }
    assert values == {"failed", "cut", "rejected", "true", "input", "output"}
    assert all(f'"{value}"' in source for value in values)


def test_a_query_that_is_broken_or_asks_for_something_else_would_be_found() -> None:
    with pytest.raises(ValueError, match="unclosed left parenthesis"):
        parsed("sum(rate(fingerpost_requests_total[$__rate_interval])")
    (selector,) = selectors(parsed('sum by (route) (rate(fingerpost_request_total{model="x"}[$__rate_interval]))'))
    assert selector.name not in REPORTED
    assert [matcher.name for matcher in selector.matchers.matchers] == ["model"]
