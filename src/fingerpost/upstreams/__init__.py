"""Who carries: one Upstream for each backend takes a Call there and brings the Reply back byte for byte."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from typing import Protocol

import msgspec

from fingerpost.routes import Backend
from fingerpost.splice import Source

Headers = Sequence[tuple[bytes, bytes]]
"""Header fields in order, names in lower case."""


class Call(msgspec.Struct, frozen=True, gc=False):
    """A request on its way to a backend: the JSON body and those client headers that may pass.

    `deadline`, on the event loop's clock, is when nobody will wait for its answer any longer.
    """

    backend: Backend
    body: Source
    headers: Headers = ()
    path: str = "/chat/completions"
    method: str = "POST"
    deadline: float | None = None


Take = Callable[[bytes], bool]
"""Takes a piece of a body; whether more may come at once."""


def _nothing() -> None:
    return None


class Reply(msgspec.Struct, frozen=True):
    """A backend's answer: status, headers and body chunks as they arrive. `length` is what it states as its content-length, if
    it does; `headers` are all others, and so the same for many replies.

    Iterating `chunks` raises UpstreamError when the backend breaks off. `close` gives the connection back, or cuts it when
    the body was not read to its end; call it always. `pour`, where there is one, spares waking a task for each chunk: from
    the moment that it is awaited, what comes goes straight to a function. It returns at the end of the body, whatever that
    is, or when the function has had enough; then go on iterating. `whole` is the body where all of it has come with the head:
    who takes that needs neither.
    """

    status: int
    headers: Headers
    chunks: AsyncIterator[bytes]
    close: Callable[[], None] = _nothing
    pour: Callable[[Take], Awaitable[None]] | None = None
    whole: bytes | None = None
    length: int | None = None

    def header(self, name: bytes) -> bytes:
        """The value of the first header of that (lower-case) name; empty when there is none."""
        return next((value for key, value in self.headers if key == name), b"")

    async def read(self, limit: int) -> bytes:
        """The body whole, at most `limit` bytes of it; closes the reply."""
        parts, size = [], 0
        try:
            async for chunk in self.chunks:
                parts.append(chunk)
                size += len(chunk)
                if size >= limit:
                    break
        finally:
            self.close()
        return b"".join(parts)[:limit]


class Upstream(Protocol):
    """Carries calls to one backend."""

    async def send(self, call: Call) -> Reply:
        """The backend's reply, whatever its status, as soon as its headers are there.

        Raises:
            UpstreamError: no connection, or it broke before the headers came.
            UpstreamTimeout: it took too long to connect or to answer.
        """

    async def aclose(self) -> None:
        """Closes all connections."""


Upstreams = Mapping[str, Upstream]
"""Upstreams by the name of their backend."""
