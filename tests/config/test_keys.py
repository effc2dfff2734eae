"""Client keys in the configuration: what is wrong with them is said, and what they hold is not."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from fingerpost import config
from fingerpost.assemble import build_keys, build_table, build_world
from fingerpost.clients.keys import hash_of, new_key
from fingerpost.clients.local import Local
from fingerpost.errors import ConfigError

KEY = new_key()
HASH = hash_of(KEY)
START = """
backends: [{name: a, model: m, url: "http://a"}, {name: b, model: m, url: "http://b"}]
routes: [{name: chat, backends: [a]}, {name: other, backends: [b]}]
classifier: {use: fixed, route: chat}
"""


def loaded(tmp_path: Path, text: str) -> config.Loaded:
    file = tmp_path / "fingerpost.yaml"
    file.write_text(START + text, encoding="utf-8")
    return config.load(file, {})


@pytest.mark.parametrize(("text", "message"), [
    (f"keys: [{{name: x, hash: {KEY}}}]", "keys[0].hash: not the hash of a key"),
    ("keys: [{name: x, hash: sha256:12}]", "`fingerpost keys new` prints a key and its hash"),
    ("keys: [{name: x}]", "keys[0].hash: this key is required"),
    (f"keys: [{{name: x, hash: {HASH}, routes: []}}]", "keys[0].routes"),
    (f"keys: [{{name: x, hash: {HASH}, routes: [chta]}}]", "keys[0].routes[0]: there is no route 'chta'. Use one of: chat"),
    (f"keys: [{{name: x, hash: {HASH}, backends: [c]}}]", "keys[0].backends[0]: there is no backend 'c'. Use one of: a, b"),
    (f"keys: [{{name: x, hash: {HASH}, routes: [chat], backends: [b]}}]", "keys[0]: no route that this key may use has"),
    (f"keys: [{{name: x, hash: {HASH}}}, {{name: x, hash: {hash_of('y')}}}]", "keys[1].name: keys[0] has the same name"),
    (f"keys: [{{name: x, hash: {HASH}}}, {{name: y, hash: {HASH}}}]", "keys[1].hash: keys[0] has the same hash"),
    (f'keys: [{{name: "a\\nb", hash: {HASH}}}]', "keys[0].name: this cannot be a name"),
    (f"keys: [{{name: x, hash: {HASH}, budget: {{usd: 0}}}}]", "keys[0].budget.usd"),
    (f"keys: [{{name: x, hash: {HASH}, requests_per_minute: 0}}]", "keys[0].requests_per_minute"),
    ("keys: [5]", "keys[0]: this should be a mapping"),
    ("limits: {redis: 'http://user:canary@x'}", "limits.redis: not the URL of a Redis"),
    (f"server: {{admin: {{hash: {KEY}}}}}", "server.admin.hash: not the hash of a key"),
])  # fmt: skip
def test_what_is_wrong_is_said_without_a_key(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError) as error:
        loaded(tmp_path, text)
    assert message in error.value.message
    assert KEY not in error.value.message
    assert "canary" not in error.value.message


def test_a_client_that_is_kept_to_routes_is_kept_to_their_backends(tmp_path: Path) -> None:
    of = loaded(tmp_path, f"keys: [{{name: x, hash: {HASH}, routes: [chat], budget: {{usd: 5, per: day}}}}]").config
    keys = build_keys(of, build_table(of))
    assert keys is not None
    client = keys.find([(b"api-key", KEY.encode())])
    assert (client.access.routes, client.access.backends) == ({"chat"}, {"a"})
    assert (client.limits.usd, client.limits.per, client.limits.requests) == (5.0, "day", None)


def test_a_world_takes_over_the_ledger_of_the_one_before_unless_limits_differ(tmp_path: Path) -> None:
    first = build_world(loaded(tmp_path, "").config, [])
    again = build_world(loaded(tmp_path, f"keys: [{{name: x, hash: {HASH}}}]").config, [], previous=first)
    other = build_world(loaded(tmp_path, "limits: {when_down: allow}").config, [], previous=first)
    assert again.ledger is first.ledger
    assert isinstance(other.ledger, Local)
    assert other.ledger is not first.ledger
    assert (first.keys, again.keys is None) == (None, False)


def test_the_hash_is_in_no_representation(tmp_path: Path) -> None:
    of = loaded(tmp_path, f"keys: [{{name: x, hash: {HASH}}}]\nlimits: {{redis: 'redis://:canary@x'}}").config
    assert HASH not in repr(of)
    assert "canary" not in repr(of)


def test_without_the_package_for_redis_it_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    of = loaded(tmp_path, "limits: {redis: 'redis://:canary@x'}").config
    monkeypatch.setitem(sys.modules, "fingerpost.clients.shared", None)
    with pytest.raises(ConfigError, match=r"limits\.redis: this needs the package redis. pip install 'fingerpost\[redis\]'"):
        build_world(of, [])


def test_an_address_that_the_package_cannot_read_is_an_error_that_does_not_quote_it(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"limits\.redis: not the URL of a Redis") as error:
        build_world(loaded(tmp_path, "limits: {redis: 'redis://:canary@x:port/0'}").config, [])
    assert "canary" not in error.value.message
