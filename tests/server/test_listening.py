"""Serving over TLS, and administrators on a port of their own."""

from __future__ import annotations

import http.client
import json
import socket
import ssl
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import trustme

from fingerpost.clients.keys import hash_of, new_key
from fingerpost.config.access import TlsConfig
from fingerpost.errors import ConfigError
from fingerpost.server.files import build_tls
from fingerpost.server.serve import serve
from fingerpost.testing import FakeReply

CHAT = "/v1/chat/completions"
HI = {"model": "auto", "messages": [{"role": "user", "content": "hi"}]}
ADMIN = new_key()


def ask(port: int, method: str, path: str, body: Any = None, *, context: ssl.SSLContext | None = None, **headers: str) -> Any:
    host = "127.0.0.1"
    connection = http.client.HTTPSConnection(host, port, timeout=30, context=context) if context else (
        http.client.HTTPConnection(host, port, timeout=30))  # fmt: skip
    with closing(connection) as client:
        client.request(method, path, json.dumps(body) if body else None, headers)
        with client.getresponse() as answer:
            return answer.status, answer.read()


# TLS


def test_a_chat_over_tls_with_a_verified_certificate(
    serving: Callable[..., Any], authority: trustme.CA, tls: dict[str, str], fake: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    context = ssl.create_default_context()
    authority.configure_trust(context)
    fake.default = FakeReply("one two three")
    door = serving(server={"tls": tls})
    assert f"fingerpost listens on https://127.0.0.1:{door.port}\n" in capsys.readouterr().err
    status, content = ask(door.port, "POST", CHAT, {**HI, "stream": True}, context=context)
    assert (status, content.count(b"data: ")) == (200, 6)
    with closing(
        context.wrap_socket(socket.create_connection(("127.0.0.1", door.port)), server_hostname="localhost")
    ) as client:
        assert client.version() in ("TLSv1.2", "TLSv1.3")


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion:DeprecationWarning")
def test_old_versions_and_plain_text_get_nothing(
    serving: Callable[..., Any], authority: trustme.CA, tls: dict[str, str]
) -> None:
    door = serving(server={"tls": tls})
    old = ssl.create_default_context()
    authority.configure_trust(old)
    old.minimum_version, old.maximum_version = ssl.TLSVersion.TLSv1, ssl.TLSVersion.TLSv1_1
    with pytest.raises((ssl.SSLError, ConnectionError)):
        ask(door.port, "GET", "/health", context=old)
    with pytest.raises((http.client.HTTPException, ConnectionError)):
        ask(door.port, "GET", "/health")
    assert build_tls(TlsConfig(**tls)).minimum_version == ssl.TLSVersion.TLSv1_2


def encrypted(key: Path) -> None:
    from cryptography.hazmat.primitives.serialization import (
        BestAvailableEncryption,
        Encoding,
        PrivateFormat,
        load_pem_private_key,
    )

    loaded = load_pem_private_key(key.read_bytes(), None)
    key.write_bytes(loaded.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"canary")))


@pytest.mark.parametrize(("spoil", "said"), [
    (lambda cert, key: cert.unlink(), "server.tls.cert: {cert} cannot be read (No such file or directory)"),
    (lambda cert, key: key.unlink(), "server.tls.key: {key} cannot be read"),
    (lambda cert, key: cert.write_bytes(b"\x30\x82"), "server.tls.cert: {cert} holds no PEM"),
    (lambda cert, key: key.write_text("-----BEGIN PRIVATE KEY-----\ncanary\n-----END PRIVATE KEY-----\n"), "cannot be used ("),
    (lambda cert, key: cert.write_text("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"), "cannot be used ("),
    (lambda cert, key: trustme.CA().issue_cert("x").private_key_pem.write_to_path(key), "{key} does not belong to"),
    (lambda cert, key: encrypted(key), "the key without a password"),
])  # fmt: skip
def test_what_is_wrong_with_a_certificate_is_said_at_the_start(tls: dict[str, str], spoil: Any, said: str) -> None:
    spoil(Path(tls["cert"]), Path(tls["key"]))
    with pytest.raises(ConfigError) as error:
        build_tls(TlsConfig(**tls))
    assert said.format(**tls) in error.value.message
    assert "canary" not in error.value.message


# Administrators


def admin_port(door: Any) -> int:
    return int(door.server.servers[1].sockets[0].getsockname()[1])


def test_administrators_have_a_port_where_there_is_nothing_else(
    serving: Callable[..., Any], capsys: pytest.CaptureFixture[str]
) -> None:
    door = serving(server={"admin": {"port": 0}})
    assert f"its administrators' port on http://127.0.0.1:{admin_port(door)}\n" in capsys.readouterr().err
    assert ask(door.port, "POST", CHAT, HI)[0] == 200
    assert ask(door.port, "GET", "/metrics")[0] == 403
    assert json.loads(ask(door.port, "GET", "/readyz")[1]) == {"status": "ready"}
    status, content = ask(admin_port(door), "GET", "/metrics")
    assert (status, b"fingerpost_requests_total" in content) == (200, True)
    assert "in_flight" in json.loads(ask(admin_port(door), "GET", "/readyz")[1])
    assert ask(admin_port(door), "GET", "/health")[0] == 200
    for method, path in (("POST", CHAT), ("GET", "/v1/models"), ("POST", "/v1/route")):
        assert ask(admin_port(door), method, path, HI if method == "POST" else None)[0] in (404, 405), path


def test_a_port_with_a_key_asks_for_it(serving: Callable[..., Any]) -> None:
    door = serving(server={"admin": {"port": 0, "hash": hash_of(ADMIN)}})
    assert ask(admin_port(door), "GET", "/metrics")[0] == 401
    assert ask(admin_port(door), "GET", "/metrics", authorization=f"Bearer {ADMIN}")[0] == 200
    assert ask(door.port, "GET", "/metrics", authorization=f"Bearer {ADMIN}")[0] == 403


def test_the_port_speaks_tls_when_the_server_does(
    serving: Callable[..., Any], authority: trustme.CA, tls: dict[str, str]
) -> None:
    context = ssl.create_default_context()
    authority.configure_trust(context)
    door = serving(server={"admin": {"port": 0}, "tls": tls})
    assert ask(admin_port(door), "GET", "/metrics", context=context)[0] == 200


def test_it_stops_with_the_server(serving: Callable[..., Any]) -> None:
    door = serving(server={"admin": {"port": 0}})
    port = admin_port(door)
    door.stop()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port))


def test_a_taken_port_is_said_plainly_and_returns_1(capsys: pytest.CaptureFixture[str]) -> None:
    from fingerpost.assemble import build_world
    from fingerpost.config.shape import Config

    with closing(socket.create_server(("127.0.0.1", 0))) as taken:
        port = taken.getsockname()[1]
        config = Config.model_validate({
            "backends": [{"name": "b", "model": "m", "url": "http://localhost"}],
            "routes": [{"name": "other", "backends": ["b"]}], "classifier": {"use": "fixed", "route": "other"},
            "server": {"port": 0, "admin": {"port": port}},
        })  # fmt: skip
        assert serve(build_world(config, [])) == 1
    told = capsys.readouterr().err
    assert f"server.admin: cannot listen on 127.0.0.1:{port}: " in told
    assert "Traceback" not in told
