"""Strings are planted wherever a secret or a prompt can stand, and looked for wherever they must not come out."""

from __future__ import annotations

import json
import logging
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import pytest

from fingerpost.assemble import build_world
from fingerpost.clients.keys import hash_of
from fingerpost.config.shape import Config
from fingerpost.records import Exchange
from fingerpost.testing import FakeBackend, FakeReply

CHAT = "/v1/chat/completions"
DOORS = (CHAT, "/v1/route", "/sfc_router/chat/completions")
CLIENT, ADMIN = "fp-canary-client", "fp-canary-admin"
PLUGIN = """
class Broken:
    name, deadline = "broken", None

    def __init__(self, secret, nested):
        self.secret = secret

    async def prepare(self, table):
        pass

    async def classify(self, conversation, table):
        if "classify" in conversation.text:
            raise RuntimeError(f"canary {self.secret} {conversation.text}")

    async def aclose(self):
        pass

def explode(**options):
    raise ValueError(f"bad {options}")
"""
CONFIG = """
backends:
  - name: small
    model: m
    url: "{url}"
    key: canary-backend-key
    headers: {{x-team: canary-header}}
    accepts: [text, image, tools]
  - {{name: walled, model: m, url: "http://127.0.0.1:9/walled/v1"}}
routes:
  - {{name: chat, description: canary-description, examples: [canary-example], backends: [small]}}
  - {{name: walled-in, backends: [walled]}}
  - {{name: other, backends: [small]}}
rules:
  - {{keywords: [canary-keyword], metadata: {{tier: canary-tier}}, route: chat}}
classifier: {{use: "canary_plugin:Broken", options: {{secret: canary-option, nested: [{{deep: canary-deep}}]}}}}
keys:
  - {{name: team, hash: "{client}", requests_per_minute: 100000, budget: {{usd: 1000000}}}}
limits: {{redis: "redis://:canary-redis@127.0.0.1:9/0", when_down: allow}}
server: {{port: 0, retries: 0, max_body: 100000, request_timeout: 1, admin: {{hash: "{admin}"}}}}
"""
SECRETS = (
    "canary-backend", "canary-header", "canary-client", "canary-usr7", "canary-pwd7", "canary-option", "canary-deep",
    "canary-redis", "canary-wrong", "canary-admin",
)  # fmt: skip
DEBUG = "import logging, sys; logging.basicConfig(level=1, stream=sys.stderr)\n"
START = "from fingerpost.cli import main; raise SystemExit(main(['serve', {file!r}]))"
TEXT = "canary-prompt " * 20


def prompts() -> Iterator[dict[str, Any] | bytes]:
    image = {"type": "image_url", "image_url": {"url": "http://canary-usr7:canary@canary-host/canary.png?canary=1"}}
    call = {"id": "canary-id", "type": "function", "function": {"name": "canary_tool", "arguments": '{"canary": 1}'}}
    tool = {"type": "function", "function": {"name": "canary_tool", "description": TEXT, "parameters": {"canary": 1}}}
    hi = [{"role": "user", "content": TEXT}]
    yield {"messages": hi}
    yield {"messages": hi, "stream": True}
    yield {"messages": hi, "model": "walled"}
    yield {"messages": [{"role": "user", "content": "classify " + TEXT}]}
    yield {"messages": [{"role": "user", "content": [image, {"type": "text", "text": TEXT}]}]}
    yield {"messages": [*hi, {"role": "assistant", "tool_calls": [call]}, {"role": "tool", "content": TEXT}], "tools": [tool]}
    yield {"messages": hi, "metadata": {"canary": TEXT}, "user": TEXT, "canary-field": {"canary": TEXT}}
    yield {"messages": [{"role": "canary-role", "content": TEXT}]}
    yield {"messages": [{"role": "user", "content": {"canary": 1}}]}
    yield {"messages": [{"role": "user", "content": [{"type": "text", "text": {"canary": TEXT}}]}]}
    yield {"messages": hi, "fingerpost": {"unknown": TEXT}}
    yield {"messages": hi, "fingerpost": {"routes": [{"name": "own", "description": TEXT, "backends": ["nowhere"]}]}}
    yield {"messages": TEXT}
    yield b'{"messages": "canary-prompt'
    yield b"canary" * 20_000
    yield b"\xff canary"


