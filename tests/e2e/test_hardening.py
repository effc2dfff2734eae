"""What strangers may send: requests that two servers read differently, hosts and headers that are not theirs to choose."""

from __future__ import annotations

import gzip
import json
import socket
from contextlib import closing
from typing import Any

import pytest

CHAT, ROUTE = "/v1/chat/completions", "/v1/route"
BODY = b'{"messages":[{"role":"user","content":"hi"}]}'
SIZE = len(BODY)
CHUNKED = b"%x\r\n%b\r\n0\r\n\r\n" % (SIZE, BODY)
SMUGGLED = b"GET /metrics HTTP/1.1\r\nhost: x\r\n\r\n"


def ask(door: Any, request: bytes) -> bytes:
    """All that comes back for these bytes until the server closes the connection."""
    with closing(socket.create_connection(("127.0.0.1", door.port), timeout=30)) as client:
        client.sendall(request)
        received = b""
        try:
            while data := client.recv(65536):
                received += data
        except ConnectionResetError:
            pass
        return received


def head(*lines: bytes, path: str = CHAT, method: str = "POST", version: str = "1.1") -> bytes:
    return b"\r\n".join([f"{method} {path} HTTP/{version}".encode(), b"host: x", *lines, b"", b""])


def status_of(received: bytes) -> int:
    assert received.startswith(b"HTTP/1.1 "), received
    return int(received[9:12])


LENGTH = b"content-length: %d" % SIZE
TE = b"transfer-encoding: chunked"


@pytest.mark.parametrize("request_", [
    head(LENGTH, b"content-length: 5") + BODY,
    head(LENGTH, LENGTH) + BODY,
    head(b"content-length: %d, %d" % (SIZE, SIZE)) + BODY,
    head(b"content-length: +%d" % SIZE) + BODY,
    head(b"content-length: -1") + BODY,
    head(b"content-length: 0x2d") + BODY,
    head(b"content-length: 99999999999999999999999") + BODY,
    head(b"content-length: ") + BODY,
    head(b"content-length : %d" % SIZE) + BODY,
    head(LENGTH, TE) + CHUNKED,
    head(TE, LENGTH) + CHUNKED,
    head(TE, b"content-length: 0") + CHUNKED,
    head(b"transfer-encoding: xchunked") + CHUNKED,
    head(b"transfer-encoding: chunked, identity") + CHUNKED,
    head(b"transfer-encoding: gzip, chunked") + CHUNKED,
    head(b"transfer-encoding: chunked, chunked") + CHUNKED,
    head(b"transfer-encoding: identity", TE) + CHUNKED,
    head(TE, b"transfer-encoding: x") + CHUNKED,
    head(b"transfer-encoding : chunked") + CHUNKED,
    head(b"transfer-encoding:\x0bchunked") + CHUNKED,
    head(b'transfer-encoding: "chunked"') + CHUNKED,
    head(TE, version="1.0") + CHUNKED,
    head(b"x-a: b\r\n c", LENGTH) + BODY,
    head(b"transfer-encoding:\r\n chunked") + CHUNKED,
    head(b" content-length: 3", LENGTH) + BODY,
    head(LENGTH, b"x-a: b\rx-b: c") + BODY,
    head(LENGTH, b"x-a: b\nx-b: c") + BODY,
    head(LENGTH).replace(b"\r\n", b"\n") + BODY,
    head(LENGTH, b"x-a: b\0c") + BODY,
    head(LENGTH, b"x\0a: b") + BODY,
    head(LENGTH, b"x-a: \x01") + BODY,
    head(LENGTH, b"x a: b") + BODY,
    head(LENGTH, b": b") + BODY,
    head(LENGTH, b"no-colon") + BODY,
    head(TE) + b"-1\r\n" + BODY,
    head(TE) + b"0x2d\r\n" + BODY + b"\r\n0\r\n\r\n",
    head(TE) + b"fffffffffffffffff\r\n" + BODY,
    head(TE) + b"%x\n" % SIZE + BODY + b"\r\n0\r\n\r\n",
    head(TE) + b"%x\r\n" % SIZE + BODY + b"XX0\r\n\r\n",
    head(TE) + b" %x\r\n" % SIZE + BODY + b"\r\n0\r\n\r\n",
    b"POST /v1/chat/completions HTTP/1.1 HTTP/1.0\r\nhost: x\r\n\r\n",
    b"POST\t/v1/chat/completions\tHTTP/1.1\r\nhost: x\r\n\r\n",
    b"POST /v1/chat completions HTTP/1.1\r\nhost: x\r\n\r\n",
    b"GET /\xff HTTP/1.1\r\nhost: x\r\n\r\n",
    b"GET /\0 HTTP/1.1\r\nhost: x\r\n\r\n",
    b"GET health HTTP/1.1\r\nhost: x\r\n\r\n",
    b"get /health HTTP/1.1\r\nhost: x\r\n\r\n",
    b"BREW /health HTTP/1.1\r\nhost: x\r\n\r\n",
    b"GET /health HTTP/1.2\r\nhost: x\r\n\r\n",
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
])  # fmt: skip
def test_what_two_servers_could_read_differently_is_400_and_nothing_behind_it_is_read(door: Any, request_: bytes) -> None:
    received = ask(door, request_ + SMUGGLED)
    assert received.count(b"HTTP/1.1 ") == 1
    first, _, body = received.partition(b"\r\n\r\n")
    assert status_of(first) == 400
    assert b"connection: close" in first
    error = json.loads(body)["error"]
    assert (error["code"], error["type"]) == ("invalid_http", "invalid_request_error")
    assert not door.fake.requests


