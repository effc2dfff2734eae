"""Configuration in, objects out: the one place that knows all classes and builds the world from them."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from fingerpost.classifiers import Classifier
from fingerpost.classifiers.arch import Arch
from fingerpost.classifiers.chain import Chain, Link
from fingerpost.classifiers.fixed import Fixed
from fingerpost.classifiers.rules import Rule, Rules
from fingerpost.classifiers.systemone import SystemOne
from fingerpost.clients import Client, Ledger
from fingerpost.clients.keys import Keys
from fingerpost.clients.local import Local
from fingerpost.config import Loaded, load
from fingerpost.config.access import LimitsConfig, to_client
from fingerpost.config.file import proxy_for
from fingerpost.config.shape import (
    ArchConfig,
    ChainConfig,
    ClassifierConfig,
    Config,
    EmbeddedConfig,
    FixedConfig,
    ImportedConfig,
    RuleConfig,
    RulesConfig,
    SystemOneConfig,
    to_backend,
    to_route,
)
from fingerpost.errors import ConfigError, Problem
from fingerpost.gateway import Gateway
from fingerpost.observers import Observer
from fingerpost.observers.log import JsonLog
from fingerpost.observers.metrics import Metrics
from fingerpost.router import Router
from fingerpost.routes import Backend, RouteTable
from fingerpost.upstreams import Upstream
from fingerpost.upstreams.guarded import Guarded
from fingerpost.upstreams.health import Budget, Guard

DEFAULT_FILE = Path(__file__).with_name("default.yaml")
"""The configuration that `fingerpost init` writes and that `demo` decides with."""


@dataclass(frozen=True, slots=True)
class World:
    """A gateway with what the server needs beside it; without `keys` it serves whoever reaches it."""

    config: Config
    gateway: Gateway
    metrics: Metrics
    upstreams: Mapping[str, Guarded] = field(default_factory=dict)
    keys: Keys | None = None
    ledger: Ledger = field(default_factory=Local)
    authorities: Mapping[str | None, bytes] = field(default_factory=dict)
    """What stood in the files of authorities that backends name, by their paths."""

    @property
    def guards(self) -> Mapping[str, Guard]:
        """How its backends fare, by their names."""
        return {name: upstream.guard for name, upstream in self.upstreams.items()}

    def report(self) -> bytes:
        """Its metrics as they are now, in Prometheus's text format."""
        return self.metrics.render(self.gateway.in_flight, self.guards.values())


def build_table(config: Config) -> RouteTable:
    """The routes and backends of a configuration."""
    backends = [to_backend(backend) for backend in config.backends]
    routes = tuple(to_route(route) for route in config.routes)
    return RouteTable(routes, {backend.name: backend for backend in backends})


