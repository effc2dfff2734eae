"""What one connection may send, in size, number and time, and how a request that wants another protocol is served."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from typing import Any

import pytest
from uvicorn import Config
from uvicorn.server import ServerState

from fingerpost.server.protocol import KEEP_ALIVE, MAX_HEAD, MAX_HEADERS, MAX_PIPELINED, ClientConnection
from fingerpost.server.request import Request
from fingerpost.testing import FakeBackend, FakeReply

CHAT, ROUTE = "/v1/chat/completions", "/v1/route"
BODY = b'{"messages":[{"role":"user","content":"hi"}]}'


@contextmanager
def connected(door: Any) -> Iterator[socket.socket]:
    with closing(socket.create_connection(("127.0.0.1", door.port), timeout=30)) as client:
        yield client


def http(path: str, *lines: bytes, body: bytes = BODY, method: str = "POST") -> bytes:
    framing = () if any(line.startswith(b"transfer-encoding") for line in lines) else (b"content-length: %d" % len(body),)
    return b"\r\n".join([f"{method} {path} HTTP/1.1".encode(), b"host: x", *lines, *framing, b"", b""]) + body


def read_to_end(client: socket.socket) -> bytes:
    received = b""
    try:
        while data := client.recv(65536):
            received += data
    except ConnectionResetError:  # it closed while more was coming
        pass
    return received


def read_answer(client: socket.socket) -> tuple[int, bytes]:
    """The next answer's status and body, by its content-length."""
    received = b""
    while b"\r\n\r\n" not in received:
        data = client.recv(65536)
        assert data, f"closed after {received!r}"
        received += data
    head, _, body = received.partition(b"\r\n\r\n")
    length = next(int(line[15:]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:"))
    while len(body) < length:
        body += client.recv(65536)
    return int(head[9:12]), body


def told(received: bytes) -> tuple[int, str]:
    """The status and code of the one answer in `received`."""
    assert received.count(b"HTTP/1.1 ") == 1, received
    head, _, body = received.partition(b"\r\n\r\n")
    error = json.loads(body)["error"]
    assert set(error) == {"message", "type", "param", "code"}
    return int(head[9:12]), error["code"]


# One request after the other


def test_requests_that_differ_on_one_connection_are_told_apart(door: Any) -> None:
    bodies = [json.dumps({"model": name, "messages": [{"role": "user", "content": "hi" * n}]}).encode()
              for n, name in enumerate(["chat", "b0", "nowhere", "chat"] * 3)]  # fmt: skip
    heads = [(), (b"x-other: 1",), (b"x-other: 1",), (), (b"content-encoding: gzip",), ()]
    with connected(door) as client:
        for place, body in enumerate(bodies):
            client.sendall(http(ROUTE, *heads[place % len(heads)], body=body))
            status, said = read_answer(client)
            packed = heads[place % len(heads)] == (b"content-encoding: gzip",)
            assert status == (415 if packed else 404 if b"nowhere" in body else 200), said
            assert packed or (b'"route":"chat"' in said) == (b'"model": "chat"' in body)


async def test_a_head_that_comes_again_needs_no_parser_and_a_server_that_stops_says_so(new_line: Any) -> None:
    heads: set[tuple[Any, ...]] = set()
    bodies: list[bytes] = []

    async def serve(request: Request) -> None:
        heads.add((request.method, request.path, request.headers, request.encoding))
        bodies.append(request.take())
        request.send(200, b"content-length: 0\r\n", b"")

    wire = new_line().transport
    connection = ClientConnection(Config(serve), ServerState(), {}, asyncio.get_running_loop(), serve=serve, most=1)
    connection.connection_made(wire)
    for body in (b"one", b"two"):
        connection.data_received(http("/a", body=body))
        await asyncio.sleep(0)
    connection._parser = None  # nothing can be parsed any more
    connection.data_received(http("/a", body=b"longer"))
    await asyncio.sleep(0)
    connection.data_received(http("/a", body=b"last"))
    connection.shutdown()
    await asyncio.sleep(0)
    assert bodies == [b"one", b"two", b"longer", b"last"]
    assert heads == {("POST", "/a", ((b"host", b"x"),), b"")}
    assert wire.written.count(b"HTTP/1.1 200") == 4
    assert wire.written.endswith(b"connection: close\r\n\r\n")
    assert wire.end == "closed"


# Another protocol


@pytest.mark.parametrize("pieces", [1, 2, 60])
@pytest.mark.parametrize("chunked", [False, True])
def test_a_post_that_wants_to_upgrade_is_served_as_it_is(door: Any, pieces: int, chunked: bool) -> None:
    upgrade = (b"Connection: Upgrade, HTTP2-Settings", b"Upgrade: h2c", b"HTTP2-Settings: AAMAAABkAARAAAAAAAIAAAAA")
    framing = (b"transfer-encoding: chunked",) if chunked else ()
    body = b"%x\r\n%b\r\n0\r\n\r\n" % (len(BODY), BODY) if chunked else BODY
    request = http(CHAT, *upgrade, *framing, body=body)
    size = -(-len(request) // pieces)
    with connected(door) as client:
        for _ in range(2):
            for start in range(0, len(request), size):
                client.sendall(request[start : start + size])
            assert read_answer(client)[0] == 200
        client.sendall(http(ROUTE))
        assert read_answer(client)[0] == 200
    assert [request.json["messages"] for request in door.fake.requests] == [json.loads(BODY)["messages"]] * 2
    assert not any("upgrade" in request.headers for request in door.fake.requests)


def test_a_web_socket_gets_the_answer_to_its_get(door: Any) -> None:
    with connected(door) as client:
        client.sendall(http("/health", b"connection: upgrade", b"upgrade: websocket", body=b"", method="GET"))
        assert read_answer(client)[0] == 200


def test_a_tunnel_is_refused(door: Any) -> None:
    with connected(door) as client:
        client.sendall(b"CONNECT other:443 HTTP/1.1\r\nhost: other\r\n\r\n")
        assert told(read_to_end(client)) == (405, "method_not_allowed")


def test_a_broken_request_that_wants_to_upgrade_is_refused(door: Any) -> None:
    with connected(door) as client:
        client.sendall(http(ROUTE, b"connection: upgrade", b"upgrade: h2c", b"transfer-encoding: chunked", body=b"zz\r\n"))
        assert told(read_to_end(client)) == (400, "invalid_http")


# Size and number


def test_a_head_within_its_bounds_is_served(door: Any) -> None:
    lines = [b"x-%d: %b" % (number, b"y" * 600) for number in range(MAX_HEADERS - 2)]
    with connected(door) as client:
        client.sendall(http(ROUTE, *lines))
        assert read_answer(client)[0] == 200


@pytest.mark.parametrize("request_", [
    http(ROUTE, *[b"x: y"] * MAX_HEADERS),
    http(ROUTE, b"x: " + b"y" * MAX_HEAD),
    http(ROUTE, b"x" * MAX_HEAD + b": y"),
    http(f"/{'a' * (MAX_HEAD - 100)}", b"x: " + b"y" * 200),
    http(ROUTE, *[b"x: " + b"y" * 1000] * 70),
])  # fmt: skip
def test_a_head_beyond_them_is_431(door: Any, request_: bytes) -> None:
    with connected(door) as client:
        client.sendall(request_)
        assert told(read_to_end(client)) == (431, "headers_too_large")
    assert not door.fake.requests


def test_a_head_that_never_ends_is_cut_long_before_it_fills_the_memory(door: Any) -> None:
    with connected(door) as client:
        sent = 0
        client.sendall(f"POST {ROUTE} HTTP/1.1\r\nx-endless: ".encode())
        try:
            while sent < 50 * MAX_HEAD:
                sent += client.send(b"y" * 8192)
        except ConnectionError:
            pass
    assert sent < 50 * MAX_HEAD


def test_pipelined_requests_are_bounded(door: Any) -> None:
    with connected(door) as client:
        client.sendall(http(ROUTE) * (MAX_PIPELINED - 1))
        assert sum(read_to_times(client, b"HTTP/1.1 200", MAX_PIPELINED - 1)) == MAX_PIPELINED - 1
    with connected(door) as client:
        client.sendall(http("/health", method="GET", body=b"") * 1000)
        assert read_to_end(client).count(b"HTTP/1.1 200") < 1000


def read_to_times(client: socket.socket, what: bytes, times: int) -> list[int]:
    received = b""
    while received.count(what) < times:
        data = client.recv(65536)
        assert data
        received += data
    return [received.count(what)]


def test_one_connection_too_many_is_503_and_there_is_room_again_when_one_leaves(
    serving: Callable[..., Any], eventually: Callable[..., None]
) -> None:
    door = serving(server={"connections": 2})
    with connected(door) as one, connected(door) as two:
        for client in (one, two):
            client.sendall(http(ROUTE))
            assert read_answer(client)[0] == 200
        with connected(door) as three:
            assert told(read_to_end(three)) == (503, "too_many_connections")
        one.close()
        eventually(lambda: len(door.server.server_state.connections) == 1)
        with connected(door) as four:
            four.sendall(http(ROUTE))
            assert read_answer(four)[0] == 200


# Time


@pytest.mark.parametrize("start", [
    f"POST {CHAT} HTT".encode(), f"POST {CHAT} HTTP/1.1\r\nhost: x\r\n".encode(), http(CHAT)[:-1],
    http(CHAT, b"transfer-encoding: chunked", body=b"5\r\n{\"mes"),
    http(CHAT, b"connection: upgrade", b"upgrade: h2c")[:-1],
])  # fmt: skip
def test_a_request_that_does_not_come_in_time_is_408(serving: Callable[..., Any], start: bytes) -> None:
    door = serving(server={"request_timeout": 0.2})
    with connected(door) as client:
        client.sendall(http(ROUTE))
        assert read_answer(client)[0] == 200
        client.sendall(start)
        assert told(read_to_end(client)) == (408, "request_timeout")
    assert not door.fake.requests


def test_drops_do_not_keep_it_alive(serving: Callable[..., Any]) -> None:
    door = serving(server={"request_timeout": 0.5})
    with connected(door) as client:
        client.settimeout(0.05)
        received = b""
        for piece in [*(bytes([byte]) for byte in http(CHAT, b"x: " + b"y" * 2000)), b""]:
            try:
                client.sendall(piece)
                received += client.recv(65536)
            except TimeoutError:
                continue
            except ConnectionError:
                break
            if received:
                break
        assert received.startswith(b"HTTP/1.1 408 Request Timeout\r\n")


def test_a_connection_that_says_nothing_or_only_line_ends_is_closed_without_a_word(serving: Callable[..., Any]) -> None:
    door = serving(server={"request_timeout": 0.2})
    with connected(door) as silent, connected(door) as blank:
        blank.sendall(b"\r\n\r\n")
        assert read_to_end(silent) == b""
        assert read_to_end(blank) == b""


def test_a_body_that_nobody_waits_for_any_more_ends_in_time_too(serving: Callable[..., Any]) -> None:
    door = serving(server={"request_timeout": 0.2, "max_body": 10})
    with connected(door) as client:
        client.sendall(http(CHAT)[:-1])
        assert read_answer(client)[0] == 413
        assert told(read_to_end(client)) == (408, "request_timeout")


async def test_an_idle_connection_outlives_those_of_common_clients(new_line: Any) -> None:
    async def serve(request: Request) -> None:
        request.send(200, b"content-length: 0\r\n", b"")

    wire, loop = new_line().transport, asyncio.get_running_loop()
    connection = ClientConnection(Config(serve), ServerState(), {}, loop, serve=serve, most=1)
    connection.connection_made(wire)
    connection.data_received(http("/health", method="GET", body=b""))
    await asyncio.sleep(0)
    ends = []
    for seconds in (60, KEEP_ALIVE + 1):
        connection.expire(loop.time() + seconds, patience=1.0)
        ends.append(wire.end)
    assert wire.written.startswith(b"HTTP/1.1 200")
    assert ends == ["", "closed"]


def test_an_answer_may_take_longer_than_its_request_and_others_may_wait_behind_it(
    serving: Callable[..., Any], fake: FakeBackend
) -> None:
    fake.default = FakeReply("slow", delay=2.5)
    door = serving(server={"request_timeout": 0.2})
    with connected(door) as client:
        client.sendall(http(CHAT) + http(ROUTE))
        assert read_to_times(client, b"HTTP/1.1 200", 2) == [2]


@pytest.mark.parametrize(
    "behind", [b"\x00garbage\r\n\r\n", b"GET /health HTTP/1.1\r\nno colon\r\n\r\n", http(CHAT, b"x: " + b"x" * 70_000)]
)
def test_a_refusal_of_what_comes_behind_a_whole_request_is_not_taken_for_its_answer(door: Any, behind: bytes) -> None:
    with connected(door) as client:
        client.sendall(http(CHAT, body=BODY) + behind)
        assert b"HTTP/1.1 4" not in read_to_end(client)


def test_garbage_behind_a_request_that_is_being_streamed_cuts_it_and_is_not_answered_within_it(
    serving: Callable[..., Any], fake: FakeBackend
) -> None:
    fake.default = FakeReply("word " * 200, pause=0.05)
    door = serving()
    with connected(door) as client:
        client.sendall(http(CHAT, body=b'{"stream":true,' + BODY[1:]))
        assert client.recv(65536).startswith(b"HTTP/1.1 200")
        client.sendall(b"\x00garbage\r\n\r\n")
        assert b"HTTP/1.1 400" not in read_to_end(client)
    assert [exchange.outcome for exchange in door.told()] == ["client_gone"]


@pytest.mark.parametrize(("size", "behind"), [(1, b""), (1_000_000, b""), (1, http(CHAT))], ids=["small", "large", "pipelined"])
def test_a_request_ends_when_its_client_leaves_however_large_it_is(
    serving: Callable[..., Any], fake: FakeBackend, eventually: Callable[..., Any], behind: bytes, size: int
) -> None:
    fake.default = FakeReply(hang=True)
    door = serving()
    with connected(door) as client:
        client.sendall(http(CHAT, body=BODY.replace(b"hi", b"x" * size)) + behind)
        eventually(lambda: len(fake.requests) == 1)
    eventually(lambda: fake.abandoned == 1)
    eventually(lambda: [exchange.outcome for exchange in door.exchanges] == ["client_gone"])
