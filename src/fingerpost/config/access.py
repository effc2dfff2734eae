"""What may be written about who comes in: client keys and their limits, the certificate, administrators."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Literal

from pydantic import Field, field_validator

from fingerpost.clients import Client, Limits
from fingerpost.clients.keys import HASH
from fingerpost.config.section import Section
from fingerpost.routes import Access, Route


def key_hash(value: str) -> str:
    """`value`, if it is the hash of a client key."""
    if not HASH.fullmatch(value):
        raise ValueError(
            "not the hash of a key (sha256: and 64 hexadecimal digits); `fingerpost keys new` prints a key and its hash"
        )
    return value


class BudgetConfig(Section):
    """What a client may spend."""

    usd: float = Field(gt=0, description="USD at the prices of the backends.")
    per: Literal["day", "month"] = Field("month", description="The calendar day or month, in UTC.")


class KeyConfig(Section):
    """A client's key and what it may use."""

    name: str = Field(description="The client's name in logs and metrics.")
    hash: str = Field(repr=False, description="The hash of its key, as `fingerpost keys new` prints it.")
    routes: list[str] | None = Field(None, min_length=1, description="The routes that it may use; all unless given.")
    backends: list[str] | None = Field(None, min_length=1, description="The backends that it may use; all unless given.")
    requests_per_minute: int | None = Field(None, gt=0, description="How many requests it may send in a minute.")
    tokens_per_minute: int | None = Field(None, gt=0, description="How many tokens it may use in a minute.")
    budget: BudgetConfig | None = Field(None, description="What it may spend.")

    @field_validator("hash")
    @classmethod
    def _is_hash(cls, value: str) -> str:
        return key_hash(value)


class LimitsConfig(Section):
    """Where requests, tokens and spending of clients are counted."""

    redis: str | None = Field(
        None,
        repr=False,
        description="A Redis that all processes share, such as redis://localhost:6379/0; in memory unless given.",
    )
    when_down: Literal["allow", "local", "refuse"] = Field(
        "local", description="While Redis is down: let requests through, count in memory, or refuse them."
    )

    timeout: float = Field(0.1, gt=0, description="Seconds that Redis may take; a request waits for it once.")

    @field_validator("redis")
    @classmethod
    def _is_redis(cls, url: str | None) -> str | None:
        if url is not None and not re.match(r"(rediss?|unix)://\S+$", url):
            raise ValueError("not the URL of a Redis; write one such as redis://localhost:6379/0")
        return url


class TlsConfig(Section):
    """The certificate to serve with."""

    cert: str = Field(description="The file of the certificate with its chain, in PEM.")
    key: str = Field(description="The file of its private key, in PEM, without a password.")


class AdminConfig(Section):
    """Who gets at metrics and the detail of readiness."""

    host: str = Field("127.0.0.1", description="The address to listen on, where there is a port.")
    port: int | None = Field(None, ge=0, le=65535, description="A port of its own; 0 takes a free one.")
    hash: str | None = Field(None, repr=False, description="The hash of a key that is asked for.")

    @field_validator("hash")
    @classmethod
    def _is_hash(cls, value: str | None) -> str | None:
        return value if value is None else key_hash(value)


def to_client(config: KeyConfig, routes: Mapping[str, Route]) -> Client:
    """The client that a section describes. One that is kept to some routes is kept to their backends too."""
    backends = config.backends
    if backends is None and config.routes is not None:
        backends = [name for route in config.routes for name in routes[route].backends]
    return Client(
        config.name,
        Access(
            frozenset(config.routes) if config.routes is not None else None,
            frozenset(backends) if backends is not None else None,
        ),
        Limits(
            config.requests_per_minute,
            config.tokens_per_minute,
            config.budget.usd if config.budget else None,
            config.budget.per if config.budget else "month",
        ),
    )
