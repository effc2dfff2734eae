"""The HTTP door, through real sockets."""

from __future__ import annotations

import asyncio
import gzip
import json
import re
import socket
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from fingerpost.assemble import build_world
from fingerpost.config.shape import Config
from fingerpost.server.app import App
from fingerpost.server.request import Request
from fingerpost.testing import FakeBackend, FakeReply, ScriptedClassifier

Until = Callable[[Callable[[], object]], None]
CHAT = "/v1/chat/completions"
HI = {"model": "auto", "messages": [{"role": "user", "content": "hi"}]}
STREAM = {**HI, "stream": True}
IMAGE = {**HI, "messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://x/y.png"}}]}]}
SLOW = FakeReply("word " * 200, pause=0.02)


@contextmanager
def connected(door: Any) -> Iterator[socket.socket]:
    with closing(socket.create_connection(("127.0.0.1", door.port), timeout=30)) as client:
        yield client


def http(method: str, path: str, body: bytes = b"", *lines: str) -> bytes:
    head = [f"{method} {path} HTTP/1.1", "host: gateway", *lines]
    if body and not any(line.startswith("transfer-encoding") for line in lines):
        head.append(f"content-length: {len(body)}")
    return "\r\n".join([*head, "", ""]).encode() + body


def read_until(client: socket.socket, end: bytes, times: int = 1) -> bytes:
    received = b""
    while received.count(end) < times:
        data = client.recv(65536)
        assert data, f"closed after {received!r}"
        received += data
    return received


def read_to_end(client: socket.socket) -> bytes:
    received = b""
    while data := client.recv(65536):
        received += data
    return received


def error_of(content: bytes) -> dict[str, Any]:
    error = json.loads(content)["error"]
    assert set(error) == {"message", "type", "param", "code"}
    return error


def raw(*lines: bytes, status: int = 200, body: bytes = b"") -> FakeReply:
    return FakeReply(raw=b"\r\n".join([b"HTTP/1.1 %d X" % status, *lines, b"", body]))


# Chat


def test_a_chat_is_carried_and_its_answer_says_who_decided_what(door: Any) -> None:
    status, headers, content = door.request("POST", CHAT, HI)
    assert status == 200
    assert json.loads(content)["choices"][0]["message"]["content"] == "Hello from the backend."
    own = {name.removeprefix("x-fingerpost-"): value for name, value in headers.items() if name.startswith("x-fingerpost-")}
    assert (own["route"], own["backend"], own["confidence"], own["source"]) == ("chat", "b0", "1.0000", "fixed")
    assert float(own["decision-ms"]) >= 0
    assert own["request-id"] == door.told()[0].request_id
    assert set(own) == {"route", "backend", "confidence", "source", "decision-ms", "request-id"}


@pytest.mark.parametrize(
    ("model", "route", "source"), [("auto", "chat", "fixed"), ("other", "other", "hint"), ("b0", None, "hint")]
)
def test_the_model_is_a_wish(door: Any, model: str, route: str | None, source: str) -> None:
    status, headers, _ = door.request("POST", CHAT, {**HI, "model": model})
    assert status == 200
    assert headers.get("x-fingerpost-route") == route
    assert headers["x-fingerpost-source"] == source
    assert ("x-fingerpost-confidence" in headers) == (model == "auto")
    assert door.fake.requests[0].json["model"] == "model-0"


def test_a_body_without_a_model_is_decided(door: Any) -> None:
    status, headers, _ = door.request("POST", CHAT, {"messages": HI["messages"]})
    assert (status, headers["x-fingerpost-route"]) == (200, "chat")


def test_a_stream_arrives_event_by_event(door: Any) -> None:
    door.fake.script(FakeReply("one two three"), FakeReply("one two three", pause=60))
    _, headers, content = door.request("POST", CHAT, STREAM)
    assert headers["content-type"] == "text/event-stream"
    assert content.count(b"data: ") == 6
    with connected(door) as client:
        client.sendall(http("POST", CHAT, json.dumps(STREAM).encode()))
        assert b"[DONE]" not in read_until(client, b"data: ")


