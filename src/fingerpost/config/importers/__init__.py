"""Turning another router's configuration into a fingerpost.yaml, and telling item by item what could not be carried over.

No secret is copied: a reference to an environment variable stays one, a literal key becomes `${NAME}` with a note.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from fingerpost.config.checks import cross_check, validate
from fingerpost.config.file import read, read_toml
from fingerpost.config.importers.draft import Draft
from fingerpost.config.importers.litellm import from_litellm
from fingerpost.config.importers.semantic_router import from_semantic_router
from fingerpost.config.importers.switchyard import from_switchyard
from fingerpost.errors import ConfigError, Problem

KINDS: Mapping[str, Callable[[Any, Path, Draft], None]] = {
    "litellm": from_litellm,
    "semantic-router": from_semantic_router,
    "switchyard": from_switchyard,
}
"""What can be imported: LiteLLM's proxy config.yaml, semantic-router's router file, Switchyard's deployment TOML."""


def convert(kind: str, path: str | Path) -> tuple[str, list[str]]:
    """The text of a valid fingerpost.yaml made from another router's file, and notes on what it leaves out or assumes.

    Raises:
        ConfigError: the file cannot be read, or nothing in it can be carried over.
    """
    path = Path(path)
    data = read_toml(path) if kind == "switchyard" else read(path).data
    draft = Draft()
    try:
        KINDS[kind](data, path, draft)
    except (AttributeError, TypeError, ValueError, KeyError) as error:  # a foreign file may have any shape
        why = f"{error} is missing" if isinstance(error, KeyError) else "something in it is of another type"
        raise ConfigError([Problem("", f"this has not the shape of a {kind} configuration: {why}", file=str(path))]) from None
    config = draft.finish()
    # Variables are set wherever it is checked, so any text may stand for them here.
    _, problems = validate(_with_variables(config), config)
    problems += [problem for problem in cross_check(config) if not problem.warning]
    if problems:
        raise ConfigError([replace(p, what=f"a fingerpost.yaml cannot have this: {p.what}", file=str(path)) for p in problems])
    text = yaml.safe_dump(config, sort_keys=False, allow_unicode=True, width=120)
    return f"# Made from {path.name} by `fingerpost import {kind}`.\n{text}", draft.notes


def _with_variables(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _with_variables(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_with_variables(inner) for inner in value]
    return re.sub(r"\$\{(\w+)\}", r"http://\1", value) if isinstance(value, str) else value
