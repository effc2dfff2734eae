"""nginx, Envoy and uvicorn in the backends' place: real servers, with their own ways to keep, close and break connections."""

from __future__ import annotations

import asyncio
import json
import os
import random
import shutil
import socket
import subprocess
import threading
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, MutableMapping
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import uvicorn

from fingerpost.testing import FakeBackend, FakeReply

Until = Callable[[Callable[[], object]], None]
Serve = Callable[..., Any]
CHAT = "/v1/chat/completions"
WORDS = "A whole answer from behind a real server."
CUT = "cut"  # what a client counts as: the answer had begun, and its end never came
ENVOY = Path(__file__).parents[2] / ".venv-envoy/envoy/_bin/envoy"

NGINX = """
daemon off; worker_processes 1; pid {folder}/pid; error_log {folder}/error.log;
events {{ worker_connections 512; }}
http {{
  access_log off; client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy;
  fastcgi_temp_path {folder}/f; uwsgi_temp_path {folder}/u; scgi_temp_path {folder}/s;
  keepalive_requests 5; keepalive_timeout 20ms; client_max_body_size 20k;
  server {{
    listen 127.0.0.1:{port};
    location /v1/ {{ proxy_pass http://127.0.0.1:{behind}/v1/; proxy_http_version 1.1; proxy_buffering off; }}
  }}
}}
"""

ENVOY_CONFIG = """
static_resources:
  listeners:
  - address: {{socket_address: {{address: 127.0.0.1, port_value: {port}}}}}
    filter_chains:
    - filters:
      - name: envoy.filters.network.http_connection_manager
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
          stat_prefix: http
          common_http_protocol_options: {{idle_timeout: 0.05s, max_requests_per_connection: 5}}
          route_config:
            virtual_hosts: [{{name: all, domains: ["*"], routes: [{{match: {{prefix: /}}, route: {{cluster: behind}}}}]}}]
          http_filters:
          - name: envoy.filters.http.router
            typed_config: {{"@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}}
  clusters:
  - name: behind
    connect_timeout: 1s
    load_assignment:
      cluster_name: behind
      endpoints:
      - lb_endpoints: [{{endpoint: {{address: {{socket_address: {{address: 127.0.0.1, port_value: {behind}}}}}}}}}]
"""


def free_port() -> int:
    with closing(socket.create_server(("127.0.0.1", 0))) as free:
        return int(free.getsockname()[1])


def answers(port: int) -> bool:
    with closing(socket.socket()) as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@contextmanager
def started(command: list[str], port: int, until: Until) -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        until(lambda: answers(port))
        yield process
    finally:
        process.terminate()
        process.wait(20)


def there(found: object, name: str) -> None:
    """Skips a test whose server is not there, but not where everything must be: scripts/setup-servers gets it."""
    if not found:
        assert not os.getenv("CI"), f"{name} is missing"
        pytest.skip(f"{name} is not installed; scripts/setup-servers gets it")


@pytest.fixture(params=["nginx", "envoy"])
def before(request: pytest.FixtureRequest, tmp_path: Path, fake: FakeBackend, eventually: Until) -> Iterator[Any]:
    """A real proxy before the fake: its base URL, and its process."""
    fake.default, port = FakeReply(WORDS), free_port()
    file = tmp_path / "config.yaml"
    if request.param == "nginx":
        nginx = shutil.which("nginx", path=f"{os.getenv('PATH')}:/usr/sbin")
        there(nginx, "nginx")
        file.write_text(NGINX.format(folder=tmp_path, port=port, behind=fake.port))
        command = [str(nginx), "-p", str(tmp_path), "-c", str(file), "-e", str(tmp_path / "error.log")]
    else:
        there(ENVOY.exists(), "Envoy")
        file.write_text(ENVOY_CONFIG.format(port=port, behind=fake.port))
        command = [str(ENVOY), "-c", str(file), "--concurrency", "1", "--log-level", "off", "--use-dynamic-base-id"]
    with started(command, port, eventually) as process:
        yield f"http://127.0.0.1:{port}/v1", process


def sections(*urls: str, **server: Any) -> dict[str, Any]:
    names = [f"b{index}" for index in range(len(urls))]
    return {
        "backends": [{"name": name, "model": "m", "url": url} for name, url in zip(names, urls, strict=True)],
        "routes": [{"name": "chat", "description": "Chat.", "backends": names}, {"name": "other", "backends": names}],
        "server": {"retries": 2, **server},
    }


async def ask(session: aiohttp.ClientSession, url: str, stream: bool) -> str:
    body = {"model": "chat", "messages": [{"role": "user", "content": "hi"}], "stream": stream}
    async with session.post(url + CHAT, json=body) as answer:
        try:
            content = await answer.text()
        except aiohttp.ClientPayloadError:
            return CUT
    if answer.status != 200:
        return f"{answer.status} {content}"
    if not stream:
        return str(json.loads(content)["choices"][0]["message"]["content"])
    events = [event.removeprefix("data: ") for event in content.split("\n\n") if event]
    if "error" in events[-1]:
        return CUT
    assert events[-1] == "[DONE]"
    return "".join(json.loads(event)["choices"][0]["delta"].get("content", "") for event in events[:-1])


