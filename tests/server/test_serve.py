"""The serving process: its start and its end."""

from __future__ import annotations

import asyncio
import http.client
import json
import os
import signal
import socket
import threading
import time
from collections.abc import Callable
from contextlib import closing
from typing import Any

import pytest

from fingerpost.assemble import World, build_world
from fingerpost.config.shape import Config
from fingerpost.server.serve import build_server, serve
from fingerpost.testing import FakeBackend, FakeReply, ScriptedClassifier

CHAT = "/v1/chat/completions"
STREAM = {"messages": [{"role": "user", "content": "hi"}], "stream": True}


def world_at(port: int, host: str = "127.0.0.1", url: str = "http://127.0.0.1:9/v1") -> World:
    return build_world(
        Config.model_validate({
            "backends": [{"name": "b0", "model": "m", "url": url}],
            "routes": [{"name": "other", "backends": ["b0"]}],
            "classifier": {"use": "fixed", "route": "other"},
            "server": {"port": port, "host": host, "open": True},
        }),
        [],
    )  # fmt: skip


def signal_when_it_listens(port: int, *numbers: int) -> threading.Thread:
    def run() -> None:
        while True:
            with closing(socket.socket()) as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.01)
        for number in numbers:
            os.kill(os.getpid(), number)

    thread = threading.Thread(target=run)
    thread.start()
    return thread


@pytest.mark.parametrize("numbers", [[signal.SIGTERM], [signal.SIGINT]])
def test_it_serves_until_a_signal_and_returns_0(
    unused_tcp_port: int, numbers: list[int], capsys: pytest.CaptureFixture[str]
) -> None:
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    sending = signal_when_it_listens(unused_tcp_port, *numbers)
    assert serve(world_at(unused_tcp_port)) == 0
    sending.join()
    assert capsys.readouterr().err == f"fingerpost listens on http://127.0.0.1:{unused_tcp_port}\n"
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] == before


def test_a_second_ctrl_c_cuts_what_still_runs_and_ends_in_order(
    unused_tcp_port: int, fake: FakeBackend, eventually: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    fake.default = FakeReply(hang=True)
    world = world_at(unused_tcp_port, url=fake.url)
    answers: list[int] = []

    def ask_and_interrupt() -> None:
        signal_when_it_listens(unused_tcp_port).join()
        with closing(http.client.HTTPConnection("127.0.0.1", unused_tcp_port, timeout=30)) as client:
            client.request("POST", CHAT, json.dumps(STREAM))
            eventually(lambda: fake.requests)
            for _ in range(2):
                os.kill(os.getpid(), signal.SIGINT)
                time.sleep(0.15)
            answers.append(client.getresponse().status)

    interrupting = threading.Thread(target=ask_and_interrupt)
    interrupting.start()
    assert serve(world) == 0
    interrupting.join()
    eventually(lambda: fake.abandoned == 1)
    assert answers == [503]
    assert "Traceback" not in capsys.readouterr().err


def test_a_taken_port_is_said_plainly_and_returns_1(capsys: pytest.CaptureFixture[str]) -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as taken:
        port = taken.getsockname()[1]
        assert serve(world_at(port)) == 1
    told = capsys.readouterr().err
    assert "address already in use" in told
    assert f"fingerpost could not start on 127.0.0.1:{port}; --host and --port take another address" in told
    assert "Traceback" not in told
    assert "listens" not in told


@pytest.mark.parametrize("host", ["nowhere.invalid", "203.0.113.7"])
def test_an_address_that_is_not_ours_is_said_plainly_and_returns_1(host: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert serve(world_at(0, host)) == 1
    told = capsys.readouterr().err
    assert f"fingerpost could not start on {host}:0" in told
    assert "Traceback" not in told


def test_a_classifier_that_cannot_start_is_said_plainly_and_returns_1(capsys: pytest.CaptureFixture[str]) -> None:
    class Broken(ScriptedClassifier):
        async def prepare(self, table: Any) -> None:
            raise FileNotFoundError("model.onnx is missing")

    world = world_at(0)
    world.gateway.router.classifier = Broken()
    assert serve(world) == 1
    told = capsys.readouterr().err
    assert "the classifier cannot start: model.onnx is missing" in told
    assert "Traceback" not in told


def test_port_0_takes_a_free_port_and_says_which(serving: Callable[..., Any], capsys: pytest.CaptureFixture[str]) -> None:
    one, two = serving(), serving()
    assert one.port != two.port
    assert capsys.readouterr().err.splitlines() == [
        f"fingerpost listens on http://127.0.0.1:{one.port}", f"fingerpost listens on http://127.0.0.1:{two.port}"
    ]  # fmt: skip


@pytest.mark.skipif(not socket.has_dualstack_ipv6(), reason="needs IPv6")
def test_an_ipv6_address_is_said_as_a_url(serving: Callable[..., Any], capsys: pytest.CaptureFixture[str]) -> None:
    one = serving(server={"host": "::1"})
    assert capsys.readouterr().err == f"fingerpost listens on http://[::1]:{one.port}\n"


def test_a_running_stream_may_finish_and_new_connections_are_refused(
    serving: Callable[..., Any], fake: Any, eventually: Callable[..., None]
) -> None:
    fake.default = FakeReply("one two three four five six", pause=0.1)
    door = serving()
    port, answers = door.port, []
    asking = threading.Thread(target=lambda: answers.append(door.request("POST", CHAT, STREAM)))
    asking.start()
    eventually(lambda: fake.requests)
    door.server.should_exit = True
    eventually(lambda: not door.server.servers[0].is_serving())
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port))
    asking.join()
    door.thread.join(30)
    assert not door.thread.is_alive()
    status, _, content = answers[0]
    assert status == 200
    assert content.endswith(b"data: [DONE]\n\n")
    assert [told.outcome for told in door.exchanges] == ["completed"]


