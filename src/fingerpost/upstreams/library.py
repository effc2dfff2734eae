"""The upstream on aiohttp, for backends behind a proxy and for servers that our own client does not get along with."""

from __future__ import annotations

import asyncio
import io
from collections.abc import AsyncIterator
from weakref import WeakKeyDictionary

import aiohttp
from multidict import CIMultiDict
from yarl import URL

from fingerpost.errors import UpstreamError
from fingerpost.routes import Backend
from fingerpost.upstreams import Call, Headers, Reply, openai
from fingerpost.upstreams.openai import POOL_SIZE, own_headers, parse_url, tls_context
from fingerpost.upstreams.wire import without_length

ONE_WRITE = 1 << 20
"""Bytes of a body that aiohttp may write at once."""


class LibraryUpstream:
    """Carries calls to one OpenAI-compatible backend, through the HTTP proxy at the URL `proxy` if there is one.

    Create it anywhere; a session opens with the first call, one for each event loop that calls (a server has one loop,
    synchronous library use brings a second).

    Raises:
        ValueError: the backend's URL is none.
        OSError: its file of authorities cannot be read.
    """

    def __init__(self, backend: Backend, *, proxy: str | None = None, pool_size: int = POOL_SIZE) -> None:
        self.backend = backend
        self.proxy = proxy
        self.pool_size = pool_size
        self._address = parse_url(backend.url)
        self._tls = tls_context(backend.ca) if self._address.secure else True
        self._own_headers = own_headers(backend)
        self._sessions: WeakKeyDictionary[asyncio.AbstractEventLoop, aiohttp.ClientSession] = WeakKeyDictionary()

    async def send(self, call: Call) -> Reply:
        """The backend's reply as soon as its headers are there; see `Upstream.send` for what it raises.

        After an interim reply (1xx) aiohttp no longer watches over silence; the limit on the whole call ends that.
        """
        # aiohttp writes header values as UTF-8, so reading them as anything else would change them.
        headers = CIMultiDict((name.decode("latin-1"), value.decode("utf-8", "replace")) for name, value in call.headers)
        headers.update(self._own_headers)
        # aiohttp wants large bodies as files, which it reads piece by piece; BytesIO shares the bytes.
        content = call.body if len(call.body) <= ONE_WRITE else io.BytesIO(call.body)
        try:
            url = URL(self._address.url(call.path, self.backend.api_version), encoded=True)
            response = await self._connected().request(
                call.method, url, data=content, headers=headers, allow_redirects=False, ssl=self._tls, proxy=self.proxy
            )
        except (TimeoutError, aiohttp.ClientError, OSError, ValueError) as error:
            raise as_upstream_error(self.backend.name, error) from None
        chunks = _chunks(self.backend.name, response)
        # A body read to its end has given its connection back already; anything else is cut, which stops the model.
        passed, length = without_length(_lowered(response.raw_headers))
        return Reply(response.status, passed, chunks, response.close, length=length)

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
                connector=aiohttp.TCPConnector(limit=self.pool_size, ttl_dns_cache=60),
                timeout=aiohttp.ClientTimeout(total=limits.total, sock_connect=limits.connect, sock_read=limits.read),
                # Bytes pass as the backend sent them: compressed stays compressed, and no cookie is kept between clients.
                auto_decompress=False,
                cookie_jar=aiohttp.DummyCookieJar(),
                skip_auto_headers=("user-agent", "accept-encoding"),
            )
        return session


def as_upstream_error(name: str, error: BaseException) -> UpstreamError:
    """The one place where the library's errors become ours, in the same words as for our own client."""
    if isinstance(error, aiohttp.ConnectionTimeoutError):
        return openai.connected_late(name)
    if isinstance(error, TimeoutError):
        return openai.answered_late(name)
    if isinstance(error, aiohttp.ClientConnectorError):
        return openai.unreachable(name, error.os_error)
    if isinstance(error, aiohttp.ClientHttpProxyError):
        return openai.unreachable(name, error)
    # A body that ends early and one that is no valid HTTP are the same error of aiohttp.
    if isinstance(error, aiohttp.ServerDisconnectedError | aiohttp.ClientPayloadError | ConnectionError):
        return openai.broken(name)
    if isinstance(error, aiohttp.ClientResponseError):
        return openai.not_http(name)
    if isinstance(error, ValueError):
        return openai.unsendable(name)
    return UpstreamError(f"{name}: {type(error).__name__}")


def _lowered(raw: tuple[tuple[bytes, bytes], ...]) -> Headers:
    return tuple((name.lower(), value) for name, value in raw)


async def _chunks(name: str, response: aiohttp.ClientResponse) -> AsyncIterator[bytes]:
    try:
        async for chunk in response.content.iter_any():
            yield chunk
    except (TimeoutError, aiohttp.ClientError, OSError) as error:
        raise as_upstream_error(name, error) from None
