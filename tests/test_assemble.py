from __future__ import annotations

import asyncio
import io
import json
import subprocess
import sys
from pathlib import Path

import pytest

from fingerpost.assemble import (
    DEFAULT_FILE,
    build_classifier,
    build_router,
    build_table,
    build_world,
    conceal_options,
    find_lookalikes,
    load_router,
    pick_classifier,
)
from fingerpost.chat import ChatRequest
from fingerpost.classifiers import ask
from fingerpost.classifiers.arch import Arch
from fingerpost.classifiers.chain import Chain
from fingerpost.classifiers.embedded import Embedded
from fingerpost.classifiers.fixed import Fixed
from fingerpost.classifiers.rules import Rules
from fingerpost.classifiers.systemone import SystemOne
from fingerpost.config import Loaded, load
from fingerpost.config.shape import Config
from fingerpost.errors import ConfigError
from fingerpost.observers.log import JsonLog
from fingerpost.routes import Breaker
from fingerpost.testing import FakeBackend, FakeReply, ScriptedClassifier

BACKEND = {"name": "small", "model": "org/small", "url": "http://localhost:1/v1"}
ROUTES = [
    {"name": "chat", "description": "Small talk.", "examples": ["Hey!"], "backends": ["small"], "threshold": 0.25},
    {"name": "other", "backends": ["small"]},
]
FIXED = {"use": "fixed", "route": "chat"}


def config_of(classifier=FIXED, **sections) -> Config:
    return Config.model_validate({"backends": [BACKEND], "routes": ROUTES, "classifier": classifier, **sections})


def classifier_of(section):
    return build_classifier(config_of(section).classifier)


def conversation(content="Hi", **fields):
    return ChatRequest.from_messages([{"role": "user", "content": content}], **fields).conversation


def test_the_table_has_all_that_the_configuration_says():
    backend = {
        **BACKEND,
        "key": "secret",
        "auth": "api-key",
        "api_version": "2024-10-21",
        "headers": {"x-team": "a"},
        "accepts": ["text", "image"],
        "context": 1000,
        "price": {"input": 1, "output": 2},
        "timeouts": {"connect": 1, "read": 2, "total": 3},
    }
    table = build_table(config_of(backends=[backend]))
    route, small = table.by_name["chat"], table.backends["small"]
    assert (route.description, route.examples, route.backends, route.threshold) == ("Small talk.", ("Hey!",), ("small",), 0.25)
    assert (small.model, small.url, small.key, small.auth) == ("org/small", "http://localhost:1/v1", "secret", "api-key")
    assert (small.api_version, small.headers, small.accepts) == ("2024-10-21", {"x-team": "a"}, {"text", "image"})
    assert (small.context, small.price.output, small.timeouts.read) == (1000, 2, 2)


@pytest.mark.parametrize(
    ("section", "kind"),
    [
        ("embedded", Embedded),
        ({"use": "embedded"}, Embedded),
        ({"use": "arch", "url": "http://localhost:1/v1"}, Arch),
        ({"use": "systemone", "url": "http://localhost:1", "model": "m"}, SystemOne),
        ({"use": "rules", "rules": [{"route": "chat"}]}, Rules),
        (FIXED, Fixed),
        ({"use": "chain", "of": ["embedded", FIXED]}, Chain),
        ("fingerpost.testing:ScriptedClassifier", ScriptedClassifier),
        ({"use": "fingerpost.classifiers.fixed:Fixed", "options": {"route": "chat"}}, Fixed),
    ],
    ids=str,
)
def test_every_kind_of_classifier_can_be_built(section, kind):
    assert type(classifier_of(section)) is kind


def test_a_fixed_classifier_has_its_route_and_confidence():
    fixed = classifier_of({**FIXED, "confidence": 0.5})
    assert (fixed.route, fixed.confidence) == ("chat", 0.5)


async def test_an_arch_classifier_has_its_settings_and_calls_its_server():
    with FakeBackend(FakeReply('{"route": "chat"}')) as fake:
        section = {"use": "arch", "url": fake.url + "/", "model": "org/router", "key": "secret", "deadline": 5, "budget": 64}
        arch = classifier_of(section)
        verdict = await arch.classify(conversation("x" * 10_000), build_table(config_of()))
        await arch.aclose()
    assert arch.deadline == 5
    assert verdict.route == "chat"
    assert "was cut" in verdict.note
    assert fake.requests[0].target == "/v1/chat/completions"
    assert fake.requests[0].headers["authorization"] == "Bearer secret"
    assert fake.requests[0].json["model"] == "org/router"


