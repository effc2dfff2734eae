from __future__ import annotations

import pytest
import trustme
from pydantic import BaseModel, TypeAdapter, ValidationError

from fingerpost.config import shape
from fingerpost.config.shape import (
    BY_USE,
    ArchConfig,
    BackendConfig,
    ChainConfig,
    Config,
    EmbeddedConfig,
    FixedConfig,
    ImportedConfig,
    RouteConfig,
    RulesConfig,
    Section,
    kind_of,
    to_backend,
    to_route,
)
from fingerpost.routes import Backend, Breaker, Price, Probe, Route, Timeouts

SECTIONS = [cls for cls in vars(shape).values() if isinstance(cls, type) and issubclass(cls, Section) and cls is not Section]
LEAST = {"backends": [{"name": "a", "model": "m", "url": "http://a"}], "routes": [{"name": "other", "backends": ["a"]}]}


def backend(**fields):
    return BackendConfig.model_validate({"name": "a", "model": "m", "url": "http://a", **fields})


def classifier(value):
    return Config.model_validate({**LEAST, "classifier": value}).classifier


@pytest.mark.parametrize("section", SECTIONS)
def test_every_key_that_holds_a_value_says_what_it_is_for(section):
    for name, field in section.model_fields.items():
        of_sections = isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel)
        assert field.description or of_sections or name == "use"


@pytest.mark.parametrize("section", SECTIONS)
def test_no_section_takes_unknown_keys_or_can_be_changed(section):
    assert section.model_config["extra"] == "forbid"
    assert section.model_config["frozen"]


def test_the_least_configuration_has_all_defaults():
    config = Config.model_validate(LEAST)

    assert (config.classifier, config.rules) == (EmbeddedConfig(use="embedded"), [])
    assert (config.server.host, config.server.port, config.server.max_body) == ("127.0.0.1", 8080, 20_000_000)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("embedded", EmbeddedConfig(use="embedded")),
        ("my.module:build", ImportedConfig(use="my.module:build")),
        ({"use": "embedded", "threshold": 0.5}, EmbeddedConfig(use="embedded", threshold=0.5)),
        ({"use": "arch", "url": "http://x/v1/", "deadline": None}, ArchConfig(use="arch", url="http://x/v1", deadline=None)),
        ({"use": "rules", "rules": [{"route": "a"}]}, RulesConfig(use="rules", rules=[shape.RuleConfig(route="a")])),
        ({"use": "fixed", "route": "a"}, FixedConfig(use="fixed", route="a", confidence=1.0)),
        ({"use": "m:b", "options": {"x": [1, {"y": None}]}}, ImportedConfig(use="m:b", options={"x": [1, {"y": None}]})),
        (
            {"use": "chain", "of": ["embedded", {"use": "chain", "of": ["m:b"]}]},
            ChainConfig(
                use="chain", of=[EmbeddedConfig(use="embedded"), ChainConfig(use="chain", of=[ImportedConfig(use="m:b")])]
            ),
        ),
        (EmbeddedConfig(use="embedded"), EmbeddedConfig(use="embedded")),
    ],
)
def test_every_kind_of_classifier_can_be_written(value, expected):
    assert classifier(value) == expected


@pytest.mark.parametrize(
    "value",
    [None, 5, [], {}, "arch", "rules", "fixed", "chain", "Embedded", "my.module", "my module:build", ":b", "m:", "m:b:c",
     {"use": None}, {"use": ["embedded"]}, {"use": "arch"}, {"use": "fixed"},
     {"use": "rules"}, {"use": "chain", "of": []}, {"use": "chain"},
     {"use": "embedded", "options": {}}, {"use": "m:b", "url": "http://x"}, {"use": "arch", "url": "localhost:8011"},
     {"use": "arch", "url": "http://x", "key": "a\nb"}],
)  # fmt: skip
def test_what_is_no_classifier_is_refused(value):
    with pytest.raises(ValidationError):
        classifier(value)


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        ({"use": "arch"}, "arch"),
        (EmbeddedConfig(use="embedded"), "embedded"),
        ({"use": "x:y"}, "imported"),
        (5, "imported"),
        (None, "imported"),
        ({"use": {}}, "imported"),
    ],
)
def test_the_kind_of_a_classifier_is_its_use(value, kind):
    assert kind_of(value) == kind


