"""Reading a YAML file with the line of every path in it, and the environment that it refers to.

This is the one module that reads the environment.
"""

from __future__ import annotations

import os
import re
import tomllib
import urllib.parse
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from fingerpost.errors import ConfigError, Problem

_VARIABLE = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)(?::-([^}]*))?\}")


@dataclass(frozen=True)
class Source:
    """A parsed file: its data, the line of every path in it, such as `routes[1].name`, and keys that are there twice."""

    file: str
    data: Any
    lines: Mapping[str, int]
    problems: tuple[Problem, ...] = ()

    def located(self, problem: Problem) -> Problem:
        """The problem with this file and the line of its path, or of the nearest path around it."""
        path = problem.path
        while path and path not in self.lines:
            path = path[: max(path.rfind("."), path.rfind("["), 0)]
        return replace(problem, file=self.file, line=self.lines.get(path, 1))


class _Loader(yaml.SafeLoader):
    """A SafeLoader that reads dates as the text that they are (`api_version: 2024-10-21`), and JSON's pairs of escapes.

    JSON writes a character beyond U+FFFF as two escapes, which YAML would leave apart.
    """


def _text(loader: _Loader, node: yaml.ScalarNode) -> str:
    return str(loader.construct_scalar(node)).encode("utf-16", "surrogatepass").decode("utf-16")


_Loader.add_constructor("tag:yaml.org,2002:str", _text)
_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:timestamp"]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


def read(path: str | Path, text: str | None = None) -> Source:
    """The parsed file, or the parsed `text` where it was read before.

    Raises:
        ConfigError: it is not there, not readable, or not YAML.
    """
    file, text = str(path), read_text(path) if text is None else text
    if file.endswith(".json"):
        text = text.replace("\t", " ")  # YAML knows no tabs between tokens, and within JSON's strings there are none
    try:
        return _parsed(file, text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = mark.line + 1 if mark else 1
        what = f"this is not YAML: {getattr(error, 'problem', None) or error}"
        fix = 'Within braces a variable needs quotes: "${NAME}"' if "${" in text.split("\n")[line - 1] else ""
        raise ConfigError([Problem("", what, fix, file, line)]) from None
    except ValueError as error:
        raise ConfigError([Problem("", f"a value cannot be read: {error}", "Put it in quotes", file)]) from None
    except RecursionError:
        what = "this is nested too deeply, or an alias refers to what it stands in"
        raise ConfigError([Problem("", what, file=file)]) from None


def read_toml(path: str | Path) -> dict[str, Any]:
    """The data of a TOML file.

    Raises:
        ConfigError: it is not there, not readable, or not TOML.
    """
    try:
        return tomllib.loads(read_text(path))
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise ConfigError([Problem("", f"this is not TOML: {error}", file=str(path))]) from None


def read_text(path: str | Path) -> str:
    """The text of a file.

    Raises:
        ConfigError: it is not there, not readable, or no text.
    """
    file = str(path)
    try:
        return Path(path).read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigError([Problem("", f"there is no file {file}", "`fingerpost init` writes one")]) from None
    except UnicodeDecodeError as error:
        raise ConfigError([Problem("", f"this is not text in UTF-8: {error}", "Save it as UTF-8", file)]) from None
    except (OSError, ValueError) as error:
        raise ConfigError([Problem("", f"{file} cannot be read: {error}")]) from None


def _parsed(file: str, text: str) -> Source:
    loader = _Loader(text)
    try:
        node = loader.get_single_node()
        if node is None:
            return Source(file, {}, {})
        lines = {"": node.start_mark.line + 1}
        problems: list[Problem] = []
        _walk(node, "", lines, problems)
        return Source(file, loader.construct_document(node), lines, tuple(problems))
    finally:
        loader.dispose()


def _walk(node: yaml.Node, path: str, lines: dict[str, int], problems: list[Problem]) -> None:
    """Notes the line of every path, and keys that are there twice, which YAML would silently let the last one win.

    Makes every key the text that it is written as: `on`, `1` and `null` are names too.
    """
    if isinstance(node, yaml.MappingNode):
        seen: dict[str, int] = {}
        for key, value in node.value:
            if not isinstance(key, yaml.ScalarNode):
                hint = "a key must be text; put quotes around a value that starts with a bracket or a brace"
                raise yaml.MarkedYAMLError(problem=hint, problem_mark=key.start_mark)
            if key.tag != "tag:yaml.org,2002:merge":
                key.tag = "tag:yaml.org,2002:str"
            line = key.start_mark.line + 1
            inner = f"{path}.{key.value}" if path else str(key.value)
            if key.value in seen:
                problems.append(Problem(inner, f"the key is there twice, first in line {seen[key.value]}", "Keep one of them"))
            seen[key.value] = line
            lines[inner] = line
            _walk(value, inner, lines, problems)
    elif isinstance(node, yaml.SequenceNode):
        for index, value in enumerate(node.value):
            lines[f"{path}[{index}]"] = value.start_mark.line + 1
            _walk(value, f"{path}[{index}]", lines, problems)


def substitute(data: Any, environ: Mapping[str, str] | None = None) -> tuple[Any, list[Problem]]:
    """`data` with `${NAME}` and `${NAME:-default}` replaced, and a problem for every variable that is not set.

    An unset variable leaves its name in its place. `environ` is the process's environment unless given.
    """
    unset: list[Problem] = []
    environ = os.environ if environ is None else environ  # noqa: TID251  (the one place)
    return _substituted(data, "", environ, unset), unset


def proxy_for(url: str) -> str | None:
    """The proxy that HTTP_PROXY, HTTPS_PROXY and NO_PROXY, in either case, ask for on the way to an http or https URL."""
    parts = urllib.parse.urlsplit(url)
    if urllib.request.proxy_bypass(parts.hostname or ""):
        return None
    return urllib.request.getproxies().get(parts.scheme)


def _substituted(value: Any, path: str, environ: Mapping[str, str], unset: list[Problem]) -> Any:
    if isinstance(value, dict):
        return {key: _substituted(inner, f"{path}.{key}" if path else str(key), environ, unset) for key, inner in value.items()}
    if isinstance(value, list):
        return [_substituted(inner, f"{path}[{index}]", environ, unset) for index, inner in enumerate(value)]
    if not isinstance(value, str):
        return value

    def replaced(match: re.Match[str]) -> str:
        name, default = match[1], match[2]
        found = environ.get(name) or default
        if found is None:
            unset.append(
                Problem(
                    path,
                    f"the environment variable {name} is not set or empty",
                    f"Set it (export {name}=...), or write ${{{name}:-default}}",
                )
            )
            return name
        return found

    return _VARIABLE.sub(replaced, value)