async def test_a_decision_model_has_its_settings_and_is_asked_at_its_path():
    with FakeBackend(FakeReply(completion={"answers": {"route": {"choice": "chat", "confidence": 1}}})) as fake:
        section = {"use": "systemone", "url": fake.url, "model": "jev-latest", "key": "secret", "deadline": 5, "budget": 64}
        model = classifier_of(section)
        verdict = await model.classify(conversation("x" * 10_000), build_table(config_of()))
        await model.aclose()
    assert model.deadline == 5
    assert verdict.route == "chat"
    assert "was cut" in verdict.note
    (request,) = fake.requests
    assert (request.target, request.json["model"]) == ("/v1/systemone", "jev-latest")
    assert request.headers["authorization"] == "Bearer secret"


async def test_an_arch_server_may_want_no_key():
    with FakeBackend(FakeReply('{"route": "chat"}')) as fake:
        arch = classifier_of({"use": "arch", "url": fake.url, "key": ""})
        await arch.classify(conversation(), build_table(config_of()))
        await arch.aclose()
    assert "authorization" not in fake.requests[0].headers


@pytest.mark.parametrize("bad", [FakeReply(status=500), FakeReply(hang=True)], ids=["fails", "late"])
@pytest.mark.parametrize("use", [{"use": "arch"}, {"use": "systemone", "model": "m"}], ids=str)
async def test_a_classifiers_server_that_keeps_failing_is_left_alone_until_it_is_better(use, bad):
    table = build_table(config_of())
    good = {"choices": [{"message": {"content": "chat"}}], "answers": {"route": {"choice": "chat"}}}
    with FakeBackend(bad) as fake:
        classifier = classifier_of({**use, "url": fake.url, "deadline": 0.1})
        said = [(await ask(classifier, conversation(), table))[1] for _ in range(7)]
        assert len(fake.requests) == 5
        assert all("it keeps failing" in why for why in said[5:])
        fake.default = FakeReply(completion=good)
        await asyncio.sleep(Breaker().pause + 0.1)
        verdict, _ = await ask(classifier, conversation(), table)
        await classifier.aclose()
    assert verdict.route == "chat"
    assert not any("it keeps failing" in why for why in said[:5])


@pytest.mark.parametrize("race", [True, False])
def test_a_chain_races_when_told_to(race):
    assert classifier_of({"use": "chain", "race": race, "of": [FIXED]}).race is race
    assert classifier_of({"use": "chain", "of": [FIXED]}).race is False


def test_a_chain_has_its_links_with_their_thresholds():
    chain = classifier_of({"use": "chain", "of": [{**FIXED, "threshold": 0.75}, {"use": "chain", "of": [FIXED]}]})
    assert [(type(link.classifier), link.threshold) for link in chain.links] == [(Fixed, 0.75), (Chain, 0.0)]


async def test_rules_have_all_their_conditions():
    rule = {"image": False, "keywords": ["hi"], "longer_than": 3, "tools": True, "metadata": {"tier": "gold"}, "route": "chat"}
    rules = classifier_of({"use": "rules", "rules": [rule]})
    fields = {"tools": [{"type": "function", "function": {"name": "f"}}], "metadata": {"tier": "gold"}}
    table = build_table(config_of())
    assert (await rules.classify(conversation("oh hi", **fields), table)).route == "chat"
    assert await rules.classify(conversation("oh hi", **{**fields, "metadata": {}}), table) is None
    assert await rules.classify(conversation("hi", **fields), table) is None


@pytest.mark.parametrize(
    ("use", "why"),
    [
        ("no.such.module:build", "cannot be imported (ModuleNotFoundError"),
        ("fingerpost:no_such_name", "cannot be imported (AttributeError"),
        ("fingerpost.nothing:build", "cannot be imported (ModuleNotFoundError"),
        ("fingerpost:__version__", "built nothing (TypeError"),
        ("fingerpost.classifiers.fixed:Fixed", "built nothing (TypeError"),
        ("builtins:dict", "built no classifier: it has no name, deadline, prepare, classify, aclose"),
        ("types:SimpleNamespace", "built no classifier"),
    ],
)
def test_an_import_string_that_leads_to_no_classifier_is_a_problem(use, why):
    with pytest.raises(ConfigError) as caught:
        classifier_of(use)
    (problem,) = caught.value.problems
    assert str(problem).startswith(f"classifier.use: {use} {why}")
    assert problem.fix


