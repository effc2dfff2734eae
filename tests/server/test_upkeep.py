"""Reloading while serving: one world takes the other's place, and nobody notices but by what has changed."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import re
import signal
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fingerpost import config
from fingerpost.assemble import World, build_world
from fingerpost.config.shape import Config, ServerConfig
from fingerpost.records import Exchange
from fingerpost.server.serve import build_server
from fingerpost.server.upkeep import Upkeep
from fingerpost.testing import FakeBackend, FakeReply, FaultProxy, ScriptedClassifier

Until = Callable[[Callable[[], object]], None]
CHAT = "/v1/chat/completions"
HI = {"model": "chat", "messages": [{"role": "user", "content": "hi"}]}
STREAM = {**HI, "stream": True}


def text(url: str, *, route: str = "chat", more: str = "", server: str = "") -> str:
    return f"""
backends: [{{name: b0, model: m, url: "{url}", accepts: [text, image]{more}}}]
routes: [{{name: {route}, description: Small talk., backends: [b0]}}, {{name: other, backends: [b0]}}]
classifier: {{use: fixed, route: {route}}}
server: {{port: 0{server}}}
"""


class Reloading:
    """A server that follows a file; `door` is the `Serving` of conftest around it."""

    def __init__(self, file: Path, fake: FakeBackend, serving: type[Any], until: Until, **options: Any) -> None:
        self.file, self.until = file, until
        exchanges: list[Exchange] = []

        class Recorder:
            observe = exchanges.append

        def build(before: World | None = None) -> World:
            return build_world(config.load(file, {}).config, [Recorder()], before)

        self.first = build()
        self.upkeep = Upkeep(self.first, file, build, **{"every": 0.02, **options})
        server = build_server(self.first, self.upkeep)
        thread = threading.Thread(target=server.run, name="serving", daemon=True)
        thread.start()
        until(lambda: server.listening)
        self.door = serving(server, thread, exchanges, fake)

    def write(self, content: str) -> None:
        """Changes the file in one step, as deployments do."""
        other = self.file.with_suffix(".new")
        other.write_text(content, encoding="utf-8")
        os.replace(other, self.file)

    def reload(self, content: str) -> None:
        before = self.upkeep.world
        self.write(content)
        self.until(lambda: self.upkeep.world is not before)

    def metric(self, name: str) -> float:
        found = re.search(rf"^{re.escape(name)} (\S+)$", self.door.request("GET", "/metrics")[2].decode(), re.MULTILINE)
        return float(found[1]) if found else 0.0

    def readyz(self) -> dict[str, Any]:
        return dict(json.loads(self.door.request("GET", "/readyz")[2]))


@pytest.fixture
def reloading(tmp_path: Path, fake: FakeBackend, serving: Any, eventually: Until) -> Iterator[Callable[..., Reloading]]:
    running: list[Reloading] = []
    kind = type(serving())

    def start(content: str, **options: Any) -> Reloading:
        file = tmp_path / "fingerpost.yaml"
        file.write_text(content, encoding="utf-8")
        running.append(Reloading(file, fake, kind, eventually, **options))
        return running[-1]

    yield start
    for one in running:
        one.door.stop()


def test_a_change_of_the_file_is_taken_up(reloading: Callable[..., Reloading], fake: FakeBackend) -> None:
    one = reloading(text(fake.url))
    one.reload(text(fake.url, route="talk"))
    status, headers, _ = one.door.request("POST", CHAT, {**HI, "model": "talk"})
    assert (status, headers["x-fingerpost-route"]) == (200, "talk")
    assert one.door.request("POST", CHAT, HI)[0] == 404
    assert one.metric('fingerpost_config_reload_total{result="ok"}') == 1
    assert one.metric("fingerpost_config_last_reload_ok") == 1


def test_a_bad_file_changes_nothing_and_is_told_everywhere(
    reloading: Callable[..., Reloading], fake: FakeBackend, eventually: Until, caplog: pytest.LogCaptureFixture
) -> None:
    one = reloading(text(fake.url))
    one.write("backends: [{name: b0}]")
    eventually(lambda: one.upkeep.failed)
    assert one.upkeep.world is one.first
    assert one.door.request("POST", CHAT, HI)[0] == 200
    assert one.metric("fingerpost_config_last_reload_ok") == 0
    assert one.metric('fingerpost_config_reload_total{result="failed"}') == 1
    ready = one.readyz()
    assert (ready["status"], ready["config"]) == ("ready", "the last reload failed; the log says why")
    assert "the last good configuration stays: " in caplog.text
    assert "backends[0].model: this key is required" in caplog.text
    one.reload(text(fake.url, route="talk"))
    assert one.readyz()["config"] == "ok"


def test_a_file_that_is_gone_for_a_moment_is_a_bad_file(
    reloading: Callable[..., Reloading], fake: FakeBackend, eventually: Until
) -> None:
    one = reloading(text(fake.url))
    one.file.unlink()
    eventually(lambda: one.upkeep.failed)
    assert one.door.request("POST", CHAT, HI)[0] == 200
    one.reload(text(fake.url, route="talk"))
    assert not one.upkeep.failed


def test_a_classifier_that_cannot_start_leaves_the_old_one_in_its_place(
    reloading: Callable[..., Reloading], fake: FakeBackend, eventually: Until, caplog: pytest.LogCaptureFixture
) -> None:
    one = reloading(text(fake.url))
    one.write(text(fake.url).replace("{use: fixed, route: chat}", f"{{use: '{__name__}:Broken'}}"))
    eventually(lambda: one.upkeep.failed)
    assert one.door.request("POST", CHAT, HI)[0] == 200
    assert "is missing" in caplog.text or "cannot be imported" in caplog.text


class Broken(ScriptedClassifier):
    async def prepare(self, table: Any) -> None:
        raise FileNotFoundError("model.onnx is missing")


async def test_a_world_that_does_not_get_ready_is_closed_again(eventually: Until) -> None:
    old, broken = small_world(), Broken()

    def rebuild(before: World) -> World:
        new = small_world()
        new.gateway.router.classifier = broken
        return new

    upkeep = Upkeep(old, Path("none"), rebuild, every=0.01)
    keeping = asyncio.ensure_future(upkeep.keep())
    upkeep.ask()
    await asyncio.to_thread(eventually, lambda: upkeep.failed)
    keeping.cancel()
    await asyncio.gather(keeping, return_exceptions=True)
    assert (broken.closed, upkeep.world) == (1, old)
    await old.gateway.aclose()


def small_world(**backend: Any) -> World:
    fields = {"name": "b0", "model": "m", "url": "http://127.0.0.1:9/v1", **backend}
    sections = {"backends": [fields], "routes": [{"name": "other", "backends": ["b0"]}],
                "classifier": {"use": "fixed", "route": "other"}}  # fmt: skip
    return build_world(Config.model_validate(sections), [])


def test_a_stream_from_before_the_reload_is_finished_and_its_world_closed_after(
    reloading: Callable[..., Reloading], fake: FakeBackend, eventually: Until
) -> None:
    fake.default = FakeReply("one two three four five six", pause=0.1)
    one = reloading(text(fake.url))
    answers: list[Any] = []
    asking = threading.Thread(target=lambda: answers.append(one.door.request("POST", CHAT, STREAM)))
    asking.start()
    eventually(lambda: fake.requests)
    one.reload(text(fake.url, route="talk", more=", queue: 1"))
    assert one.first.gateway.in_flight == 1
    asking.join()
    assert answers[0][2].endswith(b"data: [DONE]\n\n")
    eventually(lambda: not one.first.gateway.in_flight)
    assert [told.outcome for told in one.door.told()] == ["completed"]


def test_connections_to_backends_that_stay_the_same_outlive_a_reload(
    reloading: Callable[..., Reloading], fake: FakeBackend, eventually: Until
) -> None:
    with FaultProxy(fake.port) as proxy:
        one = reloading(text(proxy.url))
        one.door.request("POST", CHAT, HI)
        for _ in range(3):
            one.reload(text(proxy.url, route="talk"))
            assert one.door.request("POST", CHAT, {**HI, "model": "other"})[0] == 200
            one.reload(text(proxy.url))
        assert (proxy.accepted, proxy.open) == (1, 1)
        one.reload(text(proxy.url, more=", queue: 1"))
        assert one.door.request("POST", CHAT, HI)[0] == 200
        eventually(lambda: (proxy.accepted, proxy.open) == (2, 1))


def test_what_takes_longer_than_the_drain_is_cut(
    reloading: Callable[..., Reloading], fake: FakeBackend, eventually: Until, caplog: pytest.LogCaptureFixture
) -> None:
    fake.default = FakeReply("one two", pause=60)
    one = reloading(text(fake.url, server=", drain: 0.1"))
    answers: list[Any] = []
    asking = threading.Thread(target=lambda: answers.append(one.door.request("POST", CHAT, STREAM)))
    asking.start()
    eventually(lambda: fake.requests)
    one.reload(text(fake.url, route="talk"))
    asking.join()
    assert json.loads(answers[0][2].split(b"data: ")[-1])["error"]["code"] == "stopping"
    assert "are cut" in caplog.text
    assert [told.outcome for told in one.door.told()] == ["client_gone"]
    eventually(lambda: fake.abandoned == 1)


def test_counts_circuits_and_verdicts_outlive_a_reload(reloading: Callable[..., Reloading], fake: FakeBackend) -> None:
    breaker = ", breaker: {failures: 1, pause: 100, longest: 100}"
    one = reloading(text(fake.url, more=breaker, server=", retries: 0"))
    one.door.request("POST", CHAT, {**HI, "model": "auto"})
    fake.script(FakeReply(status=500))
    one.door.request("POST", CHAT, HI)
    one.reload(text(fake.url, more=breaker, server=", retries: 0, deadline: 5"))
    status, headers, content = one.door.request("POST", CHAT, {**HI, "model": "auto"})
    assert (status, json.loads(content)["error"]["code"], int(headers["retry-after"]) > 60) == (503, "backends_busy", True)
    assert one.door.told(3)[2].decision.cached
    assert one.metric(f'fingerpost_circuit_state{{backend="b0",url="127.0.0.1:{fake.port}/v1"}}') == 2
    assert one.metric('fingerpost_attempts_total{backend="b0",status="200"}') == 1
    one.reload(text(fake.url, server=", retries: 0"))
    assert one.door.request("POST", CHAT, HI)[0] == 200


def test_what_a_reload_cannot_change_is_warned_of(
    reloading: Callable[..., Reloading], fake: FakeBackend, caplog: pytest.LogCaptureFixture
) -> None:
    one = reloading(text(fake.url))
    one.reload(text(fake.url).replace("port: 0", "port: 12345"))
    assert "server.port has changed in" in caplog.text
    assert one.door.request("GET", "/health")[0] == 200


def test_a_file_that_is_not_followed_is_read_when_somebody_asks(
    reloading: Callable[..., Reloading], fake: FakeBackend, eventually: Until
) -> None:
    one = reloading(text(fake.url, server=", reload: false"))
    one.write(text(fake.url, route="talk", server=", reload: false"))
    for _ in range(10):
        one.readyz()
    threading.Event().wait(0.2)
    assert one.upkeep.world is one.first
    one.upkeep.ask()
    eventually(lambda: one.upkeep.world is not one.first)
    assert one.door.request("POST", CHAT, {**HI, "model": "talk"})[0] == 200


def test_backends_are_probed_while_serving_and_by_the_new_settings_after_a_reload(
    reloading: Callable[..., Reloading], fake: FakeBackend, eventually: Until
) -> None:
    one = reloading(text(fake.url, more=", health: {path: /alive, every: 0.02}"))
    eventually(lambda: len(fake.requests) > 3)
    assert {(request.method, request.target) for request in fake.requests} == {("GET", "/v1/alive")}
    one.reload(text(fake.url, more=", health: {path: /well, every: 0.02}"))
    eventually(lambda: fake.requests[-1].target == "/v1/well")
    fake.requests.clear()
    eventually(lambda: len(fake.requests) > 3)
    assert {request.target for request in fake.requests} == {"/v1/well"}


async def test_a_defect_in_a_probe_ends_nothing(caplog: pytest.LogCaptureFixture, eventually: Until) -> None:
    world = small_world(health={"every": 0.01})

    async def broken() -> None:
        raise LookupError("canary")

    world.upstreams["b0"].probe = broken  # type: ignore[method-assign]
    keeping = asyncio.ensure_future(Upkeep(world).keep())
    await asyncio.to_thread(eventually, lambda: len(caplog.records) >= 3)
    assert not keeping.done()
    keeping.cancel()
    await asyncio.gather(keeping, return_exceptions=True)
    assert caplog.messages[0] == "the probe of b0 failed: LookupError"


async def test_the_upkeep_leaves_no_task_behind(eventually: Until) -> None:
    old = small_world(health={"every": 0.01})
    with old.gateway.carry(b"{}"):  # a request of the old world that does not end
        upkeep = Upkeep(old, Path("none"), lambda before: small_world(), every=0.01)
        before = asyncio.all_tasks()
        keeping = asyncio.ensure_future(upkeep.keep())
        upkeep.ask()
        await asyncio.to_thread(eventually, lambda: upkeep.world is not old)
        keeping.cancel()
        await asyncio.gather(keeping, return_exceptions=True)
        assert asyncio.all_tasks() == before
    await upkeep.world.gateway.aclose()


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="needs SIGHUP")
async def test_sighup_asks_for_a_reload(tmp_path: Path, eventually: Until) -> None:
    built: list[World] = []

    def rebuild(before: World) -> World:
        built.append(small_world())
        return built[-1]

    world = small_world()
    world = replace(world, config=world.config.model_copy(update={"server": ServerConfig(port=0)}))
    upkeep = Upkeep(world, tmp_path, rebuild)
    server = build_server(world, upkeep)
    serving = asyncio.ensure_future(server.serve())
    await asyncio.to_thread(eventually, lambda: server.listening)
    os.kill(os.getpid(), signal.SIGHUP)
    await asyncio.to_thread(eventually, lambda: upkeep.world is not world)
    server.should_exit = True
    await serving
    assert [one.gateway for one in built] == [upkeep.world.gateway]


def test_nothing_is_logged_of_a_quiet_upkeep(
    reloading: Callable[..., Reloading], fake: FakeBackend, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.DEBUG, "fingerpost"):
        one = reloading(text(fake.url))
        assert one.door.request("POST", CHAT, HI)[0] == 200
    assert caplog.messages == []
