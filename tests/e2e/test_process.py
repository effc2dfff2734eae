"""`python -m fingerpost serve FILE` as operators run it: signals, ports, and what it writes."""

from __future__ import annotations

import http.client
import json
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest

from fingerpost.testing import FakeBackend, FakeReply

CHAT = "/v1/chat/completions"
HI = {"messages": [{"role": "user", "content": "canary-prompt"}]}
CONFIG = """
backends:
  - {{name: small, model: m, url: "{url}", key: "${{CANARY_KEY}}", accepts: [text, image]}}
routes:
  - {{name: chat, description: Small talk., backends: [small]}}
  - {{name: other, backends: [small]}}
classifier: {{use: fixed, route: chat}}
server: {{port: 0, retries: 0, max_body: 100000}}
"""


class Process:
    """A serving process; `told` are the lines that it has written to standard output, `said` those to standard error."""

    def __init__(self, file: Path, *arguments: str) -> None:
        self.running = subprocess.Popen(
            [sys.executable, "-m", "fingerpost", "serve", str(file), *arguments],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=file.parent,
            env={"CANARY_KEY": "canary-key", "PATH": "", "HOME": str(file.parent)},
        )  # fmt: skip
        self.said = ""
        assert self.running.stderr is not None
        for line in self.running.stderr:
            self.said += line
            if listening := re.search(r"listens on http://127\.0\.0\.1:(\d+)$", line):
                self.port = int(listening[1])
                break

    def ask(self, method: str, path: str, body: Any = None, **headers: str) -> tuple[int, bytes]:
        with closing(http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)) as client:
            client.request(method, path, body if isinstance(body, bytes | None) else json.dumps(body), headers)
            with client.getresponse() as answer:
                return answer.status, answer.read()

    def end(self, number: int = signal.SIGTERM) -> int:
        """Its exit code after a signal; `told` and `said` are complete then."""
        self.running.send_signal(number)
        told, said = self.running.communicate(timeout=30)
        self.told = [json.loads(line) for line in told.splitlines()]
        self.said += said
        return self.running.returncode


@pytest.fixture
def file(fake: FakeBackend, tmp_path: Path) -> Path:
    path = tmp_path / "fingerpost.yaml"
    path.write_text(CONFIG.format(url=fake.url), encoding="utf-8")
    return path


@contextmanager
def serving(file: Path, *arguments: str) -> Iterator[Process]:
    process = Process(file, *arguments)
    try:
        yield process
    finally:
        if process.running.poll() is None:
            process.running.kill()
            process.running.communicate()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_lets_a_running_stream_finish_and_the_exit_code_is_0(file: Path, fake: FakeBackend, number: int) -> None:
    fake.default = FakeReply("one two three four", pause=0.15)
    with serving(file) as process, closing(http.client.HTTPConnection("127.0.0.1", process.port, timeout=30)) as client:
        client.request("POST", CHAT, json.dumps({**HI, "stream": True}))
        answer = client.getresponse()
        first = answer.read1(100)
        ending: list[int] = []
        waiting = threading.Thread(target=lambda: ending.append(process.end(number)))
        waiting.start()
        rest = answer.read()
        waiting.join()
    assert b"[DONE]" not in first
    assert rest.endswith(b"data: [DONE]\n\n")
    assert ending == [0]
    assert [line["outcome"] for line in process.told] == ["completed"]
    assert "Traceback" not in process.said


@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_reload_that_is_asked_for_while_it_starts_waits_until_it_can_be_done(file: Path, workers: str) -> None:
    (file.parent / "mine.py").write_text("""
import os, signal
from fingerpost.classifiers.fixed import Fixed

def build():
    if not os.path.exists("asked"):
        open("asked", "w").close()
        os.kill(os.getpid(), signal.SIGHUP)
    return Fixed("chat", 1.0)
""", encoding="utf-8")  # fmt: skip
    text = file.read_text(encoding="utf-8").replace("{use: fixed, route: chat}", "{use: 'mine:build'}")
    file.write_text(text, encoding="utf-8")
    with serving(file, "--workers", workers) as process:
        assert process.running.stderr is not None
        while "fingerpost reloaded" not in process.said:
            line = process.running.stderr.readline()
            assert line, process.said
            process.said += line
        assert process.ask("GET", "/readyz")[0] == 200
        assert process.end() == 0


