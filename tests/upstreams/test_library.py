"""What is special about the library's client; what it shares with ours is in test_http1.py."""

from __future__ import annotations

import inspect

import aiohttp
import pytest
from aiohttp import client_exceptions
from aiohttp.client_reqrep import ConnectionKey

from fingerpost.errors import UpstreamError, UpstreamTimeout
from fingerpost.routes import Backend
from fingerpost.upstreams import Call
from fingerpost.upstreams.library import LibraryUpstream, as_upstream_error

from .conftest import Peer, backend

REPLY = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"


async def test_a_request_goes_through_a_proxy_with_the_backends_own_headers() -> None:
    requests: list[bytes] = []

    async def script(peer: Peer) -> None:
        requests.append(await peer.answer(REPLY))

    async with backend(script) as proxy:
        target = Backend("small", "m", "http://backend.invalid/v1", key="k1")
        upstream = LibraryUpstream(target, proxy=proxy.url.replace("http://", "http://user:pass@").removesuffix("/v1"))
        reply = await upstream.send(Call(target, b"{}"))
        assert await reply.read(10) == b"ok"
        await upstream.aclose()
    assert requests[0].startswith(b"POST http://backend.invalid/v1/chat/completions HTTP/1.1\r\n")
    assert b"authorization: bearer k1\r\n" in requests[0].lower()
    assert b"proxy-authorization: basic dxnlcjpwyxnz\r\n" in requests[0].lower()


async def test_a_proxy_that_refuses_is_no_connection() -> None:
    async def script(peer: Peer) -> None:
        await peer.reader.readuntil(b"\r\n\r\n")
        await peer.say(b"HTTP/1.1 403 Forbidden\r\ncontent-length: 0\r\n\r\n")

    async with backend(script) as proxy:
        target = Backend("small", "m", "https://backend.invalid/v1")
        upstream = LibraryUpstream(target, proxy=proxy.url.removesuffix("/v1"))
        with pytest.raises(UpstreamError, match=r"^small: cannot connect \(ClientHttpProxyError\)$"):
            await upstream.send(Call(target, b"{}"))
        await upstream.aclose()


async def test_an_upstream_that_never_called_can_be_closed_twice() -> None:
    upstream = LibraryUpstream(Backend("small", "m", "http://localhost/v1"))
    await upstream.aclose()
    await upstream.aclose()
    assert not upstream._sessions


SECRET = "sk-canary"


def examples_of_client_errors() -> list[Exception]:
    """One of each exception that aiohttp's client raises, those about web sockets left out."""
    key = ConnectionKey("example.com", 443, True, True, None, None, None)
    info = aiohttp.RequestInfo("http://example.com", "POST", {"authorization": SECRET}, "http://example.com")  # type: ignore
    special = {
        aiohttp.ClientConnectorError: (key, OSError(SECRET)),
        aiohttp.ClientSSLError: (key, OSError(SECRET)),
        aiohttp.ClientProxyConnectionError: (key, OSError(SECRET)),
        aiohttp.ClientConnectorSSLError: (key, OSError(SECRET)),
        aiohttp.ClientConnectorDNSError: (key, OSError(SECRET)),
        aiohttp.ClientConnectorCertificateError: (key, ValueError(SECRET)),
        client_exceptions.UnixClientConnectorError: ("/tmp/x", key, OSError(SECRET)),
        aiohttp.ServerFingerprintMismatch: (b"1", b"2", "example.com", 443),
    }
    found = []
    for name in (name for name in client_exceptions.__all__ if not name.startswith("WS")):
        kind = getattr(client_exceptions, name)
        response_error = inspect.isclass(kind) and issubclass(kind, aiohttp.ClientResponseError)
        found.append(kind(*special.get(kind, (info, ()) if response_error else (SECRET,))))
    return found


@pytest.mark.parametrize("error", examples_of_client_errors(), ids=lambda error: type(error).__name__)
def test_every_error_of_the_http_library_is_caught_and_mapped_without_its_text(error: Exception) -> None:
    assert isinstance(error, TimeoutError | aiohttp.ClientError | OSError | ValueError)
    mapped = as_upstream_error("small", error)
    assert isinstance(mapped, UpstreamTimeout) == isinstance(error, TimeoutError)
    assert mapped.message.startswith("small: ")
    assert SECRET not in mapped.message


def test_a_late_connection_is_told_apart_from_a_late_answer() -> None:
    assert as_upstream_error("small", aiohttp.ConnectionTimeoutError()).message == "small: no connection in time"
    assert as_upstream_error("small", aiohttp.SocketTimeoutError()).message == "small: no answer in time"
