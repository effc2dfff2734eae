"""What is wrong with the data of a configuration file: every problem, with its path as written and what to do."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from fingerpost.config.section import Section
from fingerpost.config.shape import BY_USE, Config, ImportedConfig, kind_of, spelled_out
from fingerpost.errors import Problem
from fingerpost.routes import OTHER, Backend, Route, find_problems

SECRET_FIELDS = frozenset({"key", "headers", "options", "url", "urls", "hash", "redis"})
"""Fields whose values no message shows; a URL may hold a password, and a hash be the key itself by mistake."""

UNKNOWN_KEY = "unknown key"

WORDS: Mapping[str, tuple[str, str]] = {
    "model_type": ("this should be a mapping", "Write key: value pairs, one a line"),
    "dict_type": ("this should be a mapping", "Write key: value pairs, one a line"),
    "list_type": ("this should be a list", "Write [one, two], or one a line after a dash"),
    "string_type": ("this should be text", "Put it in quotes"),
}
"""What is wrong and what to do about it, for the errors of pydantic that speak of Python."""


def validate(data: Any, written: Any) -> tuple[Config | None, list[Problem]]:
    """The configuration that `data` states, or None, and every problem within its sections.

    `written` is the data before variables were replaced: a message shows what stands in the file, not what a variable holds.
    """
    if not isinstance(data, dict):
        return None, [Problem("", "this is not a mapping", "Start with backends: and routes:")]
    try:
        return Config.model_validate(data), []
    except ValidationError as error:
        problems = [as_problem(detail, data, written, Config) for detail in error.errors()]
    # Which keys a classifier has is known only when it is known which classifier it is.
    unclear = {p.path.removesuffix(".use") for p in problems if p.path.endswith(".use") and p.what != UNKNOWN_KEY}
    return None, [p for p in problems if p.what != UNKNOWN_KEY or p.path.rpartition(".")[0] not in unclear]


def as_problem(detail: Mapping[str, Any], data: Any, written: Any, root: type[Section], prefix: str = "") -> Problem:
    """A pydantic error as a Problem: its path as written in the file, and for an unknown key the nearest valid one."""
    loc, kind = detail["loc"], detail["type"]
    steps = [step for place, step in enumerate(loc) if not _is_tag(loc, place)]
    path = (prefix + "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in steps)).lstrip(".")
    if kind == "extra_forbidden":
        valid = list(_section_at(root, steps[:-1], data)[0].model_fields)
        near = difflib.get_close_matches(str(steps[-1]), valid, n=1, cutoff=0.5)
        return Problem(path, UNKNOWN_KEY, f"Did you mean {near[0]}?" if near else f"Valid keys: {', '.join(valid)}")
    _, name, about = _section_at(root, steps, data)
    if kind == "missing":
        return Problem(path, "this key is required", f"Add it: {about[:1].lower()}{about[1:]}")
    if kind == "string_pattern_mismatch":
        return Problem(path, "no such classifier", f"Use {', '.join(BY_USE)}, or an import string my.module:build")
    value = _value_at(written, steps)
    if value is None:
        return Problem(path, "there is no value here", about)
    message = detail["msg"].removeprefix("Value error, ").replace("Input should", "this should", 1)
    what, fix = WORDS.get(kind, (message[:1].lower() + message[1:], "" if kind == "value_error" else about))
    hidden = name in SECRET_FIELDS or kind in ("model_type", "dict_type") or isinstance(value, dict | list)
    return Problem(path, what if hidden else f"{what} ({value!r:.80})", fix)


def _is_tag(loc: Sequence[str | int], place: int) -> bool:
    """Whether a step of a location is the name that pydantic gives a classifier's class, and no key of the file."""
    return (place == 1 and loc[0] == "classifier") or (place > 1 and loc[place - 2] == "of" and isinstance(loc[place - 1], int))


def _section_at(root: type[BaseModel], steps: Sequence[str | int], data: Any) -> tuple[type[BaseModel], str, str]:
    """The section that a path leads into, with the name of the last field on the way and what that field is for."""
    section, name = root, ""
    about: str | None = ""
    inner: list[type[BaseModel]] = []
    for step in steps:
        data = _value_at(data, [step])
        if isinstance(step, str):
            field = section.model_fields[step]
            name, about, inner = step, field.description, list(_models_in(field.annotation))
        if not inner:
            break
        section = inner[0] if len(inner) == 1 else BY_USE.get(kind_of(spelled_out(data)), ImportedConfig)
    return section, name, about or ""


def _value_at(data: Any, steps: Sequence[str | int]) -> Any:
    """What is at a path, or None."""
    for step in steps:
        try:
            data = data[step]
        except (LookupError, TypeError):
            return None
    return data


