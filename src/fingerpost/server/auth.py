"""Who may come in at which door: clients with their keys, administrators, and whom a server without keys may listen to."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable

from fingerpost.clients import Client
from fingerpost.clients.keys import Keys
from fingerpost.config.shape import Config
from fingerpost.errors import ConfigError, Problem, Refused

OPEN_PATHS = frozenset({"/health", "/livez", "/readyz"})
"""What load balancers ask; it says nothing that is private."""

ADMIN_PATHS = frozenset({"/metrics"})


def check_exposure(config: Config) -> None:
    """Raises ConfigError when a configuration would serve everybody who reaches an address that others can reach."""
    server = config.server
    if config.keys or server.open or is_loopback(server.host):
        return
    what = f"{server.host} can be reached by others, and there are no keys: anybody could use your backends"
    fix = "Add keys (`fingerpost keys new` makes one), or set server.open to true where something else guards it"
    raise ConfigError([Problem("server.host", what, fix)])


def find_unshared(config: Config) -> list[Problem]:
    """A warning where workers would each count for themselves what clients may use."""
    limited = any(key.requests_per_minute or key.tokens_per_minute or key.budget for key in config.keys)
    if config.server.workers < 2 or not limited or config.limits.redis is not None:
        return []
    what = f"each of {config.server.workers} workers counts the limits of keys by itself: clients may use so many times as much"
    return [Problem("server.workers", what, "Set limits.redis, where all count together", warning=True)]


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches that address; a name other than localhost may stand for anything."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def check_admin(config: Config, headers: Iterable[tuple[bytes, bytes]], *, own_port: bool) -> None:
    """Raises Refused where a request that came in at the administrators' `own_port`, or not, is not one of theirs.

    Where nothing is said about administrators, they are all who reach a loopback address of a server without keys.
    """
    admin = config.server.admin
    if admin is None:
        if config.keys or not is_loopback(config.server.host):
            raise Refused("closed on a server with keys, or beyond loopback, until server.admin gives it a port or a key")
    elif admin.port is not None and not own_port:
        raise Refused("this is served on the port of server.admin")
    elif admin.hash is not None:
        Keys({admin.hash: Client("admin")}).find(headers)
