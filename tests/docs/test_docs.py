import argparse
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from pydantic import BaseModel

from fingerpost import config, errors
from fingerpost.assemble import build_world
from fingerpost.cli import _parser
from fingerpost.config.section import Section
from fingerpost.config.shape import FixedConfig
from fingerpost.observers.metrics import Metrics
from fingerpost.records import Exchange
from fingerpost.server import app

ROOT = Path(__file__).parents[2]
DOCS = {path.name: path.read_text(encoding="utf-8") for path in [*(ROOT / "docs").glob("*.md"), ROOT / "README.md"]}
EVERYTHING = "\n".join(DOCS.values())
SECTIONS = Section.__subclasses__()


@pytest.mark.parametrize(("section", "key"), [(kind, key) for kind in SECTIONS for key in kind.model_fields])
def test_every_configuration_key_is_documented(section: type[BaseModel], key: str) -> None:
    assert f"`{key}`" in DOCS["configuration.md"]


def commands() -> dict[str, argparse.ArgumentParser]:
    return next(a.choices for a in _parser()._actions if isinstance(a, argparse._SubParsersAction))


@pytest.mark.parametrize("command", commands())
def test_every_command_is_documented(command: str) -> None:
    assert f"fingerpost {command}" in EVERYTHING or f"scripts/run {command}" in EVERYTHING


@pytest.mark.parametrize(("command", "option"), [
    (name, option) for name, parser in commands().items() for action in parser._actions for option in action.option_strings
    if option.startswith("--") and option != "--help"
])  # fmt: skip
def test_every_option_is_documented(command: str, option: str) -> None:
    assert option in EVERYTHING


def test_every_metric_is_documented() -> None:
    names = {name for name in re.findall(rb"# HELP (\S+)", Metrics([]).render()) if not name.endswith(b"_created")}
    assert names
    assert all(f"`{name.decode()}`" in DOCS["operations.md"] for name in names)


def test_every_log_field_is_documented() -> None:
    fields = Exchange("id", "completed", 200, False, 0.0).to_json()
    assert all(f"`{field}`" in DOCS["operations.md"] for field in fields)


def test_every_error_code_is_documented() -> None:
    codes = {kind.code for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, errors.FingerpostError)}
    assert codes
    assert all(f"`{code}`" in DOCS["api.md"] for code in codes)


def test_every_path_is_documented() -> None:
    loaded = config.load(ROOT / "src/fingerpost/default.yaml", {}, deciding_only=True).config
    fixed = loaded.model_copy(update={"classifier": FixedConfig(use="fixed", route="other")})
    paths = [path for _, path in app.App(build_world(fixed))._doors]
    assert all(path in DOCS["api.md"] for path in paths)


def test_every_yaml_block_that_is_a_whole_file_is_valid(tmp_path: Path) -> None:
    blocks = re.findall(r"```yaml\n(backends:.*?)```", EVERYTHING, re.DOTALL)
    assert len(blocks) >= 2
    for block in blocks:
        file = tmp_path / "fingerpost.yaml"
        file.write_text(block, encoding="utf-8")
        assert config.load(file, {}, deciding_only=True).config.routes
        assert yaml.safe_load(block)


def test_every_link_between_documents_leads_somewhere() -> None:
    for name, text in DOCS.items():
        folder = ROOT if name == "README.md" else ROOT / "docs"
        for target in re.findall(r"\]\((?!https?:)([^)#]+)", text):
            assert (folder / target).exists(), f"{name}: {target}"


def test_every_test_that_proves_an_answer_exists() -> None:
    named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", DOCS["security.md"])
    assert len(named) >= 30
    for file, test in named:
        assert re.search(rf"^(async )?def {test}\(", (ROOT / file).read_text(encoding="utf-8"), re.MULTILINE), f"{file}::{test}"
    rows = DOCS["security.md"].split("## Threats and answers")[1].split("##")[0].strip().splitlines()[2:]
    assert rows
    assert all("::test_" in row for row in rows)


def test_the_packages_docstring_names_the_rooms_as_the_layers_do() -> None:
    import fingerpost

    contract = (ROOT / "pyproject.toml").read_text(encoding="utf-8").split("layers = [", 1)[1].split("]", 1)[0]
    rooms = re.findall(r"fingerpost\.(\w+)", contract)
    assert rooms
    assert all(room in (fingerpost.__doc__ or "") for room in rooms)


def test_the_readmes_first_command_decides_eleven_conversations() -> None:
    ran = subprocess.run([sys.executable, "-m", "fingerpost", "demo"], capture_output=True, text=True, timeout=60, check=True)
    assert len(ran.stdout.splitlines()) == 12
