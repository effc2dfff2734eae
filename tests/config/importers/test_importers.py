"""Samples in the peers' formats, written for these tests, become files that `fingerpost check` accepts; no secret is copied."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from fingerpost.config import load
from fingerpost.config.importers import convert
from fingerpost.config.importers.draft import Draft, variable_for
from fingerpost.errors import ConfigError

SAMPLES = Path(__file__).with_name("samples")
KINDS = {
    "litellm.yaml": "litellm",
    "complexity.yaml": "litellm",
    "semantic_router.yaml": "semantic-router",
    "semantic_router_v0.json": "semantic-router",
    "switchyard.toml": "switchyard",
}


def imported(sample: str) -> tuple[dict[str, Any], list[str]]:
    text, notes = convert(KINDS[sample], SAMPLES / sample)
    return yaml.safe_load(text), notes


def by_name(sections: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    return {section["name"]: section for section in sections}


@pytest.fixture
def convert_text(tmp_path: Path):
    def run(kind: str, text: str) -> tuple[dict[str, Any], list[str]]:
        file = tmp_path / ("file.toml" if kind == "switchyard" else "file.yaml")
        file.write_text(text, encoding="utf-8")
        made, notes = convert(kind, file)
        return yaml.safe_load(made), notes

    return run


@pytest.mark.parametrize("sample", KINDS)
def test_what_is_made_is_valid_once_its_variables_are_set(sample: str, tmp_path: Path) -> None:
    text, _ = convert(KINDS[sample], SAMPLES / sample)
    file = tmp_path / "fingerpost.yaml"
    file.write_text(text, encoding="utf-8")
    environ = dict.fromkeys(re.findall(r"\$\{(\w+)\}", text), "http://set")
    assert load(file, environ).config.routes[-1].name == "other"


@pytest.mark.parametrize("sample", KINDS)
def test_no_secret_of_the_source_is_in_the_file_or_in_a_note(sample: str) -> None:
    text, notes = convert(KINDS[sample], SAMPLES / sample)
    assert not re.search(r"secret-|literal-", text + "\n".join(notes))


def test_litellms_models_become_backends() -> None:
    made, notes = imported("litellm.yaml")
    backends = by_name(made["backends"])
    assert list(backends) == ["fast", "strong-1", "strong-2", "own"]
    assert backends["fast"] == {
        "name": "fast", "model": "llama-3.1-8b-instant", "url": "https://api.groq.com/openai/v1", "key": "${GROQ_API_KEY}",
        "context": 131072, "price": {"input": 0.05, "output": 0.08},
    }  # fmt: skip
    assert backends["strong-1"]["accepts"] == ["text", "image", "tools", "json_schema"]
    assert (backends["strong-1"]["key"], backends["strong-1"]["timeouts"]) == ("${STRONG_API_KEY}", {"total": 90})
    azure = {"url": "${AZURE_API_BASE}/openai/deployments/gpt-4o-eu", "auth": "api-key", "api_version": "2024-10-21"}
    assert azure.items() <= backends["strong-2"].items()
    assert backends["strong-2"]["headers"] == {"x-team": "search", "x-auth-token": "${STRONG_X_AUTH_TOKEN_API_KEY}"}
    assert backends["own"] == {"name": "own", "model": "org/model", "url": "http://gpu:8000/v1"}
    assert made["server"] == {"retries": 2}
    for path in ("model_list[0].litellm_params.rpm", "model_list[4]", "model_list[5]", "model_list[6]", "model_list[7]",
                 "model_list[9]", "general_settings", "router_settings.routing_strategy",
                 "litellm_settings.drop_params"):  # fmt: skip
        assert any(note.startswith(f"{path}: ") for note in notes), path


def test_litellms_utterances_become_routes_with_the_fallbacks_of_their_models() -> None:
    made, notes = imported("litellm.yaml")
    routes = by_name(made["routes"])
    assert routes["strong"] == {
        "name": "strong", "backends": ["strong-1", "strong-2"], "description": "Questions about code, in $ {HOME} too.",
        "examples": ["Fix this function", "Why does the loop never end?"],
    }  # fmt: skip
    assert routes["claude"]["backends"] == routes["other"]["backends"] == ["fast", "own"]
    assert routes["fast"]["threshold"] == 1.0
    assert any("send `auto`" in note for note in notes)


def test_a_file_of_routes_beside_litellms_is_read(tmp_path: Path) -> None:
    (tmp_path / "routes.json").write_text('{"routes": [{"name": "m", "utterances": ["Hi"]}]}', encoding="utf-8")
    (tmp_path / "c.yaml").write_text(
        "model_list:\n"
        "- {model_name: m, litellm_params: {model: gpt-4o}}\n"
        "- {model_name: r, litellm_params: {model: auto_router/r, auto_router_config_path: routes.json}}\n",
        encoding="utf-8",
    )
    made = yaml.safe_load(convert("litellm", tmp_path / "c.yaml")[0])
    assert by_name(made["routes"])["m"]["examples"] == ["Hi"]
    assert by_name(made["routes"])["other"]["backends"] == ["m"]


def test_litellms_tiers_become_described_routes_and_its_classifier_a_decision_model() -> None:
    made, notes = imported("complexity.yaml")
    routes = by_name(made["routes"])
    assert list(routes) == ["SIMPLE", "MEDIUM", "COMPLEX", "REASONING", "other"]
    assert all(route.get("description") for name, route in routes.items() if name != "other")
    assert [routes[name]["backends"] for name in ("MEDIUM", "REASONING", "other")] == [["small", "large"], ["large"], ["large"]]
    assert made["rules"] == [{"route": "REASONING", "keywords": ["prove", "theorem"]}]
    assert made["classifier"] == {
        "use": "systemone", "url": "http://localhost:9000", "model": "jev-latest", "key": "${JEV_KEY}", "deadline": 0.5,
    }  # fmt: skip
    assert "key" not in by_name(made["backends"])["large"]
    for part in ("no backend for gone", "no tier NOWHERE", "tier_boundaries", "parameters of its models", "instructions"):
        assert any(part in note for note in notes), part


def test_litellms_own_tiers_and_own_scoring(convert_text) -> None:
    made, notes = convert_text(
        "litellm",
        """
        model_list:
        - {model_name: m, litellm_params: {model: org/m, custom_llm_provider: hosted_vllm, api_base: "http://x/v1"}}
        - model_name: r
          litellm_params:
            model: auto_router/complexity_router
            complexity_router_config:
              default_model: m
              tiers: {quick: m}
              tier_definitions: [{name: quick, description: Quick things.}]
        litellm_settings: {default_fallbacks: [m]}
        """,
    )
    assert by_name(made["routes"])["quick"]["description"] == "Quick things."
    assert made["backends"] == [{"name": "m", "model": "org/m", "url": "http://x/v1"}]
    assert made["classifier"] == "embedded"
    assert any("embedded classifier reads the tiers" in note for note in notes)


def test_semantic_routers_routes_are_carried_with_their_decision_model() -> None:
    made, notes = imported("semantic_router.yaml")
    routes = by_name(made["routes"])
    assert routes["billing"] == {
        "name": "billing", "backends": ["default"], "examples": ["Where is my invoice?", "I was charged twice"],
    }  # fmt: skip
    assert (routes["delivery"]["threshold"], routes["auto_"]["threshold"]) == (0.4, 0.8)
    assert made["classifier"] == {"use": "systemone", "url": "http://127.0.0.1:8080", "model": "fingerpost", "deadline": 5}
    for path in ("backends", "router_type", "routers[0].encoder", "routers[0].confidence_threshold",
                 "routers[0].routes[0].metadata", "routers[0].routes[0].utterances", "routers[1].model.retries",
                 "routers[1].routes[1].name"):  # fmt: skip
        assert any(note.startswith(f"{path}: ") for note in notes), path


def test_semantic_routers_older_files_are_read_too() -> None:
    made, notes = imported("semantic_router_v0.json")
    assert by_name(made["routes"])["politics"]["examples"] == ["isn't politics the best thing ever"]
    assert any(note.startswith("routes[0].score_threshold: ") for note in notes)
    assert not any("function_schemas" in note for note in notes)


def test_a_plain_list_of_routes_and_other_decision_models(convert_text) -> None:
    made, _ = convert_text("semantic-router", "[{name: a, description: A.}]")
    assert by_name(made["routes"])["a"]["description"] == "A."
    made, _ = convert_text("semantic-router", "{router_type: decision, model: {type: typesafe}, routes: [{name: a}]}")
    assert made["classifier"] == {
        "use": "systemone", "url": "https://api.typesafe.ai", "model": "jev-latest", "key": "${JEV_API_KEY}",
    }  # fmt: skip
    made, notes = convert_text("semantic-router", "{router_type: decision, model: {type: gliner2}, routes: []}")
    assert made["classifier"] == "embedded"
    assert any("gliner2" in note for note in notes)
    assert any(note.startswith("routes: ") for note in notes)


def test_switchyards_targets_and_routes() -> None:
    made, notes = imported("switchyard.toml")
    backends, routes = by_name(made["backends"]), by_name(made["routes"])
    assert list(backends) == ["capable", "efficient"]
    assert backends["efficient"] == {
        "name": "efficient", "model": "z-ai/glm-5.2", "url": "https://openrouter.ai/api/v1", "key": "${OPENROUTER_API_KEY}",
        "headers": {"x-title": "agents", "x-api-key": "${OPENROUTER_X_API_KEY}"},
    }  # fmt: skip
    assert list(routes) == ["switchyard", "judged", "cheap", "drawn", "other"]
    assert routes["switchyard"]["backends"] == ["capable", "efficient"]
    assert "threshold" not in routes["switchyard"]
    assert routes["other"]["backends"] == ["efficient", "capable"]
    assert [routes[name]["threshold"] for name in ("judged", "cheap", "drawn")] == [1.0, 1.0, 1.0]
    assert made["server"] == {"retries": 3}
    for path in ("targets.capable.extra_body", "targets.native", "routes.judged", "routes.drawn.weights", "routes.direct",
                 "routes.nothing", "routes.staged.id"):  # fmt: skip
        assert any(note.startswith(f"{path}: ") for note in notes), path


CLIENT = '[llm_clients.c]\nformat = "openai_chat"\nbase_url = "http://x/v1"\n[targets.t]\nid = "m"\nllm_client = "c"\n'


def test_switchyards_capable_first_serves_the_rest_too(convert_text) -> None:
    more = '[targets.u]\nid = "n"\nllm_client = "c"\n[routes.r]\nid = "r"\ntype = "stage_router"\n'
    stage = 'capable_target = "u"\nefficient_target = "t"\npicker = "capable_first"\n'
    made, _ = convert_text("switchyard", CLIENT + more + stage)
    assert by_name(made["routes"])["other"]["backends"] == ["u", "t"]


@pytest.mark.parametrize(
    ("kind", "text", "what"),
    [
        ("litellm", "model_list: 3", "has not the shape"),
        ("litellm", "a: 1", "'model_list' is missing"),
        ("litellm", "model_list: []", "no model here"),
        ("litellm", "- 1", "has not the shape"),
        ("litellm", "a: [", "not YAML"),
        (
            "litellm",
            "model_list: [{model_name: a, litellm_params: {model: m, api_base: nowhere}}]",
            "cannot have this: not an http",
        ),
        ("semantic-router", "3", "has not the shape"),
        ("semantic-router", "{router_type: decision, routes: [{name: a, confidence_threshold: 7}]}", "cannot have this"),
        ("switchyard", "a = [", "not TOML"),
        ("switchyard", "[routes.a]\nid = 'a'\ntype = 'noop'", "no model here"),
        ("switchyard", "[targets.a]\nid = 'a'\nllm_client = 'none'", "'llm_clients' is missing"),
    ],
)
def test_what_cannot_be_imported_is_told(convert_text, kind: str, text: str, what: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(what)) as caught:
        convert_text(kind, text)
    assert "file." in str(caught.value) or what == "no model here"


def test_a_file_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="there is no file"):
        convert("switchyard", tmp_path / "none.toml")


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (None, None),
        ("", None),
        ("os.environ/A_KEY", "${A_KEY}"),
        ("${A_KEY}", "${A_KEY}"),
        ("$A_KEY", "${A_KEY}"),
        ("sk-1", "${MY_MODEL_API_KEY}"),
        ("$1literal", "${MY_MODEL_API_KEY}"),
    ],
)
def test_a_key_is_a_reference_or_becomes_one(value: Any, expected: str | None) -> None:
    draft = Draft()
    assert draft.secret(value, "path", "my model") == expected
    assert bool(draft.notes) == (expected == "${MY_MODEL_API_KEY}")


def test_variables_have_names_that_a_shell_takes() -> None:
    assert variable_for("gpt-4o (eu)") == "GPT_4O_EU_API_KEY"
    assert variable_for("x_api_key") == "X_API_KEY"
    assert variable_for("4o") == "_4O_API_KEY"


def test_names_are_made_fit_and_told() -> None:
    draft = Draft()
    assert [draft.name(name, "p") for name in ("auto", " a\n", "${HOME}", 7, "")] == ["auto_", "a", "$ {HOME}", "7", "unnamed"]
    assert len(draft.notes) >= 4


def test_backends_that_share_a_name_are_numbered() -> None:
    draft = Draft()
    assert [draft.backend("a", {}) for _ in range(3)] == ["a", "a-2", "a-3"]
