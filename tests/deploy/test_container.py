"""The container image as far as it can be tried without an engine: what its build installs, run as the image would run it."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DOCKERFILE = (ROOT / "Dockerfile").read_text(encoding="utf-8")
BASE_MB, LIMIT_MB = 60, 300
"""The base image's contents (its Debian packages state 56 MB as installed), and what all layers together may hold."""


@pytest.fixture(scope="module")
def image() -> Iterator[Path]:
    """The directory /fingerpost of the image, made by the build's own script; whatever runs there leaves it as it is."""
    with tempfile.TemporaryDirectory(prefix="fingerpost-image-") as folder:
        target = built(Path(folder))
        before = contents(target)
        yield target
        assert contents(target) == before, "the image's file system must be able to be read-only"


def built(folder: Path) -> Path:
    source, target = folder / "build", folder / "image"
    source.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    shutil.copytree(ROOT / "src", source / "src", ignore=shutil.ignore_patterns("__pycache__"))
    python = Path(sys.executable).parent
    subprocess.run(
        ["sh", str(ROOT / "deploy/container/install"), str(target)],
        cwd=source,
        check=True,
        env={"PATH": f"{python}:{os.defpath}", "HOME": str(folder)},
    )
    return target


def command(*arguments: str) -> list[str]:
    """The image's entry point with this Python."""
    entry = json.loads(re.search(r"^ENTRYPOINT (\[.*\])$", DOCKERFILE, re.MULTILINE)[1])
    assert entry[0] == "/usr/bin/python3"
    return [os.path.realpath(sys.executable), *entry[1:], *arguments]


def contents(image: Path) -> set[tuple[Path, int, int]]:
    """Every file with its size and when it was written."""
    stats = ((file, file.stat()) for file in image.rglob("*"))
    return {(file, stat.st_size, stat.st_mtime_ns) for file, stat in stats}


def surroundings(image: Path) -> dict[str, str]:
    """The environment of a container: no home, no site-packages, nothing of ours."""
    return {"PYTHONPATH": str(image), "PYTHONDONTWRITEBYTECODE": "1"}


def test_the_layers_hold_less_than_300_mb(image):
    files = [file for file in image.rglob("*") if file.is_file() and not file.is_symlink()]

    # A file takes whole blocks of 4 KB.
    assert sum(-(-file.stat().st_size // 4096) * 4096 for file in files) / 1e6 < LIMIT_MB - BASE_MB


def test_it_decides_without_site_packages_and_a_home(image):
    run = subprocess.run(
        command("route", "You missed two of them.", "--json"),
        env=surroundings(image),
        cwd="/",
        capture_output=True,
        text=True,
        check=False,
    )

    assert run.stderr == ""
    assert json.loads(run.stdout)["route"] == "try_again"


def test_it_serves_and_passes_its_own_health_check(image):
    config = image / "fingerpost/default.yaml"
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environ = surroundings(image) | dict.fromkeys(re.findall(r"\$\{(\w+)\}", config.read_text(encoding="utf-8")), "unused")
    with subprocess.Popen(command("serve", str(config), "--port", str(port)), env=environ, cwd="/") as server:
        try:
            wait_for(f"http://127.0.0.1:{port}/health")
            check = json.loads(re.search(r"CMD (\[.*urlopen.*\])$", DOCKERFILE, re.MULTILINE)[1])
            check = [part.replace("8080", str(port)) for part in check[1:]]
            healthy = subprocess.run([os.path.realpath(sys.executable), *check], check=False)
        finally:
            server.terminate()

    assert healthy.returncode == 0
    assert server.returncode == 0


def wait_for(url: str) -> None:
    end = time.perf_counter() + 30
    while True:
        try:
            with urllib.request.urlopen(url, timeout=5):
                return
        except urllib.error.URLError:
            assert time.perf_counter() < end, f"{url} does not answer"
            time.sleep(0.05)


def test_the_image_runs_as_nobody_from_pinned_bases():
    stages = re.findall(r"^FROM (\S+)", DOCKERFILE, re.MULTILINE)

    assert len(stages) == 2
    assert all(re.search(r":[\w.-]+$", stage) and not stage.endswith(":latest") for stage in stages)
    assert re.search(r"^USER 65532:65532$", DOCKERFILE, re.MULTILINE)
    assert re.search(r"^EXPOSE 8080$", DOCKERFILE, re.MULTILINE)


def test_the_build_context_holds_everything_that_is_copied_and_no_secrets():
    ignored = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    copied = [path for line in re.findall(r"^COPY (?!--from)(.*)$", DOCKERFILE, re.MULTILINE) for path in line.split()[:-1]]

    assert ignored[0] == "*"
    assert copied
    assert all(f"!{path}" in ignored and (ROOT / path).exists() for path in copied)
