"""Keys, permissions and administrators, through real sockets."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

import pytest

from fingerpost.clients.keys import hash_of, new_key
from fingerpost.config.shape import Config
from fingerpost.errors import ConfigError
from fingerpost.server.auth import ADMIN_PATHS, OPEN_PATHS, check_exposure, find_unshared, is_loopback
from fingerpost.server.serve import build_server
from fingerpost.testing import FakeBackend

CHAT = "/v1/chat/completions"
HI = {"model": "auto", "messages": [{"role": "user", "content": "hi"}]}
KEY, NARROW, ADMIN = new_key(), new_key(), new_key()


def bearer(key: str = KEY) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"}


def two_backends(fake: FakeBackend, **narrow: Any) -> dict[str, Any]:
    """Routes chat (b0, b1) and other (b1); KEY may use everything, NARROW what `narrow` says."""
    backends = [{"name": name, "model": f"model-{name}", "url": fake.url, "key": "upstream"} for name in ("b0", "b1")]
    return {
        "backends": backends,
        "routes": [
            {"name": "chat", "description": "Small talk.", "backends": ["b0", "b1"]},
            {"name": "other", "backends": ["b1"]},
        ],
        "keys": [{"name": "wide", "hash": hash_of(KEY)}, {"name": "narrow", "hash": hash_of(NARROW), **narrow}],
    }


def body_for(path: str) -> dict[str, Any]:
    """A request that the door at this path can read."""
    question = {"type": "choice", "instructions": "Which?", "criteria": {"chat": "Small talk.", "sums": "Sums."}}
    bodies = {
        "/v1/systemone": {"model": "auto", "state": "hi", "questions": {"q": question}},
        "/v1/decision": {"input_format": "openai_chat", "request": HI},
    }
    return bodies.get(path, HI)


def code(content: bytes) -> str:
    return str(json.loads(content)["error"]["code"])


def test_with_keys_every_door_but_the_open_ones_asks_for_one(serving: Callable[..., Any], fake: FakeBackend) -> None:
    door = serving(**two_backends(fake))
    guarded = [pair for pair in door.server.config.app._doors if pair[1] not in OPEN_PATHS | ADMIN_PATHS]
    doors = [(method, path) for method, path in guarded if method != "HEAD"]
    assert len(doors) >= 4
    for method, path in doors:
        for headers in ({}, bearer("fp-wrong"), {"api-key": "canary-key"}):
            status, got, content = door.request(method, path, body_for(path) if method == "POST" else None, headers)
            assert (status, code(content)) == (401, "invalid_api_key"), path
            assert got["www-authenticate"] == 'Bearer realm="fingerpost"'
            assert b"canary" not in content
        assert door.request(method, path, body_for(path) if method == "POST" else None, bearer())[0] == 200, path
    assert all(request.headers["authorization"] == "Bearer upstream" for request in fake.requests)
    assert all(door.request("GET", path)[0] == 200 for path in OPEN_PATHS)


def test_every_door_that_decides_holds_to_what_a_key_may_use(serving: Callable[..., Any], fake: FakeBackend) -> None:
    door = serving(**two_backends(fake, backends=["b1"], requests_per_minute=1000))
    for method, path in door.server.config.app._doors:
        if method != "POST":
            continue
        status, headers, _ = door.request("POST", path, body_for(path), bearer(NARROW))
        # Questions about routes of the client's own lead to no backend.
        chosen = None if path == "/v1/systemone" else "b1"
        assert (status, headers.get("x-fingerpost-backend")) == (200, chosen), path
        assert headers["x-ratelimit-limit-requests"] == "1000", path
    assert {exchange.key for exchange in door.told()} == {"narrow"}


@pytest.mark.parametrize("header", ["authorization", "api-key", "x-api-key"])
def test_no_client_key_goes_upstream(serving: Callable[..., Any], fake: FakeBackend, header: str) -> None:
    door = serving(**two_backends(fake))
    assert door.request("POST", CHAT, HI, {header: KEY})[0] == 200
    assert KEY not in str(fake.requests[0].headers)
    assert KEY.encode() not in fake.requests[0].body


def test_a_401_comes_before_the_body_is_read_and_is_told_once(serving: Callable[..., Any], fake: FakeBackend) -> None:
    door = serving(**two_backends(fake), server={"max_body": 10})
    assert door.request("POST", CHAT, b"x" * 100_000)[0] == 401
    (told,) = door.told()
    assert (told.status, told.outcome, told.key) == (401, "rejected", None)
    assert door.request("POST", CHAT, b"x" * 100, bearer())[0] == 413
    assert door.told(2)[1].key == "wide"


def test_the_exchange_and_the_metrics_name_the_client_and_never_its_key(serving: Callable[..., Any], fake: FakeBackend) -> None:
    door = serving(**two_backends(fake), server={"admin": {"hash": hash_of(ADMIN)}})
    assert door.request("POST", CHAT, HI, bearer())[0] == 200
    assert door.request("POST", CHAT, HI, bearer("fp-unknown"))[0] == 401
    assert [told.key for told in door.told(2)] == ["wide", None]
    assert door.told()[0].to_json()["key"] == "wide"
    metrics = door.request("GET", "/metrics", headers=bearer(ADMIN))[2].decode()
    assert 'fingerpost_key_requests_total{key="wide",status="200"} 1.0' in metrics
    assert 'fingerpost_key_tokens_total{direction="input",key="wide"} 7.0' in metrics
    assert 'fingerpost_key_cost_usd_total{key="wide"} 0.0' in metrics
    assert "unknown" not in metrics
    assert KEY not in metrics


# What a key may use


def test_a_named_route_or_backend_beyond_the_key_is_403(serving: Callable[..., Any], fake: FakeBackend) -> None:
    door = serving(**two_backends(fake, routes=["other"]))
    for model in ("chat", "b0"):
        status, _, content = door.request("POST", CHAT, {**HI, "model": model}, bearer(NARROW))
        assert (status, code(content), json.loads(content)["error"]["param"]) == (403, "not_allowed", "model")
        assert door.request("POST", CHAT, {**HI, "model": model}, bearer())[0] == 200
    for model in ("other", "b1", "auto"):
        assert door.request("POST", CHAT, {**HI, "model": model}, bearer(NARROW))[0] == 200
    assert [told.status for told in door.told(7)] == [403, 200, 403, 200, 200, 200, 200]


def test_auto_takes_another_backend_of_the_route_and_else_the_nearest_that_is_allowed(
    serving: Callable[..., Any], fake: FakeBackend
) -> None:
    door = serving(**two_backends(fake, backends=["b1"]))
    _, headers, content = door.request("POST", "/v1/route", HI, bearer(NARROW))
    assert (headers["x-fingerpost-route"], headers["x-fingerpost-backend"]) == ("chat", "b1")
    assert json.loads(content)["constraints"] == [{"backend": "b0", "why": "is not allowed for this key"}]
    door = serving(**two_backends(fake, routes=["other"]))
    _, headers, content = door.request("POST", "/v1/route", HI, bearer(NARROW))
    assert (headers["x-fingerpost-route"], headers["x-fingerpost-backend"]) == ("chat", "b1")
    assert "(the route is not allowed for this key), other's can" in json.loads(content)["reason"]


def test_what_only_a_forbidden_backend_could_serve_is_403_and_what_none_could_422(
    serving: Callable[..., Any], fake: FakeBackend
) -> None:
    sections = two_backends(fake, backends=["b0"])
    sections["backends"][1]["accepts"] = ["text", "image"]
    image = {**HI, "messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://x/y.png"}}]}]}
    door = serving(**sections)
    assert door.request("POST", CHAT, {**HI, "model": "other"}, bearer(NARROW))[0] == 403
    status, _, content = door.request("POST", CHAT, image, bearer(NARROW))
    assert (status, code(content)) == (422, "no_backend_fits")
    assert door.request("POST", CHAT, image, bearer())[0] == 200


def test_verdicts_are_shared_between_clients_and_permissions_are_not(serving: Callable[..., Any], fake: FakeBackend) -> None:
    door = serving(**two_backends(fake, backends=["b1"]))
    answers = [door.request("POST", "/v1/route", HI, bearer(key)) for key in (KEY, NARROW, KEY)]
    assert [json.loads(content)["cached"] for _, _, content in answers] == [False, True, True]
    assert [headers["x-fingerpost-backend"] for _, headers, _ in answers] == ["b0", "b1", "b0"]


@pytest.mark.parametrize("allowed", [{"backends": ["b1"]}, {"routes": ["other"]}])
@pytest.mark.parametrize("model", ["auto", "mine", "b0"])
def test_routes_that_a_request_brings_reach_no_backend_beyond_the_key(
    serving: Callable[..., Any], fake: FakeBackend, allowed: dict[str, list[str]], model: str
) -> None:
    door = serving(**two_backends(fake, **allowed))
    own = {"routes": [{"name": "mine", "backends": ["b0"]}, {"name": "other", "backends": ["b0"]}]}
    status, _, content = door.request("POST", CHAT, {**HI, "model": model, "fingerpost": own}, bearer(NARROW))
    assert (status, code(content)) == (403, "not_allowed")
    own["routes"][0]["backends"] = ["b1"]
    if model != "b0":
        assert door.request("POST", CHAT, {**HI, "model": model, "fingerpost": own}, bearer(NARROW))[0] == 200
    assert {request.json["model"] for request in fake.requests} <= {"model-b1"}


def test_the_models_are_those_that_the_key_may_use(serving: Callable[..., Any], fake: FakeBackend) -> None:
    def models(door: Any, key: str) -> list[str]:
        return [model["id"] for model in json.loads(door.request("GET", "/v1/models", headers=bearer(key))[2])["data"]]

    door = serving(**two_backends(fake, routes=["other"]))
    assert models(door, KEY) == ["auto", "chat", "other", "b0", "b1"]
    assert models(door, NARROW) == ["auto", "other", "b1"]
    content = door.request("POST", CHAT, {**HI, "model": "nothing"}, bearer(NARROW))[2]
    assert json.loads(content)["error"]["message"] == "there is no model 'nothing'; use one of: auto, other, b1"


# Who may listen to whom


@pytest.mark.parametrize(("host", "loopback"), [
    ("127.0.0.1", True), ("127.9.9.9", True), ("::1", True), ("localhost", True), ("LOCALHOST", True),
    ("0.0.0.0", False), ("::", False), ("192.168.1.1", False), ("gateway.internal", False), ("", False),
])  # fmt: skip
def test_only_addresses_of_this_machine_are_loopback(host: str, loopback: bool) -> None:
    assert is_loopback(host) is loopback


def config(**server: Any) -> Config:
    keys = server.pop("keys", [])
    return Config.model_validate({
        "backends": [{"name": "b", "model": "m", "url": "http://localhost"}], "routes": [{"name": "other", "backends": ["b"]}],
        "server": server, "keys": keys,
    })  # fmt: skip


def test_a_server_without_keys_does_not_start_where_others_reach_it() -> None:
    with pytest.raises(
        ConfigError, match=r"server\.host: 0\.0\.0\.0 can be reached by others.*fingerpost keys new.*server\.open"
    ):
        check_exposure(config(host="0.0.0.0"))
    check_exposure(config(host="0.0.0.0", open=True))
    check_exposure(config(host="0.0.0.0", keys=[{"name": "a", "hash": hash_of(KEY)}]))
    check_exposure(config(host="::1"))


def test_the_server_checks_that_itself() -> None:
    from fingerpost.assemble import build_world

    with pytest.raises(ConfigError, match="there are no keys"):
        build_server(build_world(config(host="0.0.0.0").model_copy(update={"classifier": {"use": "fixed"}}), []))


# Administrators


def test_without_keys_on_loopback_metrics_are_there_for_all(door: Any) -> None:
    assert door.request("GET", "/metrics")[0] == 200
    assert "in_flight" in json.loads(door.request("GET", "/readyz")[2])


@pytest.mark.parametrize("sections", [
    {"keys": [{"name": "wide", "hash": hash_of(KEY)}]}, {"server": {"host": "0.0.0.0", "open": True}},
])  # fmt: skip
def test_with_keys_or_beyond_loopback_metrics_are_closed_and_readiness_says_only_that(
    serving: Callable[..., Any], sections: dict[str, Any]
) -> None:
    door = serving(**sections)
    status, _, content = door.request("GET", "/metrics", headers=bearer())
    assert (status, code(content)) == (403, "not_allowed")
    assert "server.admin" in json.loads(content)["error"]["message"]
    assert json.loads(door.request("GET", "/readyz")[2]) == {"status": "ready"}
    assert set(json.loads(door.request("GET", "/health")[2])) == {"status", "version"}


def test_an_admin_key_opens_them_and_no_clients_key_does(serving: Callable[..., Any], fake: FakeBackend) -> None:
    door = serving(**two_backends(fake), server={"admin": {"hash": hash_of(ADMIN)}})
    assert [door.request("GET", "/metrics", headers=h)[0] for h in ({}, bearer(), bearer(ADMIN))] == [401, 401, 200]
    assert json.loads(door.request("GET", "/readyz", headers=bearer())[2]) == {"status": "ready"}
    assert "in_flight" in json.loads(door.request("GET", "/readyz", headers=bearer(ADMIN))[2])
    assert door.request("POST", CHAT, HI, bearer(ADMIN))[0] == 401


@pytest.mark.parametrize(("workers", "key", "limits", "warned"), [
    (2, {"requests_per_minute": 5}, {}, True), (2, {"budget": {"usd": 1}}, {}, True), (2, {}, {}, False),
    (1, {"requests_per_minute": 5}, {}, False), (2, {"tokens_per_minute": 5}, {"redis": "redis://localhost"}, False),
])  # fmt: skip
def test_limits_that_each_worker_counts_for_itself_are_warned_of(workers: int, key: Any, limits: Any, warned: bool) -> None:
    config = Config.model_validate({
        "backends": [{"name": "b", "model": "m", "url": "http://localhost"}], "routes": [{"name": "other", "backends": ["b"]}],
        "server": {"workers": workers}, "limits": limits, "keys": [{"name": "k", "hash": hash_of(new_key()), **key}],
    })  # fmt: skip
    told = [str(problem) for problem in find_unshared(config)]
    assert bool(told) == warned
    assert all(re.search("each of 2 workers .* limits.redis", problem) for problem in told)
