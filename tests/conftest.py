"""What all tests share: generated examples have no time limit of their own, since a busy machine is no defect."""

from __future__ import annotations

import http.client
import json
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import settings

from fingerpost.assemble import World, build_world
from fingerpost.config.shape import Config
from fingerpost.records import Exchange
from fingerpost.server.serve import Server, build_server
from fingerpost.testing import FakeBackend

settings.register_profile("fingerpost", deadline=None)
settings.load_profile("fingerpost")


@dataclass
class Serving:
    """A real server in a thread, with FakeBackends behind it: what it told its observer, and a plain HTTP client for it."""

    server: Server
    thread: threading.Thread
    exchanges: list[Exchange]
    fake: FakeBackend

    @property
    def port(self) -> int:
        return self.server.servers[0].sockets[0].getsockname()[1]

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def request(
        self, method: str, path: str, body: bytes | dict[str, Any] | None = None, headers: Mapping[str, str] | None = None
    ) -> tuple[int, dict[str, str], bytes]:
        """Status, headers (names in lower case) and body of the answer."""
        content = json.dumps(body).encode() if isinstance(body, dict) else body
        with closing(http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)) as connection:
            connection.request(method, path, content, headers or {})
            with connection.getresponse() as response:
                return response.status, {name.lower(): value for name, value in response.getheaders()}, response.read()

    def told(self, count: int = 1) -> list[Exchange]:
        """The exchanges as soon as there are `count` of them and nothing is in flight any more."""
        wait_until(lambda: len(self.exchanges) >= count and self.world.gateway.in_flight == 0)
        # Whatever the server's thread was doing then is over when it has answered once more.
        self.request("GET", "/health")
        return self.exchanges

    @property
    def world(self) -> World:
        return self.server.config.app.world

    def stop(self) -> None:
        self.server.should_exit = True
        self.thread.join(30)


class Recorder:
    def __init__(self, into: list[Exchange]) -> None:
        self.observe = into.append


def wait_until(condition: Callable[[], object], seconds: float = 20.0) -> None:
    end = time.perf_counter() + seconds
    while not condition():
        assert time.perf_counter() < end, "it did not happen in time"
        time.sleep(0.005)


def start_serving(fake: FakeBackend, config: dict[str, Any]) -> Serving:
    exchanges: list[Exchange] = []
    config = {"classifier": {"use": "fixed", "route": "chat"}, **config, "server": {"port": 0, **config.get("server", {})}}
    server = build_server(build_world(Config.model_validate(config), [Recorder(exchanges)]))
    thread = threading.Thread(target=server.run, name="serving", daemon=True)
    thread.start()
    wait_until(lambda: server.listening)
    return Serving(server, thread, exchanges, fake)


def routes_to(fake: FakeBackend, *more: FakeBackend, **backend: Any) -> dict[str, Any]:
    """A configuration with backends b0, b1, ... at these fakes, and the routes chat and other that try them in order."""
    backends = [
        {"name": f"b{i}", "model": f"model-{i}", "url": f.url, "key": f"key-{i}", **backend}
        for i, f in enumerate((fake, *more))
    ]
    names = [backend["name"] for backend in backends]
    return {
        "backends": backends,
        "routes": [{"name": "chat", "description": "Small talk.", "backends": names}, {"name": "other", "backends": names}],
    }


@pytest.fixture
def fake() -> Iterator[FakeBackend]:
    with FakeBackend() as backend:
        yield backend


@pytest.fixture
def serving(fake: FakeBackend) -> Iterator[Callable[..., Serving]]:
    """Starts servers: `serving()` in front of `fake`, or `serving(more_fakes, backend={...}, server={...})`."""
    running: list[Serving] = []

    def start(*more: FakeBackend, backend: dict[str, Any] | None = None, **sections: Any) -> Serving:
        running.append(start_serving(fake, {**routes_to(fake, *more, **(backend or {})), **sections}))
        return running[-1]

    yield start
    for one in running:
        one.stop()


@pytest.fixture(scope="session")
def _long_serving() -> Iterator[Serving]:
    with FakeBackend() as fake:
        one = start_serving(fake, routes_to(fake))
        yield one
        one.stop()


@pytest.fixture
def door(_long_serving: Serving) -> Serving:
    """A server with its `fake` that all tests share, for those that need no configuration of their own."""
    _long_serving.told(0).clear()
    _long_serving.fake.requests.clear()
    _long_serving.fake.abandoned = 0
    return _long_serving


@pytest.fixture
def eventually() -> Callable[..., None]:
    """Waits until a condition holds; in a coroutine, `await asyncio.to_thread(eventually, condition)`."""
    return wait_until