@pytest.mark.parametrize("version", ["2.0", "0.9"])
def test_other_versions_are_505(door: Any, version: str) -> None:
    received = ask(door, head(path="/health", method="GET", version=version) + SMUGGLED)
    assert (status_of(received), received.count(b"HTTP/1.1 ")) == (505, 1)


@pytest.mark.parametrize("request_", [
    head(LENGTH, b"connection: close") + BODY,
    head(TE, b"connection: close") + CHUNKED,
    head(b"Transfer-Encoding: Chunked", b"connection: close") + CHUNKED,
    head(TE, b"connection: close") + b"%x;a=b\r\n%b\r\n0\r\n\r\n" % (SIZE, BODY),
    head(TE, b"connection: close") + b"1\r\n{\r\n%x\r\n%b\r\n0\r\n\r\n" % (SIZE - 1, BODY[1:]),
    b"\r\n" + head(LENGTH, b"connection: close") + BODY,
    head(LENGTH, b"connection: close", path="/v1/chat/completions?a=b") + BODY,
])  # fmt: skip
def test_what_is_well_formed_is_served(door: Any, request_: bytes) -> None:
    assert status_of(ask(door, request_)) == 200
    assert door.fake.requests[0].json["messages"] == json.loads(BODY)["messages"]


def test_trailers_are_no_headers(door: Any) -> None:
    trailers = b"%x\r\n%b\r\n0\r\nuser-agent: late\r\nauthorization: Bearer late\r\n\r\n" % (SIZE, BODY)
    assert status_of(ask(door, head(TE, b"connection: close", b"trailer: user-agent") + trailers)) == 200
    assert "late" not in str(door.fake.requests[0].headers)


@pytest.mark.parametrize(("method", "path", "status"), [
    ("HEAD", "/health", 200), ("OPTIONS", "/health", 405), ("OPTIONS", "*", 404), ("TRACE", CHAT, 405), ("DELETE", CHAT, 405),
    ("PUT", "/nowhere", 404), ("GET", "//elsewhere/health", 404), ("GET", "/v1/../health", 404), ("GET", "/%2e%2e/health", 404),
    ("GET", "/health%00", 404), ("GET", "/health/", 404), ("GET", "/%ff", 404), ("GET", "/a%0d%0ax-injected:%20b", 404),
    ("GET", "/HEALTH", 404), ("GET", "/metrics;x", 404), ("GET", "/health?%00", 200), ("GET", "/%68ealth", 200),
])  # fmt: skip
def test_methods_and_paths_are_taken_as_they_are_and_never_quoted(door: Any, method: str, path: str, status: int) -> None:
    received = ask(door, head(b"connection: close", path=path, method=method))
    assert (status_of(received), received.count(b"HTTP/1.1 ")) == (status, 1)
    assert b"injected" not in received
    assert b"elsewhere" not in received


CHOICES = [
    b"x-forwarded-host: evil.example", b"x-forwarded-for: 1.2.3.4", b"x-forwarded-proto: ftp", b"forwarded: host=evil.example",
    b"x-original-url: /metrics", b"x-rewrite-url: /metrics", b"x-host: evil.example", b"x-http-method-override: DELETE",
    b"proxy-authorization: Basic eDp5", b"x-fingerpost-route: other", b"x-fingerpost-backend: b9", b"openai-organization: evil",
    b"cookie: a=b", b"api-key: evil", b"authorization: Bearer evil", b"x-api-key: evil", b"referer: http://evil.example",
    b"connection: user-agent, content-length, close", b"te: trailers", b"x-portkey-custom-host: http://evil.example",
    b"openai-base-url: http://evil.example", b"via: 1.1 evil",
]  # fmt: skip


