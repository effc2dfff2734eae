"""Speaking OpenAI's HTTP API to a backend, whichever client carries it: where it is, our own headers, words for failures."""

from __future__ import annotations

import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import quote, urlsplit

from fingerpost.errors import UpstreamError, UpstreamTimeout
from fingerpost.routes import Backend

POOL_SIZE = 1024
"""Connections to one backend; a streaming model server holds one for each running request."""


@dataclass(frozen=True, slots=True)
class Address:
    """Where a base URL leads. `authority` is the host as the `host` header has it; `path` has no slash at its end."""

    secure: bool
    host: str
    port: int
    authority: str
    path: str

    def target(self, path: str, api_version: str | None) -> str:
        """What to ask this host for: a path below the base URL."""
        query = f"?api-version={quote(api_version, safe='')}" if api_version else ""
        return f"{self.path}{path}{query}"

    def url(self, path: str, api_version: str | None) -> str:
        """The same as a whole URL."""
        return f"{'https' if self.secure else 'http'}://{self.authority}{self.target(path, api_version)}"


def parse_url(url: str) -> Address:
    """The address in an http or https base URL.

    Raises:
        ValueError: it is none. One with a user name or a password is refused too: it would end up in logs, and a backend's
            key has its own place.
    """
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
        raise ValueError("not an http or https base URL without query; write one such as https://api.openai.com/v1")
    if parts.username is not None or parts.password is not None:
        raise ValueError("holds a user name or a password; a backend's key has its own place, key or headers")
    host = parts.hostname if parts.hostname.isascii() else parts.hostname.encode("idna").decode()
    if not host.isprintable() or set(host) & set(' "<>\\^`{|}'):
        raise ValueError("has a host with characters that no host has")
    secure = parts.scheme == "https"
    port = parts.port or (443 if secure else 80)
    authority = f"[{host.partition('%')[0]}]" if ":" in host else host
    if port != (443 if secure else 80):
        authority += f":{port}"
    return Address(secure, host, port, authority, quote(parts.path.rstrip("/"), safe="/%:@!$&'()*+,;=~"))


def own_headers(backend: Backend) -> Mapping[str, str]:
    """The headers that we send whatever the client said, names in lower case: the content type, those configured, the key."""
    headers = {"content-type": "application/json"} | {name.lower(): value for name, value in backend.headers.items()}
    if backend.key:
        if backend.auth == "api-key":
            headers["api-key"] = backend.key
        else:
            headers["authorization"] = f"Bearer {backend.key}"
    return headers


def tls_context(ca: str | None, protocol: str = "http/1.1") -> ssl.SSLContext:
    """How servers prove who they are: by the system's authorities, or by those in a PEM file; what is spoken with them.

    Raises:
        OSError: the file cannot be read, or holds no certificate.
    """
    context = ssl.create_default_context(cafile=ca)
    context.set_alpn_protocols([protocol])
    return context


# The texts below name the backend and the kind of failure. They never repeat a header, a URL or a body.


def unsendable(name: str) -> UpstreamError:
    """The request, or the backend's URL, cannot be put into HTTP."""
    return UpstreamError(f"{name}: a header or the url cannot be sent")


def unreachable(name: str, error: BaseException) -> UpstreamError:
    """There was no connection, because of `error`."""
    return UpstreamError(f"{name}: cannot connect ({type(error).__name__})")


def connected_late(name: str) -> UpstreamError:
    """There was no connection in time."""
    return UpstreamTimeout(f"{name}: no connection in time")


def answered_late(name: str) -> UpstreamError:
    """There was no answer, or no more of it, in time."""
    return UpstreamTimeout(f"{name}: no answer in time")


def broken(name: str) -> UpstreamError:
    """The connection ended before the reply did."""
    return UpstreamError(f"{name}: the connection broke")


def not_http(name: str) -> UpstreamError:
    """What came was no HTTP reply, or one beyond all bounds."""
    return UpstreamError(f"{name}: spoke no valid HTTP")


def no_http2(name: str) -> UpstreamError:
    """The TLS server does not choose HTTP/2 (ALPN)."""
    return UpstreamError(f"{name}: does not offer HTTP/2")


def refused(name: str) -> UpstreamError:
    """The backend says that it did nothing about the request."""
    return UpstreamError(f"{name}: refused the request")
