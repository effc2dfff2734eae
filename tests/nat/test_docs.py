"""docs/nat.md names every field that may be written in a workflow file."""

from __future__ import annotations

from pathlib import Path

import pytest
from nat.plugin_api import EvaluatorBaseConfig, FunctionBaseConfig
from pydantic import BaseModel

from fingerpost.nat import evaluator, settings

DOCUMENT = (Path(__file__).parents[2] / "docs" / "nat.md").read_text(encoding="utf-8")
# NAT's own bases bring fields that NAT documents.
NATS = {*FunctionBaseConfig.model_fields, *EvaluatorBaseConfig.model_fields}
KINDS = [
    settings.InlineRoute, settings.RouterSettings, settings.IntentSettings, settings.CostSettings,
    settings.SfcRouterSettings, settings.HealthSettings, evaluator.AccuracySettings,
]  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "field"), [(kind, field) for kind in KINDS for field in kind.model_fields if field not in NATS]
)
def test_every_field_is_documented_and_described(kind: type[BaseModel], field: str) -> None:
    assert f"`{field}`" in DOCUMENT
    assert kind.model_fields[field].description


@pytest.mark.parametrize("kind", KINDS[1:])
def test_every_component_is_documented(kind: type[FunctionBaseConfig]) -> None:
    assert f"`{kind.static_type()}`" in DOCUMENT
