"""What may be written in a workflow file, and the configuration that it comes to."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from nat.plugins.config_optimizer.optimizable_utils import walk_optimizables
from nat.plugins.config_optimizer.update_helpers import apply_suggestions
from pydantic import ValidationError

from fingerpost.config.shape import ArchConfig, ChainConfig, EmbeddedConfig, FixedConfig
from fingerpost.errors import ConfigError
from fingerpost.nat.settings import CostSettings, IntentSettings, RouterSettings, to_config

ROUTES = [
    {"name": "hard", "description": "Needs careful thought.", "model": "big", "examples": ["Prove it."], "threshold": 0.2},
    {"name": "chat", "description": "Small talk.", "model": "small"},
    {"name": "picture", "description": "About an image.", "model": "eyes", "accepts": ["text", "image"]},
    {"name": "other", "model": "small"},
]


def router(**settings: Any) -> RouterSettings:
    return RouterSettings.model_validate(settings)


def test_without_settings_it_is_the_default_file() -> None:
    config = to_config(router())
    assert [route.name for route in config.routes][-1] == "other"
    assert isinstance(config.classifier, EmbeddedConfig)


def test_inline_routes_bring_their_models() -> None:
    config = to_config(router(routes=ROUTES))
    assert [backend.model for backend in config.backends] == ["big", "small", "eyes"]
    assert {route.name: route.backends for route in config.routes}["picture"] == ["eyes"]
    assert config.routes[0].examples == ["Prove it."]
    assert config.backends[2].accepts == ["text", "image"]


def test_a_default_model_serves_other() -> None:
    config = to_config(router(routes=ROUTES[:3], default_model="tiny"))
    assert (config.routes[-1].name, config.routes[-1].backends) == ("other", ["tiny"])
    replaced = to_config(router(routes=ROUTES, default_model="big"))
    assert (replaced.routes[-1].name, replaced.routes[-1].backends) == ("other", ["big"])


def test_in_a_file_the_default_model_is_tried_first(tmp_path: Path) -> None:
    other = to_config(router(default_model="gpt-5-chat")).routes[-1]
    assert other.backends == ["gpt-5-chat", "nemotron-nano"]
    with pytest.raises(ConfigError, match="default_model: no backend has the model 'nobody'"):
        to_config(router(default_model="nobody"))


def test_a_file_is_read_with_its_classifier(tmp_path: Path) -> None:
    file = tmp_path / "fingerpost.yaml"
    file.write_text(
        "backends: [{name: b, model: m, url: 'http://localhost/v1', key: '${NOT_SET}'}]\n"
        "routes: [{name: chat, description: x, backends: [b]}, {name: other, backends: [b]}]\n"
        "classifier: {use: fixed, route: chat}\nserver: {cache: 3}\n"
    )
    config = to_config(router(file=str(file)))
    assert isinstance(config.classifier, FixedConfig)
    assert config.server.cache == 3
    assert isinstance(to_config(router(file=str(file), classifier="embedded", cache=0)).classifier, EmbeddedConfig)
    assert to_config(router(file=str(file), cache=0)).server.cache == 0


def test_a_key_that_is_twice_in_the_file_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "fingerpost.yaml"
    file.write_text("backends: []\nbackends: []\nroutes: []\n")
    with pytest.raises(ConfigError, match="the key is there twice, first in line 1"):
        to_config(router(file=str(file)))


def test_a_route_that_is_there_twice_is_refused() -> None:
    with pytest.raises(ConfigError, match="'chat' is there twice"):
        to_config(router(routes=[*ROUTES, ROUTES[1]]))


def test_a_threshold_raises_every_route_but_other_and_single_ones_are_as_stated() -> None:
    config = to_config(router(routes=ROUTES, threshold=0.4, thresholds={"chat": 0.1}))
    assert {route.name: route.threshold for route in config.routes} == {"hard": 0.4, "chat": 0.1, "picture": 0.4, "other": 0.0}
    assert to_config(router(routes=ROUTES, threshold=0.1)).routes[0].threshold == 0.2


@pytest.mark.parametrize(("settings", "complaint"), [
    ({"routes": ROUTES[:3]}, "there is no route named other"),
    ({"routes": ROUTES, "thresholds": {"chta": 0.5}}, "thresholds.chta: there is no route 'chta'"),
    ({"routes": ROUTES, "thresholds": {"chat": 1.5}}, "less than or equal to 1"),
    ({"routes": ROUTES, "file": "x.yaml"}, "both file and routes are given"),
    ({"classifier": {"use": "fixed", "route": "nowhere"}}, "there is no route 'nowhere'"),
    ({"classifier": "embeded"}, "no such classifier"),
    ({"file": "missing.yaml"}, "there is no file missing.yaml"),
])  # fmt: skip
def test_what_cannot_be_is_said_plainly(settings: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint):
        to_config(router(**settings))


@pytest.mark.parametrize(
    "settings",
    [{"thresold": 1}, {"threshold": 2}, {"routes": [{"name": "x"}]}, {"routes": [{"name": "x", "model": "m", "z": 1}]}],
)
def test_what_no_setting_is_is_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        router(**settings)


def test_the_intent_function_asks_the_router_model_first_and_the_embedded_one_when_it_fails() -> None:
    settings = IntentSettings.model_validate(
        {"url": "http://vllm:8000", "model": "m", "key": "canary", "deadline": 1.5, "budget": 99}
    )
    classifier = to_config(settings).classifier
    assert isinstance(classifier, ChainConfig)
    arch, embedded = classifier.of
    assert isinstance(arch, ArchConfig)
    assert isinstance(embedded, EmbeddedConfig)
    assert (arch.url, arch.model, arch.key, arch.deadline, arch.budget) == ("http://vllm:8000/v1", "m", "canary", 1.5, 99)
    assert "canary" not in repr(settings)


def test_where_the_router_model_is_may_stand_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ROUTER_MODEL_URL", "http://qwen-router:8000")
    monkeypatch.setenv("ROUTER_MODEL_NAME", "Qwen/Qwen3-1.7B")
    classifier = to_config(IntentSettings()).classifier
    assert isinstance(classifier, ChainConfig)
    arch = classifier.of[0]
    assert isinstance(arch, ArchConfig)
    assert (arch.url, arch.model) == ("http://qwen-router:8000/v1", "Qwen/Qwen3-1.7B")
    stated = to_config(IntentSettings(url="https://host/api/v1/")).classifier
    assert isinstance(stated, ChainConfig)
    assert isinstance(stated.of[0], ArchConfig)
    assert stated.of[0].url == "https://host/api/v1"


def test_without_a_router_model_the_embedded_classifier_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ROUTER_MODEL_URL", raising=False)
    assert isinstance(to_config(IntentSettings()).classifier, EmbeddedConfig)
    assert isinstance(to_config(CostSettings()).classifier, EmbeddedConfig)


@pytest.mark.parametrize("kind", [RouterSettings, IntentSettings, CostSettings])
def test_the_threshold_can_be_optimized_and_the_settings_survive_it(kind: type[Any]) -> None:
    settings = kind.model_validate({"optimizable_params": ["threshold"], "routes": ROUTES})
    space = walk_optimizables(settings)
    assert list(space) == ["threshold"]
    assert len(space["threshold"].to_grid_values()) == 20
    tuned = apply_suggestions(settings, {"threshold": 0.5})
    assert to_config(tuned).routes[0].threshold == 0.5