def test_every_kind_but_the_imported_is_known_by_its_use():
    members = set(shape.ClassifierConfig.__args__)

    assert set(BY_USE.values()) == members - {ImportedConfig}


@pytest.mark.parametrize(
    ("url", "kept"),
    [
        ("http://localhost:8000", "http://localhost:8000"),
        ("https://api.openai.com/v1/", "https://api.openai.com/v1"),
        (" http://[::1]:8000/v1 ", "http://[::1]:8000/v1"),
        ("https://größe.example/v1", "https://größe.example/v1"),
    ],
)
def test_a_base_url_loses_its_last_slash(url, kept):
    assert backend(url=url).url == kept


@pytest.mark.parametrize(
    "url",
    [
        "",
        "localhost:8000",
        "ftp://a",
        "http://",
        "http:///v1",
        "http://a/v1?x=1",
        "http://a/v1#x",
        "http://a b",
        "http://a\n/v1",
    ],
)
def test_what_is_no_base_url_is_refused(url):
    with pytest.raises(ValidationError, match=r"write one such as https://api\.openai\.com/v1"):
        backend(url=url)


@pytest.mark.parametrize("value", ["a\nb", "a\r\nx-evil: 1", "a\x00b", "a\tb"])
@pytest.mark.parametrize("place", [("key",), ("model",), ("api_version",), ("headers", "value"), ("headers", "name")])
def test_what_goes_into_a_header_cannot_break_out_of_it(place, value):
    fields = {place[0]: value} if place[0] != "headers" else {"headers": {"x": value} if place[1] == "value" else {value: "x"}}

    with pytest.raises(ValidationError, match="line break or another control character"):
        backend(**fields)


def test_spaces_around_a_key_are_cut_off():
    assert backend(key="sk-1\n").key == "sk-1"


@pytest.mark.parametrize(
    ("section", "fields"),
    [
        (shape.PriceConfig, {"input": True}),
        (shape.PriceConfig, {"input": -1}),
        (shape.PriceConfig, {"input": float("nan")}),
        (shape.PriceConfig, {"output": float("inf")}),
        (shape.TimeoutsConfig, {"connect": 0}),
        (shape.TimeoutsConfig, {"total": "soon"}),
        (shape.ServerConfig, {"port": True}),
        (shape.ServerConfig, {"port": 65536}),
        (shape.ServerConfig, {"port": 80.5}),
        (shape.ServerConfig, {"deadline": float("inf")}),
        (shape.ServerConfig, {"retries": -1}),
        (shape.ServerConfig, {"host": 127}),
        (shape.RouteConfig, {"name": "a", "threshold": 1.1}),
        (shape.RouteConfig, {"name": "a", "threshold": False}),
        (shape.RouteConfig, {"name": "a", "examples": "one"}),
        (shape.RouteConfig, {"name": "a", "examples": [1]}),
        (shape.RuleConfig, {"route": "a", "longer_than": True}),
        (shape.RuleConfig, {"route": "a", "longer_than": -1}),
        (shape.RuleConfig, {"route": "a", "keywords": [""]}),
        (shape.RuleConfig, {"route": "a", "metadata": {"a": 1}}),
        (shape.RuleConfig, {"route": "a", "image": "perhaps"}),
        (shape.ArchConfig, {"use": "arch", "url": "http://x", "budget": 1}),
        (shape.ArchConfig, {"use": "arch", "url": "http://x", "deadline": 0}),
        (shape.BackendConfig, {"name": "a", "model": "m", "url": "http://a", "context": True}),
        (shape.BackendConfig, {"name": "a", "model": "m", "url": "http://a", "context": 0}),
        (shape.BackendConfig, {"name": "a", "model": "m", "url": "http://a", "accepts": ["smell"]}),
        (shape.BackendConfig, {"name": "a", "model": "m", "url": "http://a", "auth": "basic"}),
        (shape.BackendConfig, {"name": "a", "model": "m", "url": "http://a", "urls": ["http://b", "b:80"]}),
        (shape.BackendConfig, {"name": "a", "model": "m", "url": "http://a", "concurrency": 0}),
        (shape.BackendConfig, {"name": "a", "model": "m", "url": "http://a", "queue": -1}),
        (shape.BreakerConfig, {"failures": 0}),
        (shape.BreakerConfig, {"rate": 0}),
        (shape.BreakerConfig, {"rate": 1.1}),
        (shape.BreakerConfig, {"pause": True}),
        (shape.HealthConfig, {"path": "models"}),
        (shape.HealthConfig, {"every": 0}),
        (shape.ServerConfig, {"hedge": 0}),
        (shape.RetryBudgetConfig, {"share": -1}),
        (shape.Config, {**LEAST, "backends": []}),
        (shape.Config, {**LEAST, "routes": []}),
    ],
)
def test_a_wrong_value_is_refused(section, fields):
    with pytest.raises(ValidationError) as raised:
        section.model_validate(fields)

    assert raised.value.error_count() == 1