def build_classifier(config: ClassifierConfig, workers: int = 1) -> Classifier:
    """The classifier that a section describes, in one of so many processes that share the CPU cores.

    Raises:
        ConfigError: an import string that leads nowhere.
    """
    match config:
        case EmbeddedConfig():
            # Imported here: its runtime takes a moment to load, and a gateway without it need not wait.
            from fingerpost.classifiers.embedded import Embedded, cores

            return Embedded(threads=config.threads or max(1, cores() // workers))
        case ArchConfig():
            backend = Backend("arch", config.model, config.url.rstrip("/"), config.key or None)
            return Arch(backend, _guarded(backend), deadline=config.deadline, budget=config.budget)
        case SystemOneConfig():
            backend = Backend("systemone", config.model, config.url, config.key or None)
            return SystemOne(backend, _guarded(backend), deadline=config.deadline, budget=config.budget)
        case RulesConfig():
            return Rules([_rule(rule) for rule in config.rules])
        case FixedConfig():
            return Fixed(config.route, config.confidence)
        case ChainConfig():
            return Chain([Link(build_classifier(link, workers), link.threshold) for link in config.of], race=config.race)
        case ImportedConfig():
            return _imported(config.use, config.options)


def build_router(config: Config) -> Router:
    """A router that decides by a configuration: its rules first, then its classifier."""
    classifier = build_classifier(config.classifier, config.server.workers)
    if config.rules:
        classifier = Chain([Link(Rules([_rule(rule) for rule in config.rules])), Link(classifier)])
    keyed = sorted({key for rule in _all_rules(config) for key in rule.metadata})
    return Router(build_table(config), classifier, cache_size=config.server.cache, keyed_metadata=keyed)


def build_keys(config: Config, table: RouteTable) -> Keys | None:
    """The clients of a configuration by their keys, or None when it has none."""
    clients: dict[str, Client] = {key.hash: to_client(key, table.by_name) for key in config.keys}
    return Keys(clients) if clients else None


def build_ledger(config: LimitsConfig) -> Ledger:
    """Where a configuration counts what clients use.

    Raises:
        ConfigError: it needs a package that is not installed, or cannot read the address.
    """
    if config.redis is None:
        return Local()
    try:
        from fingerpost.clients.shared import Shared

        return Shared(config.redis, config.when_down, timeout=config.timeout)
    except ImportError:
        raise ConfigError(
            [Problem("limits.redis", "this needs the package redis", "pip install 'fingerpost[redis]'")]
        ) from None
    except ValueError:  # its text may quote the address with its password
        raise ConfigError([Problem("limits.redis", "not the URL of a Redis", "See docs/configuration.md")]) from None


def build_world(config: Config, observers: Sequence[Observer] | None = None, previous: World | None = None) -> World:
    """A gateway with upstreams for every backend; it logs to standard output unless other observers are given.

    Where a world was there before (`previous`), its observers and counts go on, and so do the upstreams of backends that are
    the same in every key and in the file of their authorities, with their connections and circuits, and the verdicts where
    conversations are read in the same way. What clients have used stays counted, unless `limits` differ.
    """
    router, server = build_router(config), config.server
    authorities: dict[str | None, bytes] = {
        section.ca: Path(section.ca).read_bytes() for section in config.backends if section.ca
    }
    kept: dict[str, Guarded] = {}
    if previous is None:
        metrics = Metrics([route.name for route in router.table.routes])
        watching = [metrics, *(observers if observers is not None else [JsonLog(sys.stdout)])]
    else:
        metrics, watching = previous.metrics, list(previous.gateway.observers)
        metrics.learn([route.name for route in router.table.routes])
        if _decide_alike(config, previous.config):
            router.remember(previous.gateway.router)
        before = [one for one in previous.config.backends if previous.authorities.get(one.ca) == authorities.get(one.ca)]
        unchanged = [section.name for section in config.backends if section in before]
        kept = {name: previous.upstreams[name] for name in unchanged}
    transports = {section.name: section.transport for section in config.backends}
    upstreams = {name: kept.get(name) or _guarded(backend, transports[name]) for name, backend in router.table.backends.items()}
    budget = Budget(server.retry_budget.share, server.retry_budget.floor)
    gateway = Gateway(
        router, upstreams, watching, retries=server.retries, deadline=server.deadline, hedge=server.hedge, budget=budget
    )
    ledger = previous.ledger if previous and previous.config.limits == config.limits else build_ledger(config.limits)
    return World(config, gateway, metrics, upstreams, build_keys(config, router.table), ledger, authorities)


def pick_classifier(config: Config | None, name: str | None) -> Classifier:
    """A classifier by name: one that the configuration sets up, one that needs no settings, or an import string.

    Without a name, that of the configuration with its rules; without a configuration, the embedded one.

    Raises:
        ConfigError: there is none of that name.
    """
    if name is None:
        return build_router(config).classifier if config else build_classifier(EmbeddedConfig(use="embedded"))
    found = [section for section in _all_classifiers(config.classifier) if section.use == name] if config else []
    if found:
        return build_classifier(found[0])
    if name == "embedded":
        return build_classifier(EmbeddedConfig(use="embedded"))
    if name == "rules" and config and config.rules:
        return Rules([_rule(rule) for rule in config.rules])
    if ":" in name:
        return _imported(name, {})
    raise ConfigError(
        [
            Problem(
                "",
                f"there is no classifier {name!r} that can be used without settings",
                "Use embedded, my.module:build, or one that the --config file sets up",
            )
        ]
    )


def load_router(path: str | Path = DEFAULT_FILE, environ: Mapping[str, str] | None = None) -> Router:
    """A router from a configuration file, for deciding in your own process; needs none of the file's API keys.

    Raises:
        ConfigError: everything that is wrong with the file.
    """
    return build_router(load(path, environ, deciding_only=True).config)


def find_lookalikes(loaded: Loaded) -> list[Problem]:
    """A warning for every two routes whose descriptions the embedded classifier, if it is in use, can hardly tell apart."""
    if not any(isinstance(section, EmbeddedConfig) for section in _all_classifiers(loaded.config.classifier)):
        return []
    from fingerpost.classifiers.embedded import Embedded

    table = build_table(loaded.config)
    return [
        Problem(
            "routes",
            f"{one} and {two} mean nearly the same to the classifier (similarity {similarity:.2f})",
            "Say in each description what the other one is not for",
            file=loaded.file,
            warning=True,
        )
        for one, two, similarity in Embedded().lookalikes(table)
    ]


def _all_classifiers(classifier: ClassifierConfig) -> list[ClassifierConfig]:
    """A classifier's section and, in a chain, those of its links."""
    links = classifier.of if isinstance(classifier, ChainConfig) else []
    return [classifier, *(section for link in links for section in _all_classifiers(link))]


def _all_rules(config: Config) -> list[RuleConfig]:
    sections = [section for section in _all_classifiers(config.classifier) if isinstance(section, RulesConfig)]
    return [*config.rules, *(rule for section in sections for rule in section.rules)]


def _decide_alike(one: Config, two: Config) -> bool:
    """Whether two configurations read conversations in the same way, whatever their routes."""
    return (one.classifier, one.rules, one.server.cache) == (two.classifier, two.rules, two.server.cache)


def _guarded(backend: Backend, transport: str = "auto") -> Guarded:
    """The upstream of a backend or of a classifier's server: one of the HTTP client's for each URL, behind a guard."""
    return Guarded(Guard(backend), [_upstream(replace(backend, url=url), transport) for url in backend.urls])


def _upstream(backend: Backend, transport: str) -> Upstream:
    proxy = proxy_for(backend.url)
    # Imported here: either takes longer to load than a decision without one takes in all.
    if transport == "library" or (transport == "auto" and proxy):
        from fingerpost.upstreams.library import LibraryUpstream

        return LibraryUpstream(backend, proxy=proxy)
    if transport == "http2":
        try:
            from fingerpost.upstreams.http2 import Http2Upstream
        except ImportError:
            what = f"{backend.name}: http2 needs the package h2"
            raise ConfigError([Problem("backends[].transport", what, "pip install 'fingerpost[http2]'")]) from None

        return Http2Upstream(backend)
    from fingerpost.upstreams.http1 import Http1Upstream

    return Http1Upstream(backend)


def conceal_options(text: str, config: Config) -> str:
    """`text` of an error that a classifier raised, without the values of any classifier's options."""
    for section in _all_classifiers(config.classifier):
        if isinstance(section, ImportedConfig):
            text = conceal(text, section.options)
    return text


def conceal(text: str, options: Any) -> str:
    """`text` of a plugin's error without the values of its options, which may be keys."""
    if isinstance(options, str):
        return text.replace(options, "(hidden)") if len(options) > 3 else text
    for value in options.values() if isinstance(options, Mapping) else options if isinstance(options, list) else ():
        text = conceal(text, value)
    return text


def _rule(config: RuleConfig) -> Rule:
    return Rule(config.route, config.image, tuple(config.keywords), config.longer_than, config.tools, dict(config.metadata))


def _imported(use: str, options: Mapping[str, Any]) -> Classifier:
    def bad(what: str, fix: str) -> ConfigError:
        return ConfigError([Problem("classifier.use", f"{use} {what}", fix)])

    module, _, name = use.partition(":")
    try:
        build = getattr(importlib.import_module(module), name)
    except Exception as error:  # it is foreign code that runs here, and below
        raise bad(f"cannot be imported ({error!r})", "Use module.path:callable; its package must be installed") from error
    try:
        built: Classifier = build(**options)
    except Exception as error:
        what = f"built nothing ({conceal(repr(error), options)})"
        raise bad(what, "It is called with classifier.options as keyword arguments") from None
    missing = [part for part in ("name", "deadline", "prepare", "classify", "aclose") if not hasattr(built, part)]
    if missing:
        raise bad(f"built no classifier: it has no {', '.join(missing)}", "See fingerpost.classifiers.Classifier")
    return built