def test_a_compressed_reply_passes_unchanged(door: Any) -> None:
    packed = gzip.compress(b'{"choices": []}')
    door.fake.script(raw(b"content-encoding: gzip", b"content-length: %d" % len(packed), body=packed))
    status, headers, content = door.request("POST", CHAT, HI, {"accept-encoding": "gzip"})
    assert (status, headers["content-encoding"], content) == (200, "gzip", packed)


def test_headers_of_the_backend_that_look_like_ours_are_replaced(door: Any) -> None:
    lies = {"x-fingerpost-route": "lie", "X-Fingerpost-Lie": "lie", "set-cookie": "lie=1", "keep-alive": "lie", "x-own": "true"}
    door.fake.script(FakeReply(headers=lies))
    _, headers, _ = door.request("POST", CHAT, HI)
    assert headers["x-fingerpost-route"] == "chat"
    assert headers["x-own"] == "true"
    assert "lie" not in str(headers)


def test_an_error_of_the_backend_about_the_request_passes_through(door: Any) -> None:
    door.fake.script(FakeReply("context_length_exceeded", status=400))
    status, headers, content = door.request("POST", CHAT, HI)
    assert (status, headers["x-fingerpost-backend"]) == (400, "b0")
    assert error_of(content)["message"] == "context_length_exceeded"


def test_a_route_name_outside_ascii_is_percent_encoded_in_the_header(door: Any) -> None:
    routes = [{"name": "größe 100%\u3042", "description": "Sizes"}, {"name": "chat", "description": "x"}]
    status, headers, _ = door.request(
        "POST", "/v1/route", {**HI, "model": "größe 100%\u3042", "fingerpost": {"routes": routes}}
    )
    assert (status, headers["x-fingerpost-route"]) == (200, "gr%C3%B6%C3%9Fe 100%25%E3%81%82")


def test_clients_keys_do_not_reach_the_backend(door: Any) -> None:
    door.request("POST", CHAT, HI, {"authorization": "Bearer canary", "api-key": "canary", "cookie": "canary=1"})
    received = door.fake.requests[0].headers
    assert received["authorization"] == "Bearer key-0"
    assert "canary" not in str(received)


def test_a_header_value_that_http_does_not_allow_cuts_the_reply_and_nothing_else(door: Any) -> None:
    door.fake.script(raw(b"x-odd: a\x01b", b"content-length: 2", body=b"ok"))
    with connected(door) as client:
        client.sendall(http("POST", CHAT, json.dumps(HI).encode(), "connection: close"))
        read_to_end(client)
    assert len(door.told()) == 1
    assert door.request("POST", CHAT, HI)[0] == 200


# What cannot be served


@pytest.mark.parametrize(
    ("body", "param"),
    [
        (b"", None),
        (b"no json", None),
        (b"[]", None),
        (b"\xff\xfe{}", None),
        (b'{"messages": ' + b"[" * 90_000, "messages[0]"),
        (b"{}", "messages"),
        (b'{"messages": []}', "messages"),
        (b'{"messages": "hi"}', "messages"),
        (b'{"messages": [{"role": "wizard", "content": "x"}]}', "messages[0].role"),
        (b'{"messages": [{"content": "x"}]}', "messages[0].role"),
        (b'{"messages": [{"role": "user", "content": 7}]}', "messages[0].content"),
        (b'{"messages": [{"role": "user", "content": [{"text": "x"}]}]}', "messages[0].content[0].type"),
        (b'{"messages": [{"role": "user", "content": [{"type": "text"}]}]}', "messages[0].content[0].text"),
        (b'{"messages": [{"role": "user", "content": "x"}], "stream": "yes"}', "stream"),
        (b'{"messages": [{"role": "user", "content": "x"}], "model": null}', "model"),
    ],
)
def test_a_body_of_the_wrong_shape_is_400_with_the_path(door: Any, body: bytes, param: str | None) -> None:
    status, headers, content = door.request("POST", CHAT, body)
    error = error_of(content)
    assert (status, error["param"], error["code"]) == (400, param, "invalid_request")
    assert error["type"] == "invalid_request_error"
    assert headers["content-type"] == "application/json"
    assert headers["x-fingerpost-request-id"] == door.told()[0].request_id
    assert [told.outcome for told in door.exchanges] == ["rejected"]
    assert not door.fake.requests