@pytest.mark.parametrize(("field", "value"), [("port", "8080"), ("deadline", "1.5"), ("cache", "0"), ("drain", 0)])
def test_a_number_from_the_environment_is_a_number(field, value):
    assert getattr(shape.ServerConfig.model_validate({field: value}), field) == float(value)


@pytest.mark.parametrize(
    "section",
    [
        backend(key="sk-SECRET", headers={"x": "sk-SECRET"}),
        Config.model_validate({**LEAST, "backends": [{**LEAST["backends"][0], "key": "sk-SECRET"}]}),
        ArchConfig(use="arch", url="http://x", key="sk-SECRET"),
        ImportedConfig(use="m:b", options={"token": "sk-SECRET"}),
    ],
)
def test_secrets_are_not_in_a_sections_repr(section):
    assert "SECRET" not in repr(section)
    assert "SECRET" not in str(section)


@pytest.mark.parametrize(
    "url", ["http://user:pass-SECRET@a/v1", "http://user@a", "http://[::1/v1", "http://a:99999", "http://a:x"]
)
def test_a_url_that_cannot_be_called_is_refused(url):
    with pytest.raises(ValidationError):
        backend(url=url)


def test_a_file_of_authorities_must_be_one(tmp_path):
    path = tmp_path / "ca.pem"
    with pytest.raises(ValidationError, match="cannot be read as a PEM file of certificates"):
        backend(ca=str(path))
    path.write_text("nothing")
    with pytest.raises(ValidationError, match="cannot be read as a PEM file of certificates"):
        backend(ca=str(path))
    trustme.CA().cert_pem.write_to_path(path)
    assert to_backend(backend(ca=str(path))).ca == str(path)
    assert to_backend(backend(ca="")).ca is None


def test_a_backend_is_built_from_all_its_keys():
    section = backend(
        key="k", auth="api-key", api_version="2024-10-21", headers={"a": "b"}, accepts=["text", "image"], context=10,
        price={"input": 1, "output": 2}, timeouts={"connect": 1, "read": 2, "total": 3},
    )  # fmt: skip

    assert to_backend(section) == Backend(
        "a",
        "m",
        "http://a",
        "k",
        "api-key",
        "2024-10-21",
        {"a": "b"},
        frozenset({"text", "image"}),
        10,
        Price(1, 2),
        Timeouts(1, 2, 3),
    )


def test_how_a_backend_is_guarded_becomes_part_of_it():
    built = to_backend(
        backend(
            urls=["http://b/v1/", "http://c"],
            concurrency=3,
            queue=0,
            breaker={"failures": 2},
            health={"path": "/h", "every": 1},
        )
    )
    assert built.urls == ("http://a", "http://b/v1", "http://c")
    assert (built.concurrency, built.queue, built.breaker) == (3, 0, Breaker(failures=2))
    assert built.probe == Probe("/h", every=1.0, timeout=5.0)


def test_the_defaults_of_the_file_are_those_of_the_library():
    assert to_backend(backend()) == Backend("a", "m", "http://a")
    assert to_route(RouteConfig(name="a")) == Route("a")


def test_an_empty_key_is_no_key():
    assert to_backend(backend(key="")).key is None


def test_a_route_is_built_from_all_its_keys():
    section = RouteConfig(name="a", description="A.", examples=["x"], backends=["b", "c"], threshold=0.5)

    assert to_route(section) == Route("a", "A.", ("x",), ("b", "c"), 0.5)


def test_a_classifier_can_be_read_on_its_own():
    assert TypeAdapter(shape.ClassifierConfig).validate_python({"use": "embedded"}) == EmbeddedConfig(use="embedded")