def test_port_0_on_the_command_line_is_a_free_port_that_is_said(file: Path) -> None:
    with serving(file, "--port", "0", "--host", "127.0.0.1") as process:
        assert process.ask("GET", "/readyz")[0] == 200
        assert process.end() == 0


def test_a_taken_port_is_said_plainly_with_exit_code_1(file: Path) -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as taken:
        port = taken.getsockname()[1]
        process = Process(file, "--port", str(port))
        assert process.running.wait(30) == 1
        process.running.communicate()
    assert f"could not start on 127.0.0.1:{port}" in process.said
    assert "Traceback" not in process.said


def test_keys_and_prompts_are_in_neither_log_nor_metrics_nor_errors(file: Path, fake: FakeBackend) -> None:
    canary = "canary-prompt " * 20
    bodies: list[Any] = [
        HI,
        {**HI, "stream": True},
        {"messages": [{"role": "system", "content": canary}, {"role": "user", "content": [{"type": "text", "text": canary}]}]},
        {"messages": [{"role": "canary-prompt", "content": canary}]},
        {"messages": [{"role": "user", "content": [{"type": "text", "text": {"canary": 1}}]}]},
        {"messages": [{"role": "user", "content": [{"type": "input_audio", "input_audio": {"data": canary}}]}]},
        {**HI, "fingerpost": {"canary-prompt": canary}},
        {**HI, "tools": [{"function": {"name": "canary-tool", "description": canary}}], "metadata": {"user": canary}},
        b'{"messages": "canary-prompt',
        b"canary" * 20_000,
    ]
    with serving(file) as process:
        fake.script(FakeReply(canary), FakeReply(canary, cut_after=3), FakeReply(canary, status=500))
        answers = [process.ask("POST", path, body, authorization="Bearer canary-client")[1]
                   for path in (CHAT, "/v1/route", "/sfc_router/chat/completions") for body in bodies]  # fmt: skip
        fake.stop()
        answers.append(process.ask("POST", CHAT, HI)[1])
        metrics = process.ask("GET", "/metrics")[1].decode()
        assert process.end() == 0
    assert fake.requests[0].headers["authorization"] == "Bearer canary-key"
    assert len(process.told) == 3 * len(bodies) + 1
    assert {line["outcome"] for line in process.told} == {"completed", "cut", "rejected", "failed"}
    assert "canary" not in json.dumps(process.told)
    assert "canary" not in metrics
    assert "canary" not in process.said
    assert not any(b"canary-key" in answer or b"canary-client" in answer for answer in answers)


def test_sighup_reloads_the_file_and_a_bad_one_is_said_and_changes_nothing(file: Path) -> None:
    good = file.read_text(encoding="utf-8")

    def until(process: Process, wanted: str) -> bytes:
        found = b""
        for _ in range(400):
            found = process.ask("GET", "/readyz")[1] + process.ask("GET", "/v1/models")[1]
            if wanted.encode() in found:
                break
            time.sleep(0.02)
        return found

    with serving(file) as process:
        file.write_text("backends: canary", encoding="utf-8")
        process.running.send_signal(signal.SIGHUP)
        assert b'"chat"' in until(process, "the last reload failed")
        file.write_text(good.replace("chat", "talk"), encoding="utf-8")
        process.running.send_signal(signal.SIGHUP)
        assert b'"talk"' in until(process, '"config":"ok"')
        assert process.ask("POST", CHAT, HI)[0] == 200
        assert process.end() == 0
    assert (
        f"{file} was not reloaded, the last good configuration stays: {file}:1: backends: this should be a list" in process.said
    )
    assert f"fingerpost reloaded {file}" in process.said
    assert [line["route"] for line in process.told] == ["talk"]


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read from /proc")
def test_a_server_that_has_decided_holds_less_than_300_mb(file: Path) -> None:
    file.write_text(file.read_text(encoding="utf-8").replace("{use: fixed, route: chat}", "embedded"), encoding="utf-8")
    with serving(file) as process:
        status, _ = process.ask("POST", CHAT, {**HI, "model": "auto"})
        memory = Path(f"/proc/{process.running.pid}/status").read_text(encoding="utf-8")
    assert status == 200
    assert int(re.search(r"VmHWM:\s+(\d+) kB", memory)[1]) < 300_000