def test_an_unknown_model_is_404_with_the_names_that_are_valid(door: Any) -> None:
    status, _, content = door.request("POST", CHAT, {**HI, "model": "gpt-9"})
    error = error_of(content)
    assert (status, error["code"], error["param"]) == (404, "model_not_found", "model")
    assert error["message"] == "there is no model 'gpt-9'; use one of: auto, chat, other, b0"
    assert [told.status for told in door.told()] == [404]


def test_what_no_backend_can_serve_is_422_naming_the_constraints(door: Any) -> None:
    status, _, content = door.request("POST", CHAT, IMAGE)
    assert (status, error_of(content)["code"]) == (422, "no_backend_fits")
    assert "b0 does not accept image" in error_of(content)["message"]
    assert [(told.outcome, told.status) for told in door.told()] == [("rejected", 422)]


def test_when_no_backend_answers_the_error_names_each_and_why(serving: Callable[..., Any], fake: FakeBackend) -> None:
    with FakeBackend(FakeReply(status=503)) as second:
        fake.default = FakeReply(status=401)
        door = serving(second, server={"retries": 0})
        status, headers, content = door.request("POST", CHAT, HI)
        assert status == 502
        assert error_of(content)["message"] == "no backend answered (b0: answered 401; b1: answered 503)"
        assert "x-fingerpost-request-id" in headers
        assert [(told.outcome, told.status) for told in door.told()] == [("failed", 502)]


@pytest.mark.parametrize(
    ("method", "path", "status", "allow"),
    [
        ("GET", CHAT, 405, "POST"),
        ("HEAD", CHAT, 405, "POST"),
        ("PUT", CHAT, 405, "POST"),
        ("OPTIONS", CHAT, 405, "POST"),
        ("POST", "/health", 405, "GET, HEAD"),
        ("DELETE", "/v1/models", 405, "GET, HEAD"),
        ("GET", "/", 404, None),
        ("POST", "/v1/embeddings", 404, None),
        ("GET", "/v1/chat/completions/", 404, None),
        ("GET", "/%2e%2e/etc/passwd", 404, None),
        ("GET", "/caf%C3%A9%00%FF", 404, None),
    ],
)
def test_other_methods_and_paths_are_errors_in_openais_shape(
    door: Any, method: str, path: str, status: int, allow: str | None
) -> None:
    found, headers, content = door.request(method, path)
    assert (found, headers.get("allow")) == (status, allow)
    assert headers["content-type"] == "application/json"
    if method != "HEAD":
        error = error_of(content)
        assert error["code"] == ("method_not_allowed" if status == 405 else "not_found")
        assert (allow or CHAT) in error["message"]


@pytest.mark.parametrize("path", ["/health", "/livez", "/readyz", "/metrics", "/v1/models"])
def test_head_is_get_without_the_body(door: Any, path: str) -> None:
    status, headers, content = door.request("HEAD", path)
    assert (status, content) == (200, b"")
    assert int(headers["content-length"]) > 10


# Bodies that are too large


def test_a_body_at_the_limit_is_carried(serving: Callable[..., Any]) -> None:
    body = json.dumps(HI).encode()
    door = serving(server={"max_body": len(body)})
    assert door.request("POST", CHAT, body)[0] == 200
    assert door.request("POST", CHAT, body + b" ")[0] == 413


