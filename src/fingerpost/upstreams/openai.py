"""The upstream for backends that speak OpenAI's HTTP API: one pooled aiohttp session for each."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from weakref import WeakKeyDictionary

import aiohttp
from multidict import CIMultiDict

from fingerpost.errors import UpstreamError, UpstreamTimeout
from fingerpost.routes import Backend
from fingerpost.upstreams import Call, Headers, Reply

POOL_SIZE = 1024
"""Connections to one backend; a streaming model server holds one for each running request."""


class OpenAIUpstream:
    """Carries calls to one OpenAI-compatible backend.

    Create it anywhere; a session opens with the first call, one for each event loop that calls (a server has one loop,
    synchronous library use brings a second).
    """

    def __init__(self, backend: Backend) -> None:
        self.backend = backend
        self._own_headers = _own_headers(backend)
        self._sessions: WeakKeyDictionary[asyncio.AbstractEventLoop, aiohttp.ClientSession] = WeakKeyDictionary()

    async def send(self, call: Call) -> Reply:
        """The backend's reply as soon as its headers are there; see `Upstream.send` for what it raises."""
        # aiohttp writes header values as UTF-8, so reading them as anything else would change them.
        headers = CIMultiDict((name.decode("latin-1"), value.decode("utf-8", "replace")) for name, value in call.headers)
        headers.update(self._own_headers)
        try:
            response = await self._connected().request(
                call.method, _url(self.backend, call.path), data=call.body or None, headers=headers, allow_redirects=False
            )
        except (TimeoutError, aiohttp.ClientError, OSError, ValueError) as error:
            raise as_upstream_error(self.backend.name, error) from None
        return Reply(response.status, _lowered(response.raw_headers), _chunks(self.backend.name, response), _closer(response))

    async def aclose(self) -> None:
        """Closes all connections of the running loop."""
        session = self._sessions.pop(asyncio.get_running_loop(), None)
        if session is not None:
            await session.close()

    def _connected(self) -> aiohttp.ClientSession:
        loop = asyncio.get_running_loop()
        session = self._sessions.get(loop)
        if session is None:
            limits = self.backend.timeouts
            session = self._sessions[loop] = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=POOL_SIZE, ttl_dns_cache=60),
                timeout=aiohttp.ClientTimeout(total=limits.total, sock_connect=limits.connect, sock_read=limits.read),
                # Bytes pass as the backend sent them: compressed stays compressed, and no cookie is kept between clients.
                auto_decompress=False,
                cookie_jar=aiohttp.DummyCookieJar(),
                skip_auto_headers=("user-agent", "accept-encoding"),
            )
        return session


def as_upstream_error(name: str, error: BaseException) -> UpstreamError:
    """The one place where the HTTP library's errors become ours; the text never repeats a header or a body."""
    if isinstance(error, aiohttp.ConnectionTimeoutError):
        return UpstreamTimeout(f"{name}: no connection in time")
    if isinstance(error, TimeoutError):
        return UpstreamTimeout(f"{name}: no answer in time")
    if isinstance(error, aiohttp.ClientConnectorError):
        return UpstreamError(f"{name}: cannot connect ({type(error.os_error).__name__})")
    if isinstance(error, aiohttp.ServerDisconnectedError | aiohttp.ClientPayloadError | ConnectionError):
        return UpstreamError(f"{name}: the connection broke")
    return UpstreamError(f"{name}: {type(error).__name__}")


def _own_headers(backend: Backend) -> dict[str, str]:
    headers = {"content-type": "application/json"} | {name.lower(): value for name, value in backend.headers.items()}
    if backend.key:
        if backend.auth == "api-key":
            headers["api-key"] = backend.key
        else:
            headers["authorization"] = f"Bearer {backend.key}"
    return headers


def _url(backend: Backend, path: str) -> str:
    query = f"?api-version={backend.api_version}" if backend.api_version else ""
    return backend.url.rstrip("/") + path + query


def _lowered(raw: tuple[tuple[bytes, bytes], ...]) -> Headers:
    return tuple((name.lower(), value) for name, value in raw)


async def _chunks(name: str, response: aiohttp.ClientResponse) -> AsyncIterator[bytes]:
    try:
        async for chunk in response.content.iter_any():
            yield chunk
    except (TimeoutError, aiohttp.ClientError, OSError) as error:
        raise as_upstream_error(name, error) from None


def _closer(response: aiohttp.ClientResponse) -> Callable[[], Awaitable[None]]:
    async def close() -> None:
        # A body read to its end has given its connection back already; anything else is cut, which stops the model.
        response.close()
        await asyncio.sleep(0)

    return close