HEADERS = {
    "x-canary": "canary-value", "cookie": "canary=1", "user-agent": "canary-agent", "referer": "http://canary/",
    "traceparent": "canary-trace", "x-forwarded-for": "canary",
}  # fmt: skip
REPLIES = (
    FakeReply(TEXT), FakeReply(TEXT, cut_after=2), FakeReply(TEXT, status=500), FakeReply(TEXT, status=401),
    FakeReply(TEXT, headers={"x-canary": "canary-reply", "location": "http://canary/"}, status=302),
    FakeReply(raw=b"HTTP/1.1 canary nonsense\r\n\r\n"), FakeReply(raw=b"HTTP/1.1 200 X\r\ncanary\r\n\r\ncanary"),
)  # fmt: skip


class Process:
    def __init__(self, file: Path, debug: bool) -> None:
        code = (DEBUG if debug else "") + START.format(file=str(file))
        environ = {"PATH": "", "HOME": str(file.parent), **({"PYTHONASYNCIODEBUG": "1"} if debug else {})}
        self.running = subprocess.Popen(
            [sys.executable, "-c", code],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environ,
            cwd=file.parent,
        )
        self.said = ""
        assert self.running.stderr is not None
        for line in self.running.stderr:
            self.said += line
            if listening := re.search(r"listens on http://127\.0\.0\.1:(\d+)$", line):
                self.port = int(listening[1])
                break

    def ask(self, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None) -> tuple[int, bytes]:
        client = HTTPConnection("127.0.0.1", self.port, timeout=30)
        try:
            client.request(method, path, body if isinstance(body, bytes | None) else json.dumps(body), headers or {})
            with client.getresponse() as answer:
                return answer.status, str(answer.getheaders()).encode() + answer.read()
        except OSError as error:  # a reply that its backend cut
            return 0, str(error).encode()
        finally:
            client.close()


def write(tmp_path: Path, url: str) -> Path:
    (tmp_path / "canary_plugin.py").write_text(PLUGIN)
    file = tmp_path / "fingerpost.yaml"
    file.write_text(CONFIG.format(url=url, client=hash_of(CLIENT), admin=hash_of(ADMIN)), encoding="utf-8")
    return file


@contextmanager
def serving(file: Path, debug: bool) -> Iterator[Process]:
    process = Process(file, debug)
    try:
        yield process
    finally:
        if process.running.poll() is None:
            process.running.kill()
            process.running.communicate()


@pytest.mark.parametrize("debug", [False, True])
def test_nothing_that_was_planted_comes_out(tmp_path: Path, fake: FakeBackend, debug: bool) -> None:
    with serving(write(tmp_path, fake.url), debug) as process:
        key = {"authorization": f"Bearer {CLIENT}", **HEADERS}
        answers = []
        for reply in REPLIES:
            fake.script(reply, reply)
            answers += [process.ask("POST", CHAT, body, key) for body in ({"messages": [{"role": "user", "content": TEXT}]},)]
        for path in DOORS:
            for body in prompts():
                answers.append(process.ask("POST", path, body, key))
                answers.append(process.ask("POST", path, body, {"api-key": "fp-canary-wrong", **HEADERS}))
        answers.append(process.ask("POST", CHAT + "?key=canary-query", b"{}", key))
        answers.append(process.ask("GET", "/canary-path?canary=1", None, key))
        metrics = process.ask("GET", "/metrics", None, {"api-key": ADMIN})
        ready = process.ask("GET", "/readyz", None, {"api-key": ADMIN})
        wrong = process.ask("GET", "/metrics", None, {"api-key": "canary-wrong"})
        models = process.ask("GET", "/v1/models", None, key)
        process.running.terminate()
        told, said = process.running.communicate(timeout=30)
        said += process.said
    assert (process.running.returncode, metrics[0], ready[0], wrong[0], models[0]) == (0, 200, 200, 401, 200)
    lines = [json.loads(line) for line in told.splitlines()]
    assert {line["outcome"] for line in lines} >= {"completed", "rejected", "failed"}
    assert any("RuntimeError" in str(line["reason"]) for line in lines), "the plugin was to fail"
    assert fake.requests[0].headers["authorization"] == "Bearer canary-backend-key"
    for name, text in {
        "log": told, "standard error": said, "metrics": metrics[1].decode(), "readiness": ready[1].decode(),
        "the administrator's error": wrong[1].decode(), "models": models[1].decode(),
    }.items():  # fmt: skip
        assert "canary" not in text, f"{name}: {context(text)}"
    assert "Traceback" not in said
    for status, content in answers:
        for secret in SECRETS:
            assert secret.encode() not in content
        # What a client itself sent is not quoted either, but for names of fields, models and backends; a 200 passes.
        assert status in (0, 200) or b"canary" not in content, content


