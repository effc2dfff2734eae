"""Every page of docs/clients, run as it stands with the real client against a real server."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from fingerpost.testing import FakeBackend, FakeReply, Received

ROOT = Path(__file__).parents[2]
PAGES = ROOT / "docs/clients"
CLIENTS = ROOT / ".venv-clients/bin"
SAID = "The capital of France is Paris."
ADDRESS = "http://127.0.0.1:8080"

needs_clients = pytest.mark.skipif(not CLIENTS.exists(), reason="scripts/test-clients installs the clients")


def answer(request: Received) -> FakeReply:
    """What a model would say: a tool call where tools are offered, JSON where a schema is asked for, else a sentence."""
    if request.json.get("tools"):
        return FakeReply(tool_call=("get_weather", {"city": "Paris"}))
    if request.json.get("response_format"):
        return FakeReply(text=json.dumps({"name": "Paris", "country": "France"}))
    return FakeReply(text=SAID)


@pytest.fixture
def fake() -> Iterator[FakeBackend]:
    with FakeBackend(default=answer) as backend:
        yield backend


def blocks(page: str, kind: str) -> list[str]:
    return re.findall(rf"```{kind}\n(.*?)```", (PAGES / page).read_text(encoding="utf-8"), re.DOTALL)


def run(command: list[str], folder: Path) -> str:
    """What the command prints; it must end well and complain of nothing."""
    environ = {"HOME": str(folder), "LLM_USER_PATH": str(folder), "PATH": f"{CLIENTS}:/usr/bin:/bin"}
    done = subprocess.run(command, env=environ, cwd=folder, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def python_of(page: str) -> str:
    """The openai package is there for all tests; the other clients have an environment of their own."""
    return sys.executable if page == "openai.md" else str(CLIENTS / "python")


@pytest.mark.parametrize(
    ("page", "number", "said"),
    [
        ("openai.md", 0, ["chat -> b0", SAID, SAID]),
        ("openai.md", 1, ["name='Paris' country='France'"]),
        ("openai.md", 2, ['{"city": "Paris"}']),
        pytest.param("langchain.md", 0, [f"chat -> {SAID}", SAID, "name='Paris' country='France'", "{'city': 'Paris'}"],
                     marks=needs_clients),
        pytest.param("llamaindex.md", 0, [SAID, SAID, SAID], marks=needs_clients),
        pytest.param("pydantic-ai.md", 0, [SAID, "name='Paris' country='France'"], marks=needs_clients),
    ],
)  # fmt: skip
def test_python_pages(serving, tmp_path, page, number, said):
    one = serving()
    code = blocks(page, "python")[number].replace(ADDRESS, one.url)

    assert run([python_of(page), "-c", code], tmp_path).splitlines() == said
    assert all(exchange.outcome == "completed" for exchange in one.told())


@needs_clients
def test_the_llm_page(serving, tmp_path):
    one = serving()
    (tmp_path / "extra-openai-models.yaml").write_text(blocks("llm.md", "yaml")[0].replace(ADDRESS, one.url), encoding="utf-8")
    key, *asks = [shlex.split(line.removeprefix("$ ")) for line in blocks("llm.md", "console")[0].splitlines()]

    run(key, tmp_path)
    assert [run(ask, tmp_path).strip() for ask in asks] == [SAID, SAID]
    assert [exchange.stream for exchange in one.told(2)] == [True, False]


@pytest.mark.skipif(shutil.which("curl") is None, reason="there is no curl")
def test_the_curl_page(serving, tmp_path):
    one = serving()
    commands = [shlex.split(block.replace(ADDRESS, one.url).removeprefix("$ ")) for block in blocks("curl.md", "console")]

    whole, stream, decision = (run(with_json(command), tmp_path) for command in commands)

    assert "x-fingerpost-route: chat" in whole
    assert SAID in whole
    assert stream.endswith("data: [DONE]\n\n")
    assert json.loads(decision)["route"] == "chat"


def with_json(command: list[str]) -> list[str]:
    """`--json` spelled out, for a curl that is older than it."""
    place = command.index("--json")
    header = ["--header", "content-type: application/json"]
    return [*command[:place], *header, "--data", *command[place + 1 :]]


def test_every_page_is_run():
    assert {page.name for page in PAGES.glob("*.md")} == {
        "openai.md", "langchain.md", "llamaindex.md", "pydantic-ai.md", "llm.md", "curl.md",
    }  # fmt: skip