def test_options_that_a_builder_does_not_take_are_a_problem():
    with pytest.raises(ConfigError, match="unexpected keyword argument 'rout'"):
        classifier_of({"use": "fingerpost.classifiers.fixed:Fixed", "options": {"rout": "chat"}})


@pytest.mark.parametrize("code", ["1 / 0", "def", "import no_such_module_at_all", "raise SystemError('x')"])
def test_a_module_that_breaks_when_it_is_imported_is_a_problem(tmp_path, monkeypatch, code):
    (tmp_path / "broken_plugin.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ConfigError, match="broken_plugin:build cannot be imported"):
        classifier_of("broken_plugin:build")


async def test_rules_of_the_configuration_come_before_its_classifier():
    router = build_router(config_of(rules=[{"route": "other", "keywords": ["bye"]}]))
    assert (await router.decide("Hi")).route == "chat"
    decision = await router.decide("Bye")
    assert (decision.route, decision.source) == ("other", "rules")


async def test_conversations_that_differ_in_what_a_rule_looks_at_are_told_apart():
    inner = {"use": "rules", "rules": [{"route": "chat", "metadata": {"tier": "gold"}}]}
    chain = {"use": "chain", "of": [inner, {"use": "fixed", "route": "other"}]}
    router = build_router(config_of(chain, rules=[{"route": "chat", "metadata": {"beta": "1"}}]))

    async def decide(metadata):
        decision = await router.decide({"messages": [{"role": "user", "content": "Hi"}], "metadata": metadata})
        return decision.route, decision.cached

    assert await decide({"x": "1"}) == ("other", False)
    assert await decide({"tier": "gold"}) == ("chat", False)
    assert await decide({"beta": "1"}) == ("chat", False)
    assert await decide({"x": "2"}) == ("other", True)


async def test_the_size_of_the_cache_is_the_configurations():
    router = build_router(config_of(server={"cache": 0}))
    assert [(await router.decide("Hi")).cached for _ in range(2)] == [False, False]


async def test_a_world_has_a_gateway_metrics_and_its_observers():
    log = io.StringIO()
    world = build_world(config_of(), [JsonLog(log)])
    assert world.config.classifier.use == "fixed"
    assert (await world.gateway.router.decide("Hi")).route == "chat"
    assert b"fingerpost_requests" in world.metrics.render()
    assert log.getvalue() == ""


def transports(**backend) -> str:
    world = build_world(config_of(backends=[{**BACKEND, **backend}]), [])
    [upstream] = world.upstreams["small"].upstreams
    return type(upstream).__name__, getattr(upstream, "proxy", None)


@pytest.fixture
def no_proxy_variables(monkeypatch):
    for name in ("http_proxy", "https_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


def test_requests_are_carried_by_our_own_client_unless_it_is_to_be_the_librarys(no_proxy_variables):
    assert transports() == transports(transport="own") == ("Http1Upstream", None)
    assert transports(transport="library") == ("LibraryUpstream", None)


def test_http2_is_spoken_where_a_backend_says_so_and_no_proxy_changes_that(no_proxy_variables, monkeypatch):
    monkeypatch.setenv("HTTPS_PROXY", "http://proxy.example:3128")
    assert transports(transport="http2") == ("Http2Upstream", None)
    assert transports(transport="http2", url="https://api.example/v1") == ("Http2Upstream", None)


def test_without_h2_the_error_says_what_to_install():
    """In an interpreter of its own, which finds no h2."""
    build = (
        "import sys; sys.modules['h2'] = None\n"
        "from fingerpost.assemble import build_world\n"
        "from fingerpost.config.shape import Config\n"
        "from fingerpost.errors import ConfigError\n"
        "backend = {'name': 'small', 'model': 'm', 'url': 'http://localhost/v1', 'transport': sys.argv[1]}\n"
        "routes = [{'name': 'other', 'backends': ['small']}]\n"
        "classifier = {'use': 'fixed', 'route': 'other'}\n"
        "try:\n"
        "    build_world(Config.model_validate({'backends': [backend], 'routes': routes, 'classifier': classifier}), [])\n"
        "except ConfigError as error:\n"
        "    print(*error.problems)\n"
    )
    said = {
        transport: subprocess.run([sys.executable, "-c", build, transport], capture_output=True, text=True, check=True).stdout
        for transport in ("http2", "own")
    }
    problem = "backends[].transport: small: http2 needs the package h2. pip install 'fingerpost[http2]'\n"
    assert said == {"http2": problem, "own": ""}


def test_behind_a_proxy_the_library_carries(no_proxy_variables, monkeypatch):
    monkeypatch.setenv("HTTPS_PROXY", "http://proxy.example:3128")
    monkeypatch.setenv("NO_PROXY", "inner.example,10.0.0.1")
    through = ("LibraryUpstream", "http://proxy.example:3128")
    assert transports(url="https://api.example/v1") == transports(url="https://api.example/v1", transport="library") == through
    assert transports(url="https://api.example/v1", transport="own") == ("Http1Upstream", None)
    for url in ("http://api.example/v1", "https://inner.example/v1", "https://a.inner.example/v1", "https://10.0.0.1/v1"):
        assert transports(url=url) == ("Http1Upstream", None)


def test_a_world_logs_to_standard_output_unless_told_otherwise(capsys):
    assert build_world(config_of()).gateway is not None
    assert capsys.readouterr().out == ""


def pick(name, **sections):
    return pick_classifier(config_of(**sections), name)


def test_without_a_name_the_configurations_classifier_is_picked_with_its_rules():
    assert type(pick(None)) is Fixed
    picked = pick(None, rules=[{"route": "chat"}])
    assert [type(link.classifier) for link in picked.links] == [Rules, Fixed]


def test_without_a_configuration_the_embedded_one_is_picked():
    assert type(pick_classifier(None, None)) is Embedded
    assert type(pick_classifier(None, "embedded")) is Embedded


def test_a_classifier_that_the_configuration_sets_up_is_picked_with_its_settings():
    chain = {"use": "chain", "of": [{"use": "chain", "of": [{**FIXED, "confidence": 0.5}]}, "embedded"]}
    assert pick("fixed", classifier=chain).confidence == 0.5
    assert type(pick("embedded", classifier=chain)) is Embedded
    assert type(pick("chain", classifier=chain)) is Chain
    assert pick("fixed", rules=[{"route": "chat"}]).confidence == 1.0


def test_the_rules_of_a_configuration_can_be_picked_alone():
    assert type(pick("rules", rules=[{"route": "chat"}])) is Rules


def test_an_import_string_is_picked_with_the_options_that_the_configuration_gives_it():
    assert type(pick_classifier(None, "fingerpost.testing:ScriptedClassifier")) is ScriptedClassifier
    section = {"use": "fingerpost.classifiers.fixed:Fixed", "options": {"route": "chat"}}
    assert pick("fingerpost.classifiers.fixed:Fixed", classifier=section).route == "chat"


@pytest.mark.parametrize("name", ["arch", "rules", "fixed", "chain", "embeded", "", "Embedded"])
def test_a_classifier_that_needs_settings_or_does_not_exist_cannot_be_picked(name):
    with pytest.raises(ConfigError, match=f"there is no classifier '{name}' that can be used without settings"):
        pick_classifier(None, name)
    with pytest.raises(ConfigError, match="there is no classifier"):
        pick(name, classifier="embedded")


@pytest.mark.parametrize("name", [":build", "module:", ":", "a:b:c", ".relative:build", "builtins:dict"])
def test_an_import_string_that_makes_no_sense_cannot_be_picked(name):
    with pytest.raises(ConfigError, match=r"classifier\.use"):
        pick_classifier(None, name)


def test_the_default_configuration_has_the_notebooks_routes_word_for_word_and_its_models():
    table = load_router(environ={}).table
    golden = Path(__file__).parent / "classifiers/arch/golden/notebook.json"
    notebook = json.loads(golden.read_text(encoding="utf-8"))["routes"]
    assert [{"name": route.name, "description": route.description} for route in table.described] == notebook
    assert {route.name: table.backends[route.backends[0]].model for route in table.routes} == {
        "other": "nvidia/nvidia-nemotron-nano-9b-v2",
        "chit_chat": "nvidia/nvidia-nemotron-nano-9b-v2",
        "hard_question": "gpt-5-chat",
        "image_understanding": "nvidia/nemotron-nano-12b-v2-vl",
        "image_question": "nvidia/nemotron-nano-12b-v2-vl",
        "try_again": "gpt-5-chat",
    }


async def test_a_router_can_be_loaded_without_the_keys_of_its_backends(tmp_path):
    path = tmp_path / "fingerpost.yaml"
    path.write_text(DEFAULT_FILE.read_text().replace("classifier: embedded", "classifier: {use: fixed, route: chit_chat}"))
    router = load_router(path, environ={})
    assert (await router.decide("Hi")).route == "chit_chat"


def test_a_broken_file_gives_no_router(tmp_path):
    path = tmp_path / "fingerpost.yaml"
    path.write_text("backends: []")
    with pytest.raises(ConfigError, match="routes"):
        load_router(path)
    with pytest.raises(ConfigError, match="there is no file"):
        load_router(tmp_path / "missing.yaml")


ALIKE = [
    {"name": "one", "description": "The user asks for a refund of a purchase.", "backends": ["small"]},
    {"name": "two", "description": "The user asks for a refund of a purchase.", "backends": ["small"]},
    {"name": "other", "backends": ["small"]},
]


def test_routes_that_mean_the_same_to_the_embedded_classifier_are_warned_of():
    chain = {"use": "chain", "of": ["embedded", {"use": "fixed", "route": "one"}]}
    for classifier in ("embedded", chain):
        (problem,) = find_lookalikes(Loaded(config_of(classifier, routes=ALIKE), "fingerpost.yaml"))
        assert problem.warning
        assert str(problem).startswith("fingerpost.yaml: routes: one and two mean nearly the same to the classifier")


def test_the_default_configuration_has_no_routes_that_mean_the_same():
    environ = {"NVIDIA_API_KEY": "x", "OPENAI_API_KEY": "y"}
    assert find_lookalikes(load(Path(DEFAULT_FILE), environ)) == []


def test_routes_are_not_compared_for_a_classifier_that_does_not_embed_them():
    assert find_lookalikes(Loaded(config_of({"use": "fixed", "route": "one"}, routes=ALIKE), "fingerpost.yaml")) == []


ONE = {"name": "small", "model": "m", "url": "http://a"}


def world_of(previous=None, observers=None, **sections):
    config = {
        "backends": [ONE],
        "routes": [{"name": "other", "backends": ["small"]}],
        "classifier": {"use": "fixed", "route": "other"},
    }
    return build_world(Config.model_validate({**config, **sections}), observers, previous)


async def test_a_backend_gets_an_upstream_for_each_url_behind_one_guard():
    world = world_of(backends=[{**ONE, "urls": ["http://b", "http://c"], "concurrency": 5}])
    guarded = world.upstreams["small"]
    assert [upstream.backend.url for upstream in guarded.upstreams] == ["http://a", "http://b", "http://c"]
    assert (guarded.guard, guarded.guard.gate.limit) == (world.guards["small"], 5)
    await world.gateway.aclose()


async def test_a_world_after_another_keeps_what_is_still_true():
    watching = ScriptedObserver()
    first = world_of(observers=[watching])
    await first.gateway.router.decide("hello")
    second = world_of(first, server={"port": 1})
    assert second.metrics is first.metrics
    assert second.upstreams["small"] is first.upstreams["small"]
    assert watching in second.gateway.observers
    assert (await second.gateway.router.decide("hello")).cached
    other_client = world_of(second, backends=[{**ONE, "transport": "library"}]).upstreams["small"]
    assert type(other_client.upstreams[0]).__name__ == "LibraryUpstream"
    third = world_of(second, backends=[{**ONE, "queue": 1}], classifier={"use": "fixed", "route": "other", "confidence": 0.5})
    assert third.guards["small"] is not second.guards["small"]
    assert not (await third.gateway.router.decide("hello")).cached


async def test_verdicts_about_other_routes_are_not_taken_over():
    first = world_of()
    await first.gateway.router.decide("hello")
    routes = [{"name": "other", "backends": ["small"]}, {"name": "new", "description": "x", "backends": ["small"]}]
    assert not (await world_of(first, routes=routes).gateway.router.decide("hello")).cached


async def test_the_retry_budget_and_the_hedge_are_as_configured():
    world = world_of(server={"retry_budget": {"share": 0, "floor": 1}, "hedge": 0.5})
    attempts = world.gateway.attempts
    assert (attempts.hedge, attempts.budget.share, attempts.budget.floor) == (0.5, 0.0, 1.0)


class ScriptedObserver:
    def observe(self, exchange):
        raise NotImplementedError


def test_an_error_of_a_classifier_does_not_quote_the_options_of_any():
    config = config_of(
        {"use": "chain", "of": ["embedded", {"use": "my.module:build", "options": {"deep": [{"key": "k-4711"}]}}]}
    )

    assert conceal_options("no model with k-4711", config) == "no model with (hidden)"
