"""What can be chosen: routes (what a user may want) and backends (models behind URLs). Frozen and validated."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from hashlib import blake2b
from typing import Literal

from fingerpost.errors import ConfigError, Problem

OTHER = "other"
"""The reserved route for what no description fits."""

AUTO = "auto"
"""The reserved model name that asks for a decision."""


@dataclass(frozen=True, slots=True)
class Price:
    """USD per million tokens."""

    input: float = 0.0
    output: float = 0.0

    def cost(self, input_tokens: int, output_tokens: int) -> float:
        """What that many tokens cost, in USD."""
        return (input_tokens * self.input + output_tokens * self.output) / 1e6


@dataclass(frozen=True, slots=True)
class Timeouts:
    """Seconds: to connect, between two reads, and for a whole call."""

    connect: float = 5.0
    read: float = 120.0
    total: float = 600.0


@dataclass(frozen=True, slots=True)
class Breaker:
    """When calls to a URL are held back because it fails, and for how long.

    It opens after `failures` in a row, or when at least `rate` of the calls of the last `window` seconds failed and there were
    `least` of them. It stays open for `pause` seconds, twice as long each time in a row, up to `longest`; then one call is let
    through to see. `rest` is the longest that a Retry-After of the backend is obeyed. All times are in seconds.
    """

    enabled: bool = True
    failures: int = 5
    rate: float = 0.5
    least: int = 20
    window: float = 30.0
    pause: float = 1.0
    longest: float = 30.0
    rest: float = 60.0


@dataclass(frozen=True, slots=True)
class Probe:
    """How a backend is asked whether it lives: GET `path`, below its URL, `every` so many seconds, for `timeout` at most."""

    path: str = "/models"
    every: float = 10.0
    timeout: float = 5.0


@dataclass(frozen=True, slots=True)
class Backend:
    """A model behind an OpenAI-compatible base URL.

    `accepts` are the features that it can serve, `context` its window in tokens (None: unknown, never a reason to strike it
    out); `auth` says which header carries `key`; `api_version` is Azure's query parameter; `ca` is a PEM file with the
    authorities that may vouch for its https certificate (None: the system's). `more_urls` serve the same model. At most
    `concurrency` calls run at once on all URLs together, and `queue` more wait their turn.
    """

    name: str
    model: str
    url: str
    key: str | None = field(default=None, repr=False)
    auth: Literal["bearer", "api-key"] = "bearer"
    api_version: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    accepts: frozenset[str] = frozenset({"text", "tools", "json_schema"})
    context: int | None = None
    price: Price = Price()
    timeouts: Timeouts = Timeouts()
    ca: str | None = None
    more_urls: tuple[str, ...] = ()
    concurrency: int = 1024
    queue: int = 256
    breaker: Breaker = Breaker()
    probe: Probe | None = None

    @property
    def urls(self) -> tuple[str, ...]:
        """All base URLs that serve it."""
        return (self.url, *self.more_urls)


@dataclass(frozen=True, slots=True)
class Route:
    """Something a user may want: a name, a description in plain language, examples, and backend names in order.

    `threshold` is the least probability with which the route may be chosen; below it the request goes to `other`.
    """

    name: str
    description: str = ""
    examples: tuple[str, ...] = ()
    backends: tuple[str, ...] = ()
    threshold: float = 0.0


@dataclass(frozen=True, slots=True)
class Access:
    """What a client may use: the names of routes and of backends; None stands for all of them."""

    routes: frozenset[str] | None = None
    backends: frozenset[str] | None = None

    def to_route(self, name: str) -> bool:
        """Whether it may use the route of that name."""
        return self.routes is None or name in self.routes

    def to_backend(self, name: str) -> bool:
        """Whether it may use the backend of that name."""
        return self.backends is None or name in self.backends


EVERYTHING = Access()
"""The access of a client that nothing is kept from."""


@dataclass(frozen=True)
class RouteTable:
    """The routes of one gateway or one request with their backends.

    Raises:
        ConfigError: names that clash or refer to nothing; all problems at once.
    """

    routes: tuple[Route, ...]
    backends: Mapping[str, Backend] = field(default_factory=dict)

    def __post_init__(self) -> None:
        errors = [problem for problem in find_problems(self.routes, self.backends.values()) if not problem.warning]
        errors += [
            Problem("backends", f"backend {backend.name!r} is there under the name {name!r}", "Use its own name")
            for name, backend in self.backends.items()
            if name != backend.name
        ]
        if errors:
            raise ConfigError(errors)

    @cached_property
    def by_name(self) -> Mapping[str, Route]:
        """Each route under its name."""
        return {route.name: route for route in self.routes}

    @cached_property
    def described(self) -> tuple[Route, ...]:
        """The routes that a classifier chooses among: all but `other`."""
        return tuple(route for route in self.routes if route.name != OTHER)

    @cached_property
    def digest(self) -> bytes:
        """16 bytes that are equal exactly for tables that look the same to a classifier (backends left out)."""
        parts = [(route.name, route.description, route.examples) for route in self.routes]
        return blake2b(repr(parts).encode("utf-8", "surrogatepass"), digest_size=16).digest()

    @cached_property
    def _backends_of(self) -> Mapping[str, tuple[Backend, ...]]:
        return {route.name: tuple(self.backends[name] for name in route.backends) for route in self.routes}

    def backends_of(self, route: str) -> tuple[Backend, ...]:
        """The backends of a route in the order to try; none for a route that is not in the table."""
        return self._backends_of.get(route, ())


def find_problems(routes: Sequence[Route], backends: Iterable[Backend]) -> list[Problem]:
    """Everything that is wrong between these routes and backends; paths are those of the configuration file."""
    backends = list(backends)
    known = sorted({backend.name for backend in backends})
    problems = [
        *_name_problems("routes", [route.name for route in routes]),
        *_name_problems("backends", [backend.name for backend in backends]),
    ]
    for index, route in enumerate(routes):
        problems += _route_problems(route, f"routes[{index}]", known)
    for name in sorted({route.name for route in routes} & set(known)):
        what = f"{name!r} names a route and a backend"
        problems.append(Problem("routes", what, "As a model name it means the route", warning=True))
    return problems


def _route_problems(route: Route, path: str, known: Sequence[str]) -> Iterable[Problem]:
    if not route.description.strip() and route.name != OTHER:
        what = f"route {route.name!r} has no description: only its name is read"
        fix = "Say in a sentence what the user wants when this route fits"
        yield Problem(f"{path}.description", what, fix, warning=True)
    if known and not route.backends:
        what = f"route {route.name!r} has no backend"
        yield Problem(f"{path}.backends", what, f"Name one or more of: {', '.join(known)}")
    for place, name in enumerate(route.backends):
        if name not in known:
            fix = f"Use one of: {', '.join(known) or 'none is defined'}"
            yield Problem(f"{path}.backends[{place}]", f"there is no backend {name!r}", fix)


def _name_problems(kind: str, names: Sequence[str]) -> Iterable[Problem]:
    counts = Counter(names)
    for index, name in enumerate(names):
        path = f"{kind}[{index}].name"
        if not name or len(name) > 200 or not name.isprintable() or name != name.strip():
            yield Problem(
                path, f"{name[:80]!r} cannot be a name", "Use 1 to 200 printable characters without spaces around them"
            )
        elif name == AUTO:
            yield Problem(path, f"{AUTO!r} is reserved: as a model name it asks for a decision", "Use another name")
        elif counts[name] > 1 and names.index(name) != index:
            yield Problem(path, f"{name!r} is there twice", "Give each its own name")
