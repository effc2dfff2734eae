"""`python -m fingerpost serve --workers 2` as operators run it."""

from __future__ import annotations

import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest

from fingerpost.testing import FakeBackend, FakeReply

CHAT = "/v1/chat/completions"
STREAM = {"model": "auto", "messages": [{"role": "user", "content": "hi"}], "stream": True}
CONFIG = """
backends:
  - {{name: small, model: m, url: "{url}", key: "${{CANARY_KEY}}"}}
routes:
  - {{name: chat, description: Small talk., backends: [small]}}
  - {{name: other, backends: [small]}}
classifier: {{use: fixed, route: chat}}
server: {{port: 0}}
"""


@pytest.fixture
def file(fake: FakeBackend, tmp_path: Path) -> Path:
    path = tmp_path / "fingerpost.yaml"
    path.write_text(CONFIG.format(url=fake.url), encoding="utf-8")
    return path


class Parent:
    """A parent process in a process group of its own, as a shell gives one; `said` is what it has said until it listened."""

    def __init__(self, file: Path, *arguments: str) -> None:
        self.running = subprocess.Popen(
            [sys.executable, "-m", "fingerpost", "serve", str(file), "--workers", "2", *arguments],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, process_group=0, cwd=file.parent,
            env={"CANARY_KEY": "canary-key", "PATH": "", "HOME": str(file.parent)},
        )  # fmt: skip
        self.said, self.port = "", 0
        assert self.running.stderr is not None
        for line in self.running.stderr:
            self.said += line
            if listening := re.search(r"listens on http://127\.0\.0\.1:(\d+)$", line):
                self.port = int(listening[1])
                break

    def ask(self, body: Any) -> tuple[int, bytes]:
        with closing(http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)) as client:
            client.request("POST", CHAT, json.dumps(body))
            with client.getresponse() as answer:
                return answer.status, answer.read()


@contextmanager
def parent(file: Path, *arguments: str) -> Iterator[Parent]:
    one = Parent(file, *arguments)
    try:
        yield one
    finally:
        if one.running.poll() is None:
            one.running.kill()
        one.running.communicate()


def test_ctrl_c_in_a_terminal_lets_streams_finish_and_the_exit_code_is_0(
    file: Path, fake: FakeBackend, eventually: Callable[..., None]
) -> None:
    fake.default = FakeReply("one two three four", pause=0.15)
    with parent(file) as one:
        answers: list[Any] = []
        asking = [threading.Thread(target=lambda: answers.append(one.ask(STREAM))) for _ in range(4)]
        for thread in asking:
            thread.start()
        eventually(lambda: len(fake.requests) == 4)
        os.killpg(one.running.pid, signal.SIGINT)
        for thread in asking:
            thread.join()
        told, said = one.running.communicate(timeout=30)
    assert [content[-16:] for _, content in answers] == [b"\n\ndata: [DONE]\n\n"] * 4
    assert one.running.returncode == 0
    assert [json.loads(line)["outcome"] for line in told.splitlines()] == ["completed"] * 4
    assert (one.said.count("listens"), said) == (1, "")
    assert {request.headers["authorization"] for request in fake.requests} == {"Bearer canary-key"}


def test_workers_whose_parent_was_killed_finish_and_end(file: Path, fake: FakeBackend, eventually: Callable[..., None]) -> None:
    fake.default = FakeReply("one two three four", pause=0.15)
    with parent(file) as one:
        answers: list[Any] = []
        asking = threading.Thread(target=lambda: answers.append(one.ask(STREAM)))
        asking.start()
        eventually(lambda: fake.requests)
        one.running.kill()
        asking.join()
        one.running.communicate(timeout=30)  # it ends when nobody holds its standard error any more
    assert answers[0][1].endswith(b"data: [DONE]\n\n")
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", one.port))


def test_a_mistake_is_told_once_with_exit_code_2(file: Path) -> None:
    file.write_text(file.read_text(encoding="utf-8").replace("model: m,", ""), encoding="utf-8")
    with parent(file) as one:
        assert one.running.wait(30) == 2
    assert one.said.count("backends[0].model: this key is required") == 1
    assert (one.said.count("warning: "), one.said.count("\n")) == (1, 2)


def test_warnings_are_told_once_and_a_classifier_beside_the_file_is_found(file: Path) -> None:
    (file.parent / "mine.py").write_text(
        "from fingerpost.classifiers.fixed import Fixed\n\ndef build():\n    return Fixed('chat', 1.0)\n", encoding="utf-8"
    )
    text = file.read_text(encoding="utf-8").replace("{use: fixed, route: chat}", "{use: 'mine:build'}")
    file.write_text(text, encoding="utf-8")
    with parent(file) as one:
        assert one.ask(STREAM)[0] == 200
    assert one.said.count("warning: ") == one.said.count("no backend accepts images") == 1


@pytest.mark.parametrize("wrong", ["0", "many", "257"])
def test_a_number_that_is_none_is_said_plainly(file: Path, wrong: str) -> None:
    ran = subprocess.run(
        [sys.executable, "-m", "fingerpost", "serve", str(file), "--workers", wrong],
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 2
    assert f"'{wrong}' is no number of workers; use 1 to 256" in ran.stderr