async def ask_many(url: str, count: int = 200, workers: int = 10) -> Counter[str]:
    """How many of so many requests got what, half of them streamed, with pauses in which servers close idle connections."""
    got: Counter[str] = Counter()
    numbers = iter(range(count))

    async def work(session: aiohttp.ClientSession) -> None:
        for number in numbers:
            got[await ask(session, url, number % 2 == 1)] += 1
            await asyncio.sleep(random.choice([0.0, 0.0, 0.02, 0.05]))

    async with aiohttp.ClientSession() as session, asyncio.TaskGroup() as group:
        for _ in range(workers):
            group.create_task(work(session))
    return got


async def test_all_are_answered_though_the_server_closes_idle_connections_all_the_time(before: Any, serving: Serve) -> None:
    door = serving(**sections(before[0]))
    assert await ask_many(door.url) == {WORDS: 200}
    assert {told.outcome for told in door.told(200)} == {"completed"}
    assert len(door.exchanges) == 200


async def test_what_is_behind_the_server_may_die_and_the_next_backend_answers(
    before: Any, serving: Serve, fake: FakeBackend
) -> None:
    with FakeBackend(FakeReply(WORDS)) as other:
        door = serving(**sections(before[0], other.url))
        fake.stop()
        assert await ask_many(door.url, 40) == {WORDS: 40}
    statuses = {attempt.status for told in door.told(40) for attempt in told.attempts if attempt.backend == "b0"}
    assert statuses <= {502, 503, None}  # None once the circuit is open
    assert statuses & {502, 503}


async def test_the_server_may_be_killed_under_load(before: Any, serving: Serve) -> None:
    with FakeBackend(FakeReply(WORDS)) as other:
        door = serving(**sections(before[0], other.url))
        asking = asyncio.ensure_future(ask_many(door.url, 300))
        while len(door.exchanges) < 100:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        before[1].kill()
        got = await asking
    outcomes = Counter(told.outcome for told in door.told(300))
    assert (outcomes["completed"], outcomes["cut"]) == (got[WORDS], got[CUT])
    assert outcomes.total() == got[WORDS] + got[CUT] == 300


async def test_a_stream_comes_through_event_by_event_and_a_client_that_leaves_ends_it(
    before: Any, serving: Serve, fake: FakeBackend, eventually: Until
) -> None:
    fake.default = FakeReply("word " * 200, pause=0.05)
    door = serving(**sections(before[0]))
    body = {"model": "chat", "messages": [{"role": "user", "content": "hi"}], "stream": True}
    async with aiohttp.ClientSession() as session, session.post(door.url + CHAT, json=body) as answer:
        assert b"data: " in await answer.content.readany()
    await asyncio.to_thread(eventually, lambda: fake.abandoned == 1)
    assert [told.outcome for told in door.told()] == ["client_gone"]


def test_what_nginx_says_of_a_body_that_is_too_large_reaches_the_client(before: Any, serving: Serve) -> None:
    door = serving(**sections(before[0]))
    content = "x" * 30_000
    status, _, answer = door.request("POST", CHAT, {"model": "chat", "messages": [{"role": "user", "content": content}]})
    assert (status, b"nginx" in answer) in [(413, True), (200, False)]
    assert [told.outcome for told in door.told()] == ["completed"]


async def app(scope: MutableMapping[str, Any], receive: Callable[[], Awaitable[Any]], send: Any) -> None:
    """A chat backend as an ASGI application: a stream of words."""
    more = True
    while more:
        more = (await receive()).get("more_body", False)
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/event-stream")]})
    for number, word in enumerate(WORDS.split(" ")):
        delta = {"choices": [{"delta": {"content": word if not number else f" {word}"}}]}
        await send({"type": "http.response.body", "body": b"data: %b\n\n" % json.dumps(delta).encode(), "more_body": True})
    await send({"type": "http.response.body", "body": b"data: [DONE]\n\n", "more_body": False})


@contextmanager
def uvicorn_at(port: int, until: Until) -> Iterator[None]:
    options: dict[str, Any] = {"lifespan": "off", "log_level": "error", "timeout_keep_alive": 0}
    server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=port, **options))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    until(lambda: server.started)
    try:
        yield
    finally:
        server.should_exit = True
        thread.join(20)


async def test_a_uvicorn_backend_may_restart_under_load(serving: Serve, eventually: Until) -> None:
    port = free_port()
    door = serving(**sections(f"http://127.0.0.1:{port}/v1", f"http://127.0.0.1:{port}/v1", retry_budget={"floor": 1000}))

    async def streams(count: int) -> set[str]:
        async with aiohttp.ClientSession() as session:
            return {await ask(session, door.url, True) for _ in range(count)}

    for _ in range(3):
        with uvicorn_at(port, eventually):
            assert await streams(20) == {WORDS}
    assert [told.outcome for told in door.told(60)] == ["completed"] * 60