def context(text: str) -> str:
    place = text.find("canary")
    return text[max(0, place - 200) : place + 200]


@pytest.mark.parametrize(("find", "replace"), [
    ("canary_plugin:Broken", "canary_plugin:explode"), ("backends: [small]}", "backends: [nowhere]}"),
    ("port: 0", "port: canary-port"),
    ("model: m", "model: [canary-model]"), ("key: canary-backend-key", "key: [canary-backend-key]"),
    ("headers: {x-team: canary-header}", "headers: canary-header"), ("http://127.0.0.1:9/walled", "http://canary-usr7:canary-pwd7@127.0.0.1:9"),
    ("url: \"http:", "url: \"canary:"), ("sha256:", "canary-"), ("redis://", "canary://"), ("keys:", "kyes:"),
])  # fmt: skip
def test_no_mistake_in_the_configuration_quotes_a_secret_of_it(
    tmp_path: Path, fake: FakeBackend, find: str, replace: str
) -> None:
    file = write(tmp_path, fake.url)
    assert find in file.read_text()
    file.write_text(file.read_text().replace(find, replace))
    process = Process(file, debug=False)
    if process.running.poll() is None:
        process.running.terminate()
    _, said = process.running.communicate(timeout=30)
    said += process.said
    assert process.running.returncode == 2
    assert "Traceback" not in said
    for secret in (
        "backend-key",
        "canary-header",
        "pwd7",
        "canary-option",
        "canary-deep",
        "canary-redis",
        hash_of(CLIENT)[7:],
    ):
        assert secret not in said, context(said)


def test_an_observer_that_breaks_is_named_without_its_words(fake: FakeBackend, caplog: pytest.LogCaptureFixture) -> None:
    import asyncio

    class Broken:
        def observe(self, exchange: Exchange) -> None:
            raise RuntimeError(f"canary {exchange}")

    world = build_world(
        Config.model_validate({
            "backends": [{"name": "b", "model": "m", "url": fake.url, "key": "canary"}],
            "routes": [{"name": "other", "backends": ["b"]}], "classifier": {"use": "fixed", "route": "other"},
        }),
        [Broken()],
    )  # fmt: skip

    async def decide() -> None:
        await world.gateway.decide(b'{"messages":[{"role":"user","content":"canary"}]}')
        await world.gateway.aclose()

    with caplog.at_level(logging.DEBUG):
        asyncio.run(decide(), debug=True)
    assert "observer Broken failed: RuntimeError" in caplog.text
    assert "canary" not in caplog.text


def test_a_request_that_is_never_whole_leaves_no_trace_of_itself(
    door: Any, eventually: Callable[..., None], capfd: pytest.CaptureFixture[str]
) -> None:
    import socket

    for start in (
        b"POST /canary HTTP/1.1\r\nx: canary",
        b"POST /v1/route HTTP/1.1\r\ncontent-length: 99\r\n\r\n{canary",
        b"canary",
    ):
        with socket.create_connection(("127.0.0.1", door.port)) as client:
            client.sendall(start)
            time.sleep(0.05)
    eventually(lambda: not [c for c in door.server.server_state.connections if not c.transport.is_closing()])
    assert "canary" not in str(door.exchanges)
    assert "canary" not in "".join(capfd.readouterr())
