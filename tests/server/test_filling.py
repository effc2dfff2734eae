"""Bodies that are read past the parser: whole, in order with what comes behind them, over TLS, and when they break off."""

from __future__ import annotations

import json
import random
import socket
import ssl
import time
from collections.abc import Callable
from contextlib import closing
from typing import Any

import pytest
import trustme

from fingerpost.server.filling import LEAST, Filling
from fingerpost.server.protocol import LARGE_BODY
from fingerpost.server.request import Request
from fingerpost.testing import FakeBackend, FakeReply

HEAD = "POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\n{more}content-length: {length}\r\n\r\n"


def large(size: int, seed: int = 0) -> bytes:
    """A chat body with a text of `size` characters in which no piece looks like another."""
    text = random.Random(seed).randbytes(size // 2).hex()
    return json.dumps({"model": "chat", "messages": [{"role": "user", "content": text}]}).encode()


def request(body: bytes, more: str = "") -> bytes:
    return HEAD.format(length=len(body), more=more).encode() + body


def answers(client: socket.socket, times: int) -> bytes:
    received = b""
    while received.count(b"HTTP/1.1 ") < times or not received.endswith(b"}"):
        data = client.recv(65536)
        assert data, received
        received += data
    return received


def connect(port: int, authority: trustme.CA | None) -> socket.socket:
    client = socket.create_connection(("127.0.0.1", port), timeout=30)
    if authority is None:
        return client
    context = ssl.create_default_context()
    authority.configure_trust(context)
    return context.wrap_socket(client, server_hostname="localhost")


@pytest.mark.parametrize("has_tls", [False, True], ids=["plain", "tls"])
@pytest.mark.parametrize("piece", [1 << 24, 100_003], ids=["at once", "in pieces"])
def test_large_bodies_come_whole_and_what_stands_behind_them_too(
    serving: Callable[..., Any], authority: trustme.CA, tls: dict[str, str], fake: FakeBackend, has_tls: bool, piece: int
) -> None:
    door = serving(server={"tls": tls} if has_tls else {})
    bodies = [large(2_000_000), large(20), large(LARGE_BODY + 70_000, 1), large(LARGE_BODY // 2, 2), large(3_000_000, 3)]
    stream = b"".join(map(request, bodies))
    with closing(connect(door.port, authority if has_tls else None)) as client:
        for start in range(0, len(stream), piece):
            client.sendall(stream[start : start + piece])
        assert answers(client, len(bodies)).count(b"HTTP/1.1 200") == len(bodies)
    sent = [body.replace(b'"model": "chat"', b'"model": "model-0"') for body in bodies]
    assert [request.body for request in fake.requests] == sent


def test_a_body_that_needs_no_change_reaches_the_backend_too(serving: Callable[..., Any], fake: FakeBackend) -> None:
    body = large(1_000_000)
    backend = {"name": "chat", "model": "chat", "url": fake.url}
    door = serving(backends=[backend], routes=[{"name": "other", "backends": ["chat"]}])
    with closing(connect(door.port, None)) as client:
        client.sendall(request(body))
        assert b"HTTP/1.1 200" in answers(client, 1)
    assert [request.body for request in fake.requests] == [body]


def test_a_client_that_leaves_within_its_body_is_told_as_gone(
    serving: Callable[..., Any], fake: FakeBackend, eventually: Callable[..., None]
) -> None:
    door = serving()
    with closing(connect(door.port, None)) as client:
        client.sendall(request(large(1_000_000))[:700_000])
        time.sleep(0.1)
    eventually(lambda: [exchange.outcome for exchange in door.exchanges] == ["client_gone"])
    assert not fake.requests


def test_a_body_that_stops_coming_is_408(serving: Callable[..., Any], fake: FakeBackend) -> None:
    door = serving(server={"request_timeout": 0.3})
    with closing(connect(door.port, None)) as client:
        client.sendall(request(large(1_000_000))[:700_000])
        received = answers(client, 1)
    assert received.startswith(b"HTTP/1.1 408 ")
    assert b"request_timeout" in received
    assert not fake.requests


def test_a_length_beyond_the_limit_is_refused_at_once(serving: Callable[..., Any]) -> None:
    door = serving(server={"max_body": 1_000_000})
    with closing(connect(door.port, None)) as client:
        client.sendall(HEAD.format(length=1 << 45, more="").encode() + b"{")
        assert answers(client, 1).startswith(b"HTTP/1.1 413 ")


async def test_a_length_that_is_only_stated_takes_no_memory(new_line: Any) -> None:
    line = new_line()
    coming = Request(line, "POST", "/", (), True, stated=20_000_000)
    line.bring(coming, b"x" * 1000)
    filling = Filling(line, coming)
    rooms = []
    while coming.size < 16_000_000:
        rooms.append((coming.size, len(filling.get_buffer(-1))))
        filling.buffer_updated(rooms[-1][1])
    assert all(room <= max(3 * size, LEAST) for size, room in rooms)
    assert len(rooms) < 10


def test_a_large_body_is_asked_for_and_its_answer_streamed(serving: Callable[..., Any], fake: FakeBackend) -> None:
    fake.default = FakeReply("word " * 50, pause=0.01)
    door = serving()
    body = large(1_000_000).replace(b"{", b'{"stream": true, ', 1)
    head = HEAD.format(length=len(body), more="expect: 100-continue\r\n").encode()
    with closing(connect(door.port, None)) as client:
        client.sendall(head)
        assert client.recv(100) == b"HTTP/1.1 100 Continue\r\n\r\n"
        client.sendall(body)
        received = b""
        while b"[DONE]" not in received:
            received += client.recv(65536)
    assert received.startswith(b"HTTP/1.1 200 ")