@pytest.mark.parametrize("path", [CHAT, "/v1/route", "/sfc_router/chat/completions", "/v1/systemone", "/v1/decision"])
def test_a_body_beyond_the_limit_is_413_whatever_the_framing(serving: Callable[..., Any], path: str) -> None:
    door = serving(server={"max_body": 1000})
    status, headers, content = door.request("POST", path, b"x" * 1001)
    with connected(door) as client:
        client.sendall(http("POST", path, b"258\r\n" + b"x" * 600 + b"\r\n" + b"258\r\n" + b"x" * 600 + b"\r\n",
                            "transfer-encoding: chunked"))  # fmt: skip
        chunked = read_until(client, b"}}")
    assert (status, error_of(content)["code"]) == (413, "request_too_large")
    assert error_of(content)["message"] == "the body is larger than 1000 bytes (server.max_body)"
    assert chunked.startswith(b"HTTP/1.1 413 ")
    assert [(told.outcome, told.status) for told in door.told(2)] == [("rejected", 413)] * 2
    assert headers["x-fingerpost-request-id"] == door.exchanges[0].request_id


@pytest.mark.parametrize("path", [CHAT, "/v1/route", "/sfc_router/chat/completions", "/v1/systemone", "/v1/decision"])
def test_a_body_of_too_many_values_is_400_before_it_is_read(serving: Callable[..., Any], path: str) -> None:
    door = serving(server={"max_values": 50})
    status, _, content = door.request("POST", path, b"[" + b"{}," * 60)
    assert (status, error_of(content)["code"]) == (400, "too_many_values")
    assert error_of(content)["message"] == "the body has more than 50 values (server.max_values)"
    assert [(told.outcome, told.status) for told in door.told(1)] == [("rejected", 400)]
    assert door.request("POST", CHAT, {**HI, "stop": ["[,{" * 60]})[0] == 200


def test_a_large_body_is_refused_before_it_is_sent(serving: Callable[..., Any]) -> None:
    door = serving(server={"max_body": 1000})
    with connected(door) as client:
        client.sendall(http("POST", CHAT, b"", "content-length: 5000000000", "expect: 100-continue"))
        assert read_until(client, b"}}").startswith(b"HTTP/1.1 413 ")


def test_a_chunked_body_is_carried_with_its_length(door: Any) -> None:
    body = json.dumps(HI).encode()
    parts = b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in (body[:9], body[9:])) + b"0\r\n\r\n"
    with connected(door) as client:
        client.sendall(http("POST", CHAT, parts, "transfer-encoding: chunked"))
        assert read_until(client, b"}}").startswith(b"HTTP/1.1 200 ")
    assert door.fake.requests[0].headers["content-length"] == str(len(door.fake.requests[0].body))


# Connections