def test_what_does_not_finish_in_time_is_told_that_the_server_stops(
    serving: Callable[..., Any], fake: FakeBackend, eventually: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    fake.default = FakeReply("one two", pause=60)
    fake.script(FakeReply(hang=True))
    door = serving(server={"drain": 0.1})
    answers: dict[str, Any] = {}
    asking = [
        threading.Thread(target=lambda b=body, n=name: answers.update({n: door.request("POST", CHAT, b)}))
        for name, body in (("waiting", {**STREAM, "stream": False}), ("streaming", STREAM))
    ]
    for number, thread in enumerate(asking, 1):
        thread.start()
        eventually(lambda n=number: len(fake.requests) == n)
    eventually(lambda: door.world.gateway.in_flight == 2)
    door.stop()
    for thread in asking:
        thread.join(30)
    assert not door.thread.is_alive()
    status, _, content = answers["waiting"]
    assert (status, json.loads(content)["error"]["code"]) == (503, "stopping")
    status, _, content = answers["streaming"]
    assert (status, json.loads(content.split(b"data: ")[-1])["error"]["code"]) == (200, "stopping")
    assert [told.outcome for told in door.exchanges] == ["client_gone"] * 2
    assert "Traceback" not in capsys.readouterr().err
    eventually(lambda: fake.abandoned == 2)


def test_two_servers_one_after_the_other_in_one_process_share_nothing(serving: Callable[..., Any]) -> None:
    first = serving()
    assert first.request("POST", CHAT, {**STREAM, "stream": False})[0] == 200
    first.stop()
    assert serving().request("POST", CHAT, {**STREAM, "stream": False})[0] == 200


async def test_a_server_in_a_running_loop_stops_when_it_is_asked_to() -> None:
    server = build_server(world_at(0))
    asyncio.get_running_loop().call_later(0.2, setattr, server, "should_exit", True)
    await server.serve()
    assert server.started
    assert not server.servers[0].is_serving()
