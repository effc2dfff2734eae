"""The fault proxy does what each fault says, on real sockets."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from contextlib import closing

import pytest

from fingerpost.testing import FAULTS, FakeBackend, FakeReply, Fault, FaultProxy
from fingerpost.testing.proxy import add_header, change_length

Until = Callable[[Callable[[], object]], None]
BODY = b'{"ok": true}'
REPLY = b"HTTP/1.1 200 OK\r\ncontent-length: 12\r\n\r\n" + BODY
REQUEST = b"GET / HTTP/1.1\r\nhost: x\r\n\r\n"


@pytest.fixture
def proxy(fake: FakeBackend) -> Iterator[FaultProxy]:
    fake.default = FakeReply(raw=REPLY)
    with FaultProxy(fake.port) as one:
        yield one


def ask(proxy: FaultProxy) -> bytes:
    with closing(socket.create_connection(("127.0.0.1", proxy.port), timeout=20)) as client:
        client.sendall(REQUEST)
        received = b""
        while data := client.recv(65536):
            received += data
        return received


def test_without_a_fault_everything_passes_and_is_counted(proxy: FaultProxy, fake: FakeBackend, eventually: Until) -> None:
    assert [ask(proxy) for _ in range(3)] == [REPLY] * 3
    eventually(lambda: proxy.open == 0)
    assert (proxy.accepted, proxy.passed, len(fake.requests)) == (3, 3 * len(REPLY), 3)
    assert proxy.url == f"http://127.0.0.1:{proxy.port}/v1"


@pytest.mark.parametrize("bytes_", [0, 1, 30, len(REPLY) - 1])
def test_a_reply_is_cut_at_its_byte(proxy: FaultProxy, bytes_: int) -> None:
    proxy.fault = Fault(cut_at=bytes_)
    assert ask(proxy) == REPLY[:bytes_]


def test_a_cut_beyond_the_reply_does_nothing(proxy: FaultProxy) -> None:
    proxy.fault = Fault(cut_at=10_000)
    assert ask(proxy) == REPLY


@pytest.mark.parametrize("bytes_", [0, 20])
def test_a_connection_is_reset(proxy: FaultProxy, bytes_: int) -> None:
    proxy.fault = Fault(cut_at=bytes_, reset=True)
    with pytest.raises(ConnectionResetError):
        ask(proxy)


@pytest.mark.parametrize("fault", [Fault(hang=True), Fault(cut_at=10, hang=True), Fault(delay=60.0)])
def test_silence_lasts_until_the_client_goes(proxy: FaultProxy, fault: Fault, eventually: Until) -> None:
    proxy.fault = fault
    with closing(socket.create_connection(("127.0.0.1", proxy.port), timeout=0.2)) as client:
        client.sendall(REQUEST)
        wanted = fault.cut_at or 0
        received = b""
        while len(received) < wanted:
            received += client.recv(65536)
        with pytest.raises(TimeoutError):
            client.recv(65536)
        assert (received, proxy.open) == (REPLY[:wanted], 1)
    eventually(lambda: proxy.open == 0)


def test_nobody_connects_where_it_refuses_and_all_do_when_it_stops(proxy: FaultProxy) -> None:
    proxy.fault = Fault(refuse=True)
    with pytest.raises(ConnectionRefusedError):
        ask(proxy)
    proxy.fault = Fault()
    assert ask(proxy) == REPLY


def test_it_may_refuse_from_the_start(fake: FakeBackend) -> None:
    with FaultProxy(fake.port, Fault(refuse=True)) as one, pytest.raises(ConnectionRefusedError):
        ask(one)


def test_a_drip_changes_nothing_but_the_time(proxy: FaultProxy) -> None:
    proxy.fault = Fault(drip=0.001)
    assert ask(proxy) == REPLY


@pytest.mark.parametrize(
    ("name", "start"),
    [
        ("garbage status line", b"\x16\x03\x01 what\r\ncontent-length: 12\r\n\r\n" + BODY),
        ("content-length too long", b"HTTP/1.1 200 OK\r\ncontent-length: 62\r\n\r\n" + BODY),
        ("content-length twice", b"HTTP/1.1 200 OK\r\ncontent-length: 12\r\ncontent-length: 7\r\n\r\n" + BODY),
        ("huge headers", b"HTTP/1.1 200 OK\r\ncontent-length: 12\r\nx-huge: xxxx"),
    ],
)
def test_heads_are_rewritten(proxy: FaultProxy, name: str, start: bytes) -> None:
    proxy.fault = FAULTS[name]
    assert ask(proxy).startswith(start)


def test_a_length_is_stated_where_there_was_none() -> None:
    assert change_length(-50)(b"HTTP/1.1 200 OK\r\n\r\n") == b"HTTP/1.1 200 OK\r\ncontent-length: 950\r\n\r\n"
    assert add_header(b"a: b")(b"HTTP/1.1 200 OK\r\n\r\n") == b"HTTP/1.1 200 OK\r\na: b\r\n\r\n"


def test_connections_that_are_open_can_be_reset(proxy: FaultProxy) -> None:
    proxy.fault = Fault(hang=True)
    with closing(socket.create_connection(("127.0.0.1", proxy.port), timeout=20)) as client:
        client.sendall(REQUEST)
        while not proxy.open:
            pass
        proxy.cut()
        with pytest.raises(ConnectionResetError):
            client.recv(1)
    assert proxy.open == 0


def test_a_backend_that_is_gone_resets_the_connection(fake: FakeBackend, proxy: FaultProxy) -> None:
    fake.stop()
    with pytest.raises(ConnectionResetError):
        ask(proxy)
