"""The configuration: `shape` and `access` say what may be written, `file` reads, `checks` finds what is wrong."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from fingerpost.config.checks import as_problem, cross_check, validate
from fingerpost.config.file import read, substitute
from fingerpost.config.shape import Config, RouteConfig, to_route
from fingerpost.errors import ConfigError, Problem
from fingerpost.routes import Route, find_problems


@dataclass(frozen=True)
class Loaded:
    """A valid configuration with the file it came from and its warnings."""

    config: Config
    file: str
    warnings: tuple[Problem, ...] = ()


def load(
    path: str | Path, environ: Mapping[str, str] | None = None, *, deciding_only: bool = False, text: str | None = None
) -> Loaded:
    """The configuration in a YAML file, with `${NAME}` and `${NAME:-default}` replaced from the environment.

    `text` is what stands in the file, where that was read before.

    With `deciding_only`, a variable that is not set is no problem where any text will do, as for a backend's key: what only
    decides carries nothing there. A classifier is asked all the same, so what it needs must be set.

    Raises:
        ConfigError: everything that is wrong with it.
    """
    source = read(path, text)
    data, unset = substitute(source.data, environ)
    config, misshapen = validate(data, source.data)
    unset_at, wrong_at = ({problem.path for problem in problems} for problems in (unset, misshapen))
    problems = [
        *source.problems,
        *(p for p in unset if not deciding_only or p.path in wrong_at or p.path.startswith("classifier")),
        *(problem for problem in misshapen if problem.path not in unset_at),
        *(problem for problem in cross_check(data) if problem.path not in wrong_at or problem.warning),
    ]
    problems = sorted((source.located(problem) for problem in problems), key=lambda p: (p.line or 0, p.path))
    if config is None or any(not problem.warning for problem in problems):
        raise ConfigError(problems)
    return Loaded(config, str(path), tuple(problems))


def load_routes(path: str | Path) -> tuple[Route, ...]:
    """The routes in a JSON or YAML file that is a list of name, description and examples; backends in it are left out.

    Raises:
        ConfigError: everything that is wrong with it.
    """
    source = read(path)
    if not isinstance(source.data, list):
        raise ConfigError([source.located(Problem("", "this is not a list of routes", "Start each with - name:"))])
    routes, problems = [], list(source.problems)
    for index, item in enumerate(source.data):
        try:
            routes.append(replace(to_route(RouteConfig.model_validate(item)), backends=()))
        except ValidationError as error:
            problems += [as_problem(detail, item, item, RouteConfig, f"[{index}]") for detail in error.errors()]
    problems = problems or [problem for problem in find_problems(routes, ()) if not problem.warning]
    problems = [replace(problem, path=problem.path.removeprefix("routes")) for problem in problems]
    if problems:
        raise ConfigError([source.located(problem) for problem in problems])
    return tuple(routes)


def schema() -> dict[str, Any]:
    """The JSON Schema of fingerpost.yaml, for editors."""
    described = Config.model_json_schema()
    described["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    described["title"] = "fingerpost.yaml"
    short = {
        "type": "string",
        "pattern": rf"^embedded$|{described['$defs']['ImportedConfig']['properties']['use']['pattern']}",
        "description": "embedded, or an import string such as my.module:build",
    }
    for owner, key in ((described, "classifier"), (described["$defs"]["ChainConfig"], "of")):
        place = owner["properties"][key]
        target = place["items"] if key == "of" else place
        spelled_out = {name: target.pop(name) for name in ("oneOf", "anyOf") if name in target}
        target["anyOf"] = [short, spelled_out]
    return described
