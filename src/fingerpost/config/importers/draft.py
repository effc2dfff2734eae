"""A fingerpost.yaml in the making, with the notes that its reader needs."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from fingerpost.errors import ConfigError, Problem
from fingerpost.routes import AUTO, OTHER

_REFERENCE = re.compile(r"os\.environ/([A-Za-z_]\w*)|\$\{?([A-Za-z_]\w*)\}?", re.ASCII)
_SECRET = re.compile(r"auth|key|token|secret|cookie|password", re.IGNORECASE)


class Draft:
    """Collects sections; every method that takes a path notes what it had to change there."""

    def __init__(self) -> None:
        self.backends: dict[str, dict[str, Any]] = {}
        self.routes: dict[str, dict[str, Any]] = {}
        self.rules: list[dict[str, Any]] = []
        self.classifier: Any = "embedded"
        self.server: dict[str, Any] = {}
        self.notes: list[str] = []

    def note(self, path: str, what: str) -> None:
        """Tells of one item of the source."""
        line = f"{path}: {what}"
        if line not in self.notes:
            self.notes.append(line)

    def leave(self, section: Any, path: str, known: Iterable[str], why: str = "not carried over") -> None:
        """Notes every key of a section that is not among the known ones; never its value."""
        if isinstance(section, Mapping):
            for key in section:
                if key not in known and section[key] not in (None, "", [], {}):
                    self.note(f"{path}.{key}".lstrip("."), why)

    def name(self, name: Any, path: str) -> str:
        """A name that a route or a backend may have."""
        good = "".join(c for c in str(name) if c.isprintable()).strip()[:200] or "unnamed"
        good = self.text(f"{good}_" if good == AUTO else good, path)
        if good != name:
            self.note(path, f"is now called {good!r}")
        return good

    def text(self, value: Any, path: str) -> str:
        """Text that refers to no variable: what stands in a foreign file must not read our environment."""
        text = "" if value is None else str(value)
        if "${" in text:
            self.note(path, "`${` starts a variable here; written as `$ {`")
        return text.replace("${", "$ {")

    def url(self, value: Any, path: str) -> str:
        """A base URL, or a reference to the variable that it comes from; without the password that may stand in it."""
        found = _REFERENCE.fullmatch(str(value).strip())
        if found:
            return f"${{{found[1] or found[2]}}}"
        bare = re.sub(r"(?<=://)[^/]*@", "", str(value))
        if bare != str(value):
            self.note(path, "a name or password stood in the URL; it was not copied: put it into headers")
        return self.text(bare, path)

    def secret(self, value: Any, path: str, otherwise: str) -> str | None:
        """A reference to the variable that a key comes from; a literal one is not copied but refers to `otherwise`."""
        if value in (None, ""):
            return None
        found = _REFERENCE.fullmatch(str(value).strip())
        if found:
            return f"${{{found[1] or found[2]}}}"
        variable = variable_for(otherwise)
        self.note(path, f"a literal key stands here; it was not copied: set {variable}")
        return f"${{{variable}}}"

    def headers(self, given: Any, path: str, owner: str) -> dict[str, str]:
        """Headers, those that look secret as references to variables."""
        return {
            str(name): (self.secret(value, f"{path}.{name}", f"{owner}_{name}") or "")
            if _SECRET.search(str(name))
            else self.text(value, f"{path}.{name}")
            for name, value in (given or {}).items()
        }

    def backend(self, wanted: str, section: Mapping[str, Any]) -> str:
        """Adds a backend under that name, numbered when it is taken; the name that it got. Empty values are left out."""
        name, number = wanted, 2
        while name in self.backends:
            name, number = f"{wanted}-{number}", number + 1
        self.backends[name] = {"name": name, **{key: value for key, value in section.items() if value not in (None, {}, [])}}
        return name

    def route(self, name: str, backends: Iterable[str] = (), **section: Any) -> None:
        """Adds a route, or adds to the one of that name."""
        route = self.routes.setdefault(name, {"name": name, "backends": []})
        route["backends"] += [backend for backend in backends if backend not in route["backends"]]
        route |= {key: value for key, value in section.items() if value not in (None, "", [])}

    def by_name_only(self, name: str, backends: Iterable[str]) -> None:
        """Adds a route that clients force by its name and that no classifier should choose."""
        self.route(name, backends, description=f"{name}: only when the request names it.", threshold=1.0)

    def finish(self) -> dict[str, Any]:
        """The configuration; `other` is there, and serves every route that named no backend."""
        if not self.backends:
            raise ConfigError([Problem("", "there is no model here that fingerpost could carry requests to")])
        if not self.routes.get(OTHER, {}).get("backends"):
            first = next(iter(self.backends))
            self.note("other", f"what no route fits goes to {first}; name another backend if that is wrong")
            self.route(OTHER, [first])
        other = self.routes[OTHER]["backends"]
        routes = [{**route, "backends": list(route["backends"] or other)} for route in self.routes.values()]
        routes.sort(key=lambda route: route["name"] == OTHER)
        config: dict[str, Any] = {"backends": list(self.backends.values()), "routes": routes, "rules": self.rules}
        config |= {"classifier": self.classifier, "server": self.server}
        return {key: value for key, value in config.items() if value}


def variable_for(name: str) -> str:
    """The name of the environment variable for a key that stood in the file."""
    plain = re.sub(r"\W+", "_", name, flags=re.ASCII).strip("_").upper().removesuffix("_API_KEY") + "_API_KEY"
    return f"_{plain}" if plain[0].isdigit() else plain
