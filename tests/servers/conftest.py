"""Real inference servers on CPU that serve the toy Arch-Router: `scripts/test-vllm` and `scripts/test-llamacpp` start one each.

The normal tests replay what they said (tests/golden), so that they need neither.
"""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from fingerpost.classifiers.arch import MODEL, Arch
from fingerpost.routes import Backend
from fingerpost.upstreams.http1 import Http1Upstream

ROOT = Path(__file__).parents[2]
TOY = ROOT / "build/arch-toy"

VLLM = ["env", "HF_HUB_OFFLINE=1", "VLLM_CPU_KVCACHE_SPACE=1", "VLLM_NO_USAGE_STATS=1", "DO_NOT_TRACK=1"]
VLLM += [ROOT / ".venv-vllm/bin/python", "-m", "vllm.entrypoints.openai.api_server", "--model", TOY, "--enforce-eager"]
VLLM += ["--served-model-name", MODEL, "--host", "127.0.0.1", "--max-model-len", "2048", "--port"]
LLAMACPP = [ROOT / ".venv-llamacpp/bin/python", Path(__file__).with_name("serve_llamacpp.py"), TOY / "model.gguf", MODEL]
COMMANDS: dict[str, list[Any]] = {"vllm": VLLM, "llamacpp": LLAMACPP}
"""How each server starts; its port comes last."""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--server", choices=[*COMMANDS], default="vllm", help="the server to ask")
    parser.addoption("--record", action="store_true", help="write what the server says to tests/golden")
    parser.addoption("--port", type=int, help="ask the server that listens there; without it, one is started")


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """What only one of the servers has is in a file of its name."""
    others = [f"test_{name}.py" for name in COMMANDS if name != config.getoption("--server")]
    return True if collection_path.name in others else None


class Server:
    """The server as a process group of its own, which a signal reaches whole; or one that somebody else has started."""

    def __init__(self, name: str, port: int | None = None) -> None:
        if port is None:
            with socket.create_server(("127.0.0.1", 0)) as free:
                port = free.getsockname()[1]
        self.name = name
        self.port = port
        self.root = f"http://127.0.0.1:{self.port}"
        self.url = f"{self.root}/v1"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        with (ROOT / f"build/{self.name}.log").open("ab") as log:
            command = [*COMMANDS[self.name], str(self.port)]
            self._process = subprocess.Popen(command, stdout=log, stderr=log, cwd=ROOT / "build", start_new_session=True)

    @property
    def is_own(self) -> bool:
        """Whether it may be killed."""
        return self._process is not None

    def is_ready(self) -> bool:
        assert self._process is None or self._process.poll() is None, f"the server ended; see build/{self.name}.log"
        try:
            with urllib.request.urlopen(f"{self.root}/health", timeout=5) as answer:
                return bool(answer.status == 200)
        except (urllib.error.URLError, OSError):
            return False

    def signal(self, kind: signal.Signals) -> None:
        assert self._process is not None
        os.killpg(self._process.pid, kind)
        if kind == signal.SIGKILL:
            self._process.wait(30)

    def stop(self) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(30)
            except subprocess.TimeoutExpired:
                self.signal(signal.SIGKILL)

    def metric(self, name: str) -> float:
        """The sum of a counter over its labels."""
        with urllib.request.urlopen(f"{self.root}/metrics", timeout=30) as answer:
            return sum(map(float, re.findall(rf"^{name}(?:\{{[^}}]*\}})? (\S+)$", answer.read().decode(), re.MULTILINE)))

    def post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        request = urllib.request.Request(f"{self.root}{path}", json.dumps(body).encode(), {"content-type": "application/json"})
        with urllib.request.urlopen(request, timeout=120) as answer:
            return dict(json.load(answer))


class Tap:
    """A loopback port in front of a server that keeps the bytes that pass."""

    def __init__(self, port: int) -> None:
        self._to = port
        self._sent, self._received = bytearray(), bytearray()
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listening.getsockname()[1]}/v1"
        threading.Thread(target=self._accept, daemon=True).start()

    def asked(self) -> str:
        """The body of the last request that passed."""
        return self._sent.decode().rpartition("\r\n\r\n")[2]

    @property
    def requests(self) -> int:
        """How many requests passed."""
        return self._sent.count(b"POST /v1/")

    def answered(self) -> str:
        """What the server said, from the status line on."""
        return self._received.decode()

    def close(self) -> None:
        self._listening.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listening.accept()
            except OSError:
                return
            server = socket.create_connection(("127.0.0.1", self._to))
            threading.Thread(target=self._carry, args=(client, server, self._sent), daemon=True).start()
            threading.Thread(target=self._carry, args=(server, client, self._received), daemon=True).start()

    def _carry(self, source: socket.socket, sink: socket.socket, kept: bytearray) -> None:
        try:
            while data := source.recv(1 << 16):
                kept += data
                sink.sendall(data)
            sink.shutdown(socket.SHUT_WR)
        except OSError:
            sink.close()


@pytest.fixture(scope="session")
def _server(request: pytest.FixtureRequest) -> Iterator[Server]:
    port = request.config.getoption("--port")
    server = Server(request.config.getoption("--server"), port)
    if port is None:
        server.start()
    yield server
    server.stop()


@pytest.fixture
def server(_server: Server, eventually: Callable[..., None]) -> Server:
    """The server, ready."""
    eventually(_server.is_ready, seconds=900)
    return _server


@pytest.fixture
def tap(server: Server) -> Iterator[Tap]:
    one = Tap(server.port)
    yield one
    one.close()


@pytest.fixture
def arch_at() -> Callable[..., Any]:
    """An Arch classifier at a URL, closed in the end; it waits as long as a busy machine takes."""

    @asynccontextmanager
    async def open_one(url: str, model: str = MODEL, **options: Any):
        backend = Backend("arch", model, url)
        classifier = Arch(backend, Http1Upstream(backend), **{"deadline": 120.0, **options})
        try:
            yield classifier
        finally:
            await classifier.aclose()

    return open_one
