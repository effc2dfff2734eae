"""The example with Arch-Router holds together, as far as can be seen without a container engine."""

from __future__ import annotations

import re
import shlex
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import yaml

from fingerpost import config
from fingerpost.assemble import build_world
from fingerpost.classifiers.arch import MODEL
from fingerpost.cli import main
from fingerpost.config.shape import ArchConfig, ChainConfig
from fingerpost.server.app import App

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "examples/arch-router"
COMPOSE: dict[str, Any] = yaml.safe_load((EXAMPLE / "compose.yaml").read_text(encoding="utf-8"))
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
LOADED = config.load(EXAMPLE / "fingerpost.yaml", {"OPENAI_API_KEY": "sk-test"}).config
PAGE = (ROOT / "docs/arch-router.md").read_text(encoding="utf-8")


def arch() -> ArchConfig:
    assert isinstance(LOADED.classifier, ChainConfig)
    first, last = LOADED.classifier.of
    assert first.use == "embedded"
    assert 0 < first.threshold < 1
    assert isinstance(last, ArchConfig)
    return last


def flags(command: list[str]) -> dict[str, str]:
    return {name: value for name, value in pairwise(command) if name.startswith("--")}


def paths() -> set[str]:
    return {path for _, path in App(build_world(LOADED, []))._doors}


def test_the_configuration_passes_check(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-test")
    assert main(["check", str(EXAMPLE / "fingerpost.yaml")]) == 0
    assert "sk-test" not in capsys.readouterr().out


@pytest.mark.parametrize("name", SERVICES)
def test_every_image_is_named_with_its_version(name: str) -> None:
    assert re.fullmatch(r"[\w./-]+:v?\d+\.\d+\.\d+", SERVICES[name]["image"])


@pytest.mark.parametrize("name", SERVICES)
def test_every_service_is_checked_and_comes_back(name: str) -> None:
    assert SERVICES[name]["healthcheck"]["test"][0] == "CMD"
    assert SERVICES[name]["restart"] == "unless-stopped"


@pytest.mark.parametrize("name", SERVICES)
def test_what_is_mounted_is_there(name: str) -> None:
    for volume in SERVICES[name]["volumes"]:
        source = volume.split(":")[0]
        assert (EXAMPLE / source).is_file() if source.startswith(".") else source in COMPOSE["volumes"]


def test_only_the_model_needs_a_gpu_and_nothing_waits_for_it() -> None:
    assert [name for name, service in SERVICES.items() if service.get("profiles") == ["gpu"]] == ["arch-router"]
    assert not any("profiles" in service for name, service in SERVICES.items() if name != "arch-router")
    assert not any("depends_on" in service for service in SERVICES.values())


def test_fingerpost_is_reached_and_checked_where_it_listens() -> None:
    service, server = SERVICES["fingerpost"], LOADED.server
    assert server.host == "0.0.0.0"
    assert service["ports"] == [f"127.0.0.1:{server.port}:{server.port}"]
    (port, path), = re.findall(r"http://localhost:(\d+)(/\w+)", service["healthcheck"]["test"][-1])  # fmt: skip
    assert int(port) == server.port
    assert path in paths()
    assert any(mount.split(":")[1] == service["command"][1] for mount in service["volumes"])
    assert float(service["stop_grace_period"].rstrip("s")) > server.drain
    assert "OPENAI_API_KEY" in service["environment"]
    assert (EXAMPLE / service["build"] / "Dockerfile").is_file()


def test_arch_router_is_asked_where_it_is_served() -> None:
    given = flags(SERVICES["arch-router"]["command"])
    assert arch().url == f"http://arch-router:{given['--port']}/v1"
    assert arch().model == given["--model"] == MODEL
    assert f"localhost:{given['--port']}/health" in SERVICES["arch-router"]["healthcheck"]["test"][-1]
    # The prompt is the conversation and about 400 tokens of instructions; half of the rest is left for the routes.
    assert int(given["--max-model-len"]) >= 2 * (arch().budget + 400)


def test_prometheus_looks_where_the_metrics_are() -> None:
    found = yaml.safe_load((EXAMPLE / "prometheus.yml").read_text(encoding="utf-8"))["scrape_configs"]
    targets = {job["job_name"]: (job["static_configs"][0]["targets"], job["metrics_path"]) for job in found}
    admin = LOADED.server.admin
    assert (admin.host, targets["fingerpost"]) == ("0.0.0.0", ([f"fingerpost:{admin.port}"], "/metrics"))
    assert not any(str(admin.port) in port for port in SERVICES["fingerpost"]["ports"])
    assert "/metrics" in paths()
    assert targets["arch-router"][0] == [f"arch-router:{flags(SERVICES['arch-router']['command'])['--port']}"]


def test_the_plain_commands_start_the_same_server() -> None:
    image, command = SERVICES["arch-router"]["image"], SERVICES["arch-router"]["command"]
    lines = [shlex.split(line) for line in re.findall(r"^\$ (.*)$", PAGE.replace("\\\n", " "), re.MULTILINE)]
    docker = next(line for line in lines if line[:2] == ["docker", "run"])
    plain = next(line for line in lines if line[:2] == ["vllm", "serve"])
    assert docker[docker.index(image) + 1 :] == command
    assert plain[2] == MODEL
    assert flags(plain) == {name: value for name, value in flags(command).items() if name != "--model"}