def test_a_client_that_expects_100_continue_gets_it_and_then_its_answer(door: Any) -> None:
    body = json.dumps(HI).encode()
    with connected(door) as client:
        client.sendall(http("POST", CHAT, b"", f"content-length: {len(body)}", "expect: 100-continue"))
        assert read_until(client, b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        client.sendall(body)
        assert read_until(client, b"}}").startswith(b"HTTP/1.1 200 ")
    assert "expect" not in door.fake.requests[0].headers


def test_pipelined_requests_are_answered_in_order(door: Any) -> None:
    door.fake.script(FakeReply("first", delay=0.1), FakeReply("second"))
    chat = http("POST", CHAT, json.dumps(HI).encode())
    with connected(door) as client:
        client.sendall(chat + http("GET", "/health") + chat)
        received = read_until(client, b"total_tokens", times=2)
    places = [received.index(text) for text in (b'"first"', b'"ok"', b'"second"')]
    assert places == sorted(places)
    assert [told.outcome for told in door.told(2)] == ["completed"] * 2


def test_one_connection_serves_request_after_request(door: Any) -> None:
    with connected(door) as client:
        for body in (HI, STREAM, {**HI, "model": "gpt-9"}, STREAM, HI):
            client.sendall(http("POST", CHAT, json.dumps(body).encode()))
            read_until(client, b"0\r\n\r\n" if body is STREAM else b"}}")
    assert [told.status for told in door.told(5)] == [200, 200, 404, 200, 200]


def test_an_http_1_0_client_gets_its_stream_and_a_closed_connection(door: Any) -> None:
    body = json.dumps(STREAM).encode()
    with connected(door) as client:
        client.sendall(b"POST " + CHAT.encode() + b" HTTP/1.0\r\ncontent-length: %d\r\n\r\n" % len(body) + body)
        assert b"data: [DONE]" in read_to_end(client)


def test_what_is_no_http_is_refused_and_the_server_lives_on(door: Any) -> None:
    for garbage in (b"\x16\x03\x01\x02\x00\x01\x00", b"GET\r\n\r\n", b"POST /v1/route HTTP/1.1\r\ncontent-length: -1\r\n\r\n"):
        with connected(door) as client:
            client.sendall(garbage)
            assert read_to_end(client).startswith(b"HTTP/1.1 400 ")
    assert door.request("GET", "/health")[0] == 200


# Replies that break off


@pytest.mark.parametrize("tail", [b"data: {}\n\n", b"data: {}\r\n\r\n", b"data: {}\n", b'data: {"cho', b"data: {}\r\n"])
def test_a_stream_that_breaks_ends_with_an_error_event_of_its_own(door: Any, tail: bytes) -> None:
    door.fake.script(raw(b"content-type: text/event-stream", b"transfer-encoding: chunked",
                         body=b"%x\r\n%b\r\n" % (len(tail), tail)))  # fmt: skip
    status, headers, content = door.request("POST", CHAT, STREAM)
    assert (status, headers["content-type"]) == (200, "text/event-stream")
    assert content.startswith(tail)
    *_, event, rest = re.split(r"\r?\n\r?\n", content.decode())
    assert error_of(event.removeprefix("data: ").encode())["message"] == "b0: the connection broke"
    assert rest == ""
    assert b"[DONE]" not in content
    assert [(told.outcome, told.status) for told in door.told()] == [("cut", 200)]


@pytest.mark.parametrize(
    "lines",
    [
        (b"content-type: application/json", b"content-length: 100"),
        (b"content-type: application/json", b"transfer-encoding: chunked"),
        (b"content-type: text/event-stream", b"content-length: 9999"),
        (b"content-type: text/event-stream", b"content-encoding: gzip", b"transfer-encoding: chunked"),
    ],
)
def test_what_cannot_take_an_error_event_is_cut_short_as_it_was_by_the_backend(door: Any, lines: tuple[bytes, ...]) -> None:
    door.fake.script(raw(*lines, body=b"2\r\n{}\r\n" if b"chunked" in lines[-1] else b"{}"))
    with connected(door) as client:
        client.sendall(http("POST", CHAT, json.dumps(STREAM).encode()))
        head, _, content = read_to_end(client).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200 ")
    assert content in (b"{}", b"2\r\n{}\r\n")
    assert [told.outcome for told in door.told()] == ["cut"]


# Clients that leave


@pytest.mark.parametrize("body", [HI, STREAM])
def test_a_client_that_leaves_before_the_answer_cancels_the_call_at_once(door: Any, body: Any, eventually: Until) -> None:
    door.fake.script(FakeReply(hang=True))
    with connected(door) as client:
        client.sendall(http("POST", CHAT, json.dumps(body).encode()))
        eventually(lambda: door.fake.requests)
    eventually(lambda: door.fake.abandoned == 1)
    assert [(told.outcome, told.status) for told in door.told()] == [("client_gone", 0)]


@pytest.mark.parametrize("abruptly", [False, True])
def test_a_client_that_leaves_in_the_middle_of_a_stream_cancels_the_call_at_once(
    door: Any, abruptly: bool, eventually: Until
) -> None:
    door.fake.script(SLOW)
    with connected(door) as client:
        client.sendall(http("POST", CHAT, json.dumps(STREAM).encode()))
        read_until(client, b"word")
        if abruptly:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
    eventually(lambda: door.fake.abandoned == 1)
    assert [(told.outcome, told.status, told.stream) for told in door.told()] == [("client_gone", 200, True)]


def test_a_client_that_stops_reading_and_leaves_cancels_the_call(door: Any, eventually: Until) -> None:
    door.fake.script(FakeReply("x" * 60_000 + " x" * 20_000))
    with connected(door) as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.sendall(http("POST", CHAT, json.dumps(STREAM).encode()))
        read_until(client, b"data: ")
    assert [told.outcome for told in door.told()] == ["client_gone"]


@pytest.mark.parametrize("path", [CHAT, "/v1/route", "/sfc_router/chat/completions"])
def test_a_client_that_leaves_before_its_body_is_over_is_told_once(door: Any, path: str) -> None:
    with connected(door) as client:
        client.sendall(http("POST", path, b"", "content-length: 1000") + b'{"messages"')
    assert [(told.outcome, told.status) for told in door.told()] == [("client_gone", 0)]
    assert door.request("GET", "/health")[0] == 200


def test_a_whole_answer_is_completed_though_the_client_leaves_right_after_it(door: Any) -> None:
    for _ in range(20):
        with connected(door) as client:
            client.sendall(http("POST", CHAT, json.dumps(STREAM).encode()))
            read_until(client, b"0\r\n\r\n")
    assert {told.outcome for told in door.told(20)} == {"completed"}
    assert len(door.exchanges) == 20


# Decisions


def test_a_decision_can_be_had_alone(door: Any) -> None:
    status, headers, content = door.request("POST", "/v1/route", STREAM)
    decision = json.loads(content)
    assert status == 200
    assert {key: decision[key] for key in ("route", "backend", "model", "confidence", "source", "constraints", "backends")} == {
        "route": "chat", "backend": "b0", "model": "model-0", "confidence": 1.0, "source": "fixed", "constraints": [],
        "backends": ["b0"],
    }  # fmt: skip
    assert decision["probabilities"] == {"chat": 1.0, "other": 0.0}
    assert decision["ms"] >= 0
    assert decision["request_id"] == headers["x-fingerpost-request-id"] == door.told()[0].request_id
    assert headers["x-fingerpost-backend"] == "b0"
    assert [(told.outcome, told.attempts) for told in door.exchanges] == [("completed", ())]
    assert not door.fake.requests


@pytest.mark.parametrize("path", ["/v1/route", "/sfc_router/chat/completions"])
@pytest.mark.parametrize(("body", "status"), [(b"no json", 400), (json.dumps(IMAGE).encode(), 422)])
def test_a_decision_that_cannot_be_made_is_told_once(door: Any, path: str, body: bytes, status: int) -> None:
    assert door.request("POST", path, body)[0] == status
    assert [(told.outcome, told.status) for told in door.told()] == [("rejected", status)]


def test_the_references_clients_get_a_decision_whatever_model_they_name(door: Any) -> None:
    status, headers, content = door.request("POST", "/sfc_router/chat/completions", {**HI, "model": "any"})
    assert (status, headers["content-type"], headers["x-fingerpost-route"]) == (200, "application/json", "chat")
    assert json.loads(content)["choices"][0]["message"]["content"] == "model-0"
    status, headers, content = door.request("POST", "/sfc_router/chat/completions", {**STREAM, "model": "any"})
    assert (status, headers["content-type"]) == (200, "text/event-stream")
    assert content.endswith(b"data: [DONE]\n\n")


ASKED = {
    "model": "any",
    "state": "hi",
    "questions": {"route": {"type": "choice", "criteria": {"chat": "Small talk.", "auto": None}}},
}


def test_a_decision_models_clients_get_the_classifiers_answer(door: Any) -> None:
    status, headers, content = door.request("POST", "/v1/systemone", ASKED)
    answer = {"type": "choice", "choice": "chat", "confidence": 1.0, "probabilities": {"chat": 1.0, "auto": 0.0}}
    assert (status, json.loads(content)) == (200, {"model": "any", "answers": {"route": answer}})
    (told,) = door.told()
    assert (told.outcome, told.decision, told.request_id) == ("completed", None, headers["x-fingerpost-request-id"])


def test_a_question_in_a_wrong_shape_is_told_once_with_its_path(door: Any) -> None:
    status, _, content = door.request("POST", "/v1/systemone", {**ASKED, "questions": {"route": {"type": "score"}}})
    assert (status, error_of(content)["param"]) == (400, "questions.route.type")
    assert [(told.outcome, told.error) for told in door.told()] == [("rejected", "invalid_request at questions.route.type")]


def test_a_question_that_the_classifier_cannot_answer_is_503(door: Any) -> None:
    body = {**ASKED, "questions": {"route": {"type": "choice", "criteria": {"unknown to fixed": ""}}}}
    status, _, content = door.request("POST", "/v1/systemone", body)
    assert (status, error_of(content)["code"]) == (503, "no_verdict")
    assert [(told.outcome, told.status) for told in door.told()] == [("failed", 503)]


def test_switchyards_clients_get_the_backends_to_call(serving: Callable[..., Any]) -> None:
    with FakeBackend() as second:
        door = serving(second)
        status, headers, content = door.request("POST", "/v1/decision", {"input_format": "openai_chat", "request": HI})
        answer = json.loads(content)
        assert (status, headers["x-fingerpost-route"]) == (200, "chat")
        client = {"format": "openai_chat", "base_url": door.fake.url}
        assert answer["selected"] == {"target": "b0", "model": "model-0", "llm_client": client, "extra_body": {}}
        assert [target["target"] for target in answer["fallbacks"]] == ["b1"]
        assert b"key-" not in content
        status, _, content = door.request("POST", "/v1/decision", HI)
        assert (status, error_of(content)["code"]) == (400, "invalid_request")
        assert [told.outcome for told in door.told(2)] == ["completed", "rejected"]
        assert not door.fake.requests


# The rest


def test_the_models_are_auto_and_the_routes_and_the_backends(door: Any) -> None:
    status, _, content = door.request("GET", "/v1/models?limit=5")
    listed = json.loads(content)
    assert (status, listed["object"]) == (200, "list")
    assert [model["id"] for model in listed["data"]] == ["auto", "chat", "other", "b0"]
    assert {(model["object"], model["owned_by"]) for model in listed["data"]} == {("model", "fingerpost")}
    assert all(model["created"] > 1_600_000_000 for model in listed["data"])


def test_health_and_readiness_are_plain(door: Any) -> None:
    assert [json.loads(door.request("GET", path)[2])["status"] for path in ("/health", "/livez", "/readyz")] == [
        "ok", "ok", "ready"
    ]  # fmt: skip


def test_metrics_are_prometheus_text(door: Any) -> None:
    door.request("POST", CHAT, HI)
    door.told()
    status, headers, content = door.request("GET", "/metrics")
    assert (status, headers["content-type"]) == (200, "text/plain; version=0.0.4; charset=utf-8")
    samples = [sample for family in text_string_to_metric_families(content.decode()) for sample in family.samples]
    served = [s for s in samples if s.name == "fingerpost_requests_total" and s.labels["outcome"] == "completed"]
    assert "chat" in {sample.labels["route"] for sample in served}
    assert [s.value for s in samples if s.name == "fingerpost_in_flight"] == [0]


def test_a_request_being_served_is_in_flight(door: Any, eventually: Until) -> None:
    door.fake.script(FakeReply(hang=True))
    with connected(door) as client:
        client.sendall(http("POST", CHAT, json.dumps(HI).encode()))
        eventually(lambda: door.fake.requests)
        assert json.loads(door.request("GET", "/readyz")[2])["in_flight"] == 1
        assert b"fingerpost_in_flight 1.0" in door.request("GET", "/metrics")[2]


# Without a server


class Talk:
    """What the server around an application tells it of its start and end, and what that has answered."""

    def __init__(self, *messages: str) -> None:
        self.coming = list(messages)
        self.sent: list[Any] = []

    async def receive(self) -> dict[str, Any]:
        if not self.coming:
            await asyncio.Event().wait()
        return {"type": self.coming.pop(0)}

    async def send(self, message: Any) -> None:
        self.sent.append(message)


def app_around(classifier: Any) -> App:
    backend = {"name": "b0", "model": "m", "url": "http://127.0.0.1:9/v1"}
    config = {"backends": [backend], "routes": [{"name": "other", "backends": ["b0"]}],
              "classifier": {"use": "fixed", "route": "other"}}  # fmt: skip
    world = build_world(Config.model_validate(config), [])
    world.gateway.router.classifier = classifier
    return App(world)


async def test_it_is_ready_between_its_start_and_its_end(new_line: Any) -> None:
    classifier = ScriptedClassifier()
    app = app_around(classifier)
    seen = []
    for messages in ([], ["lifespan.startup"], ["lifespan.startup", "lifespan.shutdown"]):
        talk, line = Talk(*messages), new_line()
        running = asyncio.ensure_future(app({"type": "lifespan"}, talk.receive, talk.send))
        await asyncio.sleep(0.01)
        await app.serve(Request(line, "GET", "/readyz", [], keep_alive=True))
        seen.append((line.status, line.json["status"], [message["type"] for message in talk.sent]))
        running.cancel()
    assert seen == [
        (503, "starting", []),
        (200, "ready", ["lifespan.startup.complete"]),
        (503, "starting", ["lifespan.startup.complete", "lifespan.shutdown.complete"]),
    ]
    assert len(classifier.prepared) == 2
    assert classifier.closed == 1


async def test_a_classifier_that_cannot_start_is_told_to_the_server() -> None:
    class Broken(ScriptedClassifier):
        async def prepare(self, table: Any) -> None:
            raise FileNotFoundError("model.onnx is missing")

    app, talk = app_around(Broken()), Talk("lifespan.startup")
    await app({"type": "lifespan"}, talk.receive, talk.send)
    assert talk.sent == [{"type": "lifespan.startup.failed", "message": "the classifier cannot start: model.onnx is missing"}]
    assert not app.ready


class Defective:
    """Stands where the metrics are and fails."""

    def render(self, *_: Any) -> bytes:
        raise LookupError("canary")


async def test_a_defect_is_500_and_neither_the_client_nor_the_log_hears_its_text(
    new_line: Any, caplog: pytest.LogCaptureFixture
) -> None:
    app, line = app_around(ScriptedClassifier()), new_line()
    app.upkeep.world = type(app.world)(app.world.config, app.world.gateway, Defective())  # type: ignore[arg-type]
    await app.serve(Request(line, "GET", "/metrics", [], keep_alive=True))
    assert line.status == 500
    assert line.json["error"]["code"] == "internal_error"
    assert b"canary" not in line.transport.written
    assert re.fullmatch(r"LookupError at .*test_app\.py:\d+", caplog.messages[-1])


async def test_a_body_in_one_piece_or_many_is_the_same(new_line: Any) -> None:
    app = app_around(ScriptedClassifier())
    body = json.dumps(HI).encode()
    for size in (len(body), 9, 1):
        line = new_line()
        request = Request(line, "POST", "/v1/route", [], keep_alive=True)
        serving = asyncio.ensure_future(app.serve(request))
        for start in range(0, len(body), size):
            await asyncio.sleep(0)
            line.bring(request, body[start : start + size])
        line.bring(request, b"", whole=True)
        await serving
        assert line.json["route"] == "other"