@pytest.mark.parametrize("target", [CHAT, f"http://evil.example:99{CHAT}", f"{CHAT}?api-version=evil&url=http://evil.example"])
def test_no_client_chooses_host_path_or_key_of_a_call(door: Any, target: str) -> None:
    lines = [b"host: evil.example", *CHOICES]
    request = b"\r\n".join([f"POST {target} HTTP/1.1".encode(), *lines, LENGTH, b"", b""]) + BODY
    assert status_of(ask(door, request)) == 200
    (got,) = door.fake.requests
    assert (got.method, got.target) == ("POST", "/v1/chat/completions")
    assert got.headers["host"] == f"127.0.0.1:{door.fake.port}"
    assert got.headers["authorization"] == "Bearer key-0"
    assert "evil" not in str(got.headers)
    assert set(got.headers) <= {
        "host", "authorization", "content-type", "content-length", "accept", "accept-encoding", "accept-language", "connection",
        "idempotency-key", "openai-beta", "traceparent", "tracestate", "user-agent", "x-request-id",
    }  # fmt: skip


def test_fields_of_a_body_choose_no_host_either(door: Any) -> None:
    fields = {
        "base_url": "http://evil.example",
        "api_key": "evil",
        "url": "http://evil.example",
        "extra_headers": {"host": "evil"},
    }
    body = json.dumps({**json.loads(BODY), **fields}).encode()
    status, _, _ = door.request("POST", CHAT, body)
    assert status == 200
    assert door.fake.requests[0].headers["host"] == f"127.0.0.1:{door.fake.port}"
    assert "evil" not in str(door.fake.requests[0].headers)


@pytest.mark.parametrize(
    "model", ["http://evil.example/v1", "../../etc/passwd", "b0/../b1", "b0\0", "b0\r\nx-a: b", " b0", "B0"]
)
def test_a_model_is_a_known_name_or_nothing(door: Any, model: str) -> None:
    status, headers, content = door.request("POST", CHAT, {"model": model, "messages": [{"role": "user", "content": "hi"}]})
    assert (status, json.loads(content)["error"]["code"]) == (404, "model_not_found")
    assert "x-a" not in headers
    assert not door.fake.requests


@pytest.mark.parametrize("encoding", [b"gzip", b"GZIP", b"deflate", b"br", b"zstd", b"gzip, identity", b"x"])
def test_a_compressed_body_is_415_before_it_is_read(door: Any, encoding: bytes) -> None:
    bomb = gzip.compress(b"0" * 1_000_000)
    received = ask(door, head(b"connection: close", b"content-encoding: " + encoding, b"content-length: %d" % len(bomb)))
    assert status_of(received) == 415
    assert door.told()[0].status == 415


def test_replies_pass_as_they_are_whatever_they_would_unpack_to(door: Any) -> None:
    from fingerpost.testing import FakeReply

    bomb = gzip.compress(b"0" * 10_000_000)
    start = b"HTTP/1.1 200 X\r\ncontent-encoding: gzip\r\ncontent-length: %d\r\n\r\n" % len(bomb)
    door.fake.script(FakeReply(raw=start + bomb))
    status, _, content = door.request("POST", CHAT, BODY)
    assert (status, content) == (200, bomb)


NESTED = b'{"messages":[{"role":"user","content":"hi"}],"x":' + b"[" * 100_000 + b"]" * 100_000 + b"}"


@pytest.mark.parametrize("body", [
    NESTED, b"[" * 100_000, b'{"a":' * 100_000, b"", b"null", b'"x"', b"[]", b"\xff\xfe{}",
    b'{"messages":[{"role":"user","content":"\xc3("}]}',
    b'{"messages":[{"role":"user","content":"hi"}],"temperature":NaN}', b'{"messages":[]}', b"\x00" * 1000, b"{}" * 1000,
    b'{"messages":[{"role":"user","content":"hi"}],"model":' + b"1" * 5000 + b"}",
])  # fmt: skip
def test_a_body_that_is_no_request_is_400_on_every_door_and_the_server_lives_on(door: Any, body: bytes) -> None:
    for method, path in door.server.config.loaded_app._doors:
        if method == "POST":
            status, _, content = door.request("POST", path, body)
            assert (status, json.loads(content)["error"]["type"]) == (400, "invalid_request_error"), path
    assert door.request("GET", "/health")[0] == 200


def test_twenty_thousand_messages_are_read_or_refused_but_never_fall_over(door: Any) -> None:
    body = json.dumps({"model": "auto", "messages": [{"role": "user", "content": "x"}] * 20_000}).encode()
    assert door.request("POST", ROUTE, body)[0] in (200, 400, 422)
    assert door.request("GET", "/health")[0] == 200


def test_names_of_the_configuration_cannot_break_a_header(door: Any) -> None:
    own = {"routes": [{"name": "a\r\nx-injected: b", "description": "x"}, {"name": "other"}]}
    status, headers, _ = door.request("POST", ROUTE, {**json.loads(BODY), "fingerpost": own})
    assert status == 400
    assert "x-injected" not in headers
