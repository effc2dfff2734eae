"""The Helm chart, rendered by Helm itself; what comes out is checked against Kubernetes' schemas."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from fingerpost import __version__
from fingerpost.config import load
from fingerpost.server.auth import check_exposure

kubernetes_validate = pytest.importorskip("kubernetes_validate")

CHART = Path(__file__).parents[2] / "deploy/helm/fingerpost"
HELM = Path(sys.executable).with_name("helm")
pytestmark = pytest.mark.skipif(not HELM.exists(), reason="the package helm-binary is for Linux on x86-64 only")


def helm(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([str(HELM), *arguments], capture_output=True, text=True, check=False)


def rendered(*arguments: str) -> dict[str, dict[str, Any]]:
    """The chart's objects by kind."""
    run = helm("template", "shop", str(CHART), *arguments)
    assert run.returncode == 0, run.stderr
    return {document["kind"]: document for document in yaml.safe_load_all(run.stdout) if document}


def test_helm_finds_nothing_wrong():
    run = helm("lint", "--strict", str(CHART))

    assert run.returncode == 0, run.stdout + run.stderr


@pytest.mark.parametrize("version", ["1.25", "1.30", "1.33"])
@pytest.mark.parametrize("arguments", [(), ("--set", "autoscaling.enabled=true,service.type=LoadBalancer,replicas=1")])
def test_kubernetes_accepts_every_object(version, arguments):
    objects = rendered(*arguments)

    assert {"ConfigMap", "Deployment", "Service"} < set(objects)
    for document in objects.values():
        kubernetes_validate.validate(document, version, strict=True)


def with_backend(folder: Path, **fields: str) -> str:
    """A file of values with one changed backend."""
    values = yaml.safe_load((CHART / "values.yaml").read_text(encoding="utf-8"))
    values["config"]["backends"][0] |= fields
    file = folder / "values.yaml"
    file.write_text(yaml.safe_dump(values), encoding="utf-8")
    return str(file)


def test_the_configuration_arrives_as_it_was_written(tmp_path):
    values = with_backend(tmp_path, key="${SMALL_KEY}")
    text = rendered("--values", values)["ConfigMap"]["data"]["fingerpost.yaml"]
    (tmp_path / "fingerpost.yaml").write_text(text, encoding="utf-8")

    config = load(tmp_path / "fingerpost.yaml", {"SMALL_KEY": "secret"}).config

    assert [backend.name for backend in config.backends] == ["small"]
    assert config.backends[0].key == "secret"
    check_exposure(config.model_copy(update={"server": config.server.model_copy(update={"host": "0.0.0.0"})}))
    assert "secret" not in text


def test_pods_are_the_container_image_with_no_right_that_it_does_not_need():
    pod = rendered()["Deployment"]["spec"]["template"]["spec"]
    [container] = pod["containers"]

    assert container["image"] == f"fingerpost:{__version__}"
    assert container["ports"] == [{"name": "http", "containerPort": 8080}, {"name": "metrics", "containerPort": 9090}]
    assert pod["securityContext"]["runAsUser"] == 65532
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }


def test_another_configuration_starts_new_pods(tmp_path):
    def checksum(*arguments: str) -> str:
        return rendered(*arguments)["Deployment"]["spec"]["template"]["metadata"]["annotations"]["checksum/config"]

    assert checksum() == checksum("--set", "replicas=5")
    assert checksum() != checksum("--values", with_backend(tmp_path, model="another"))


def test_metrics_are_scraped_from_the_pods_and_not_shown_by_the_service():
    objects = rendered("--set", "podMonitor.enabled=true")

    scraped = objects["PodMonitor"]["spec"]["podMetricsEndpoints"]
    assert scraped == [{"port": "metrics", "path": "/metrics", "interval": "15s"}]
    assert [port["name"] for port in objects["Service"]["spec"]["ports"]] == ["http"]


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ("replicas=-1", "replicas"),
        ("config.routes=null", "routes"),
        ("servicee.port=1", "servicee"),
        ("service.port=0", "port"),
    ],
)
def test_wrong_values_are_refused_by_name(wrong, said):
    run = helm("template", "shop", str(CHART), "--set", wrong)

    assert run.returncode != 0
    assert said in run.stderr


def test_the_charts_version_is_the_projects():
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text(encoding="utf-8"))

    assert chart["appVersion"] == chart["version"] == __version__
    assert json.loads((CHART / "values.schema.json").read_text(encoding="utf-8"))["required"] == ["config"]


def test_every_value_is_documented():
    documented = (Path(__file__).parents[2] / "docs/deploy.md").read_text(encoding="utf-8")
    values = yaml.safe_load((CHART / "values.yaml").read_text(encoding="utf-8"))

    assert all(f"`{name}" in documented for name in values)
