"""A fingerpost that serves, and the peers' own clients in environments of their own, made by scripts/test-interop."""

from __future__ import annotations

import json
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from fingerpost.assemble import build_world
from fingerpost.config.shape import Config
from fingerpost.server.serve import build_server

ROOT = Path(__file__).parents[1]
KEYS = {"JEV_KEY": "unused", "OPENROUTER_API_KEY": "unused", "ANTHROPIC_API_KEY": "unused"}
CONFIG = {
    "backends": [
        {"name": "weak", "model": "small-model", "url": "http://127.0.0.1:9/v1"},
        {"name": "strong", "model": "big-model", "url": "http://127.0.0.1:9/v1"},
    ],
    "routes": [
        {"name": "direct", "description": "Small talk.", "backends": ["weak"]},
        {"name": "mixed", "description": "A hard question.", "backends": ["weak", "strong"]},
        {"name": "other", "backends": ["weak"]},
    ],
    "server": {"port": 0},
}
"""The same targets and routes as switchyard.toml."""


@pytest.fixture(scope="session")
def url() -> Iterator[str]:
    server = build_server(build_world(Config.model_validate(CONFIG), []))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    end = time.perf_counter() + 60
    while not server.started and time.perf_counter() < end:
        time.sleep(0.01)
    yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    server.should_exit = True
    thread.join(30)


@pytest.fixture(scope="session")
def in_environment() -> Callable[..., Any]:
    """Runs one of this folder's scripts in a peer's environment; the JSON that it prints."""

    def run(peer: str, script: str, *arguments: str, given: Any) -> Any:
        python = ROOT / f".venv-interop-{peer}/bin/python"
        ran = subprocess.run(
            [python, Path(__file__).with_name(script), *arguments],
            input=json.dumps(given), capture_output=True, text=True, timeout=300, check=False,
            env={"PATH": "/usr/bin:/bin", "LITELLM_LOCAL_MODEL_COST_MAP": "True", **KEYS},
        )  # fmt: skip
        assert ran.returncode == 0, ran.stderr[-3000:]
        return json.loads(ran.stdout)

    return run


@pytest.fixture(scope="session")
def record() -> Callable[[str, dict[str, Any]], None]:
    """Writes exchanges with a peer where the normal tests replay them."""

    def write(name: str, recorded: dict[str, Any]) -> None:
        path = ROOT / "tests/server/recorded" / name
        path.write_text(json.dumps(recorded, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")

    return write