def _models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for inner in get_args(annotation):
        yield from _models_in(inner)


def cross_check(data: Any) -> list[Problem]:
    """What is wrong between sections, and what looks unwise.

    Works on the data as written, so that a mistake in one place does not hide those in others.
    """
    if not isinstance(data, Mapping):
        return []
    backends = [_sketched_backend(item, index) for index, item in enumerate(_items(data.get("backends")))]
    first = [backend.name for backend in backends[:1]]
    routes = [_sketched_route(item, index, first) for index, item in enumerate(_items(data.get("routes")))]
    problems = find_problems(routes, backends)
    names = [route.name for route in routes]
    if routes and OTHER not in names:
        problems.append(
            Problem("routes", f"there is no route named {OTHER}", "Add one with backends, for what no description fits")
        )
    for path, route in _routes_named(data):
        if route not in names:
            problems.append(Problem(path, f"there is no route {route!r}", f"Use one of: {', '.join(names)}"))
    problems += _key_problems(_items(data.get("keys")), {r.name: r for r in routes}, [backend.name for backend in backends])
    if backends and not any("image" in backend.accepts for backend in backends):
        problems.append(
            Problem(
                "backends",
                "no backend accepts images: a conversation with an image will be refused (422)",
                "Add image to the accepts of one that can",
                warning=True,
            )
        )
    return problems


def _key_problems(keys: Sequence[Any], routes: Mapping[str, Route], backends: Sequence[str]) -> Iterator[Problem]:
    seen: dict[tuple[str, str], int] = {}
    for index, key in enumerate(keys):
        if not isinstance(key, Mapping):
            continue
        name = key.get("name")
        if isinstance(name, str) and not (0 < len(name) <= 100 and name.isprintable()):
            yield Problem(f"keys[{index}].name", "this cannot be a name", "Use 1 to 100 printable characters")
        for field in ("name", "hash"):
            first = seen.setdefault((field, str(key.get(field))), index)
            if first != index and field in key:
                yield Problem(f"keys[{index}].{field}", f"keys[{first}] has the same {field}", "Give each its own")
        for field, known in (("routes", list(routes)), ("backends", backends)):
            for place, wanted in enumerate(map(str, _items(key.get(field)))):
                if wanted not in known:
                    what = f"there is no {field.removesuffix('s')} {wanted!r}"
                    yield Problem(f"keys[{index}].{field}[{place}]", what, f"Use one of: {', '.join(known)}")
        named = [routes[name] for name in map(str, _items(key.get("routes"))) if name in routes] or routes.values()
        allowed = set(map(str, _items(key.get("backends")))) or set(backends)
        if named and not any(allowed & set(route.backends) for route in named):
            what, fix = "no route that this key may use has a backend that it may use", "Allow one of each that belong together"
            yield Problem(f"keys[{index}]", what, fix)


def _sketched_backend(item: Any, index: int) -> Backend:
    """As much of a backend as can be made out; whatever is missing is a problem that has been noted already."""
    item = item if isinstance(item, Mapping) else {}
    return Backend(_name_in(item, f"(backend {index})"), "", "", accepts=frozenset(map(str, _items(item.get("accepts")))))


def _sketched_route(item: Any, index: int, no_backends: Sequence[str]) -> Route:
    if not isinstance(item, Mapping):
        return Route(f"(route {index})", "(unreadable)", backends=tuple(no_backends))
    backends = tuple(map(str, _items(item.get("backends"))))
    return Route(_name_in(item, f"(route {index})"), str(item.get("description", "")), backends=backends)


def _routes_named(data: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """The routes that rules and classifiers name, with the paths where they do."""
    yield from _routes_of_rules(data.get("rules"), "rules")
    yield from _routes_of_classifier(data.get("classifier"), "classifier")


def _routes_of_rules(rules: Any, path: str) -> Iterator[tuple[str, str]]:
    for index, rule in enumerate(_items(rules)):
        if isinstance(rule, Mapping) and "route" in rule:
            yield f"{path}[{index}].route", str(rule["route"])


def _routes_of_classifier(classifier: Any, path: str) -> Iterator[tuple[str, str]]:
    if not isinstance(classifier, Mapping):
        return
    if "route" in classifier:
        yield f"{path}.route", str(classifier["route"])
    yield from _routes_of_rules(classifier.get("rules"), f"{path}.rules")
    for index, link in enumerate(_items(classifier.get("of"))):
        yield from _routes_of_classifier(link, f"{path}.of[{index}]")


def _name_in(item: Mapping[str, Any], otherwise: str) -> str:
    name = item.get("name")
    return otherwise if name is None else str(name)


def _items(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []
