"""A large body, read straight into its place."""

from __future__ import annotations

import asyncio
from typing import Protocol

from fingerpost.server.request import Request


class Connected(Protocol):
    """The connection that the body comes in by, and goes on with what comes after it."""

    def filled(self, request: Request, body: bytearray) -> None:
        """Takes the body that has come whole."""

    def eof_received(self) -> bool | None:
        """See asyncio.Protocol, as for those below."""

    def connection_lost(self, exc: Exception | None) -> None: ...

    def pause_writing(self) -> None: ...

    def resume_writing(self) -> None: ...


LEAST = 1_048_576
"""Bytes of room that are made at a time, at least."""


class Filling(asyncio.BufferedProtocol):
    """Stands in for a connection's protocol until a body whose length was stated is there.

    Through a parser, bytes are copied out of what was read, and copied once more to stand in one piece. Here they are read
    to where they stay. Stating a length costs a client nothing, so room is made as the body comes: for three times as much.
    """

    def __init__(self, connection: Connected, request: Request) -> None:
        self._connection = connection
        self._request = request
        self._body = bytearray(request.take())

    def get_buffer(self, sizehint: int) -> memoryview:
        """Where what comes next is to be written."""
        size, stated = self._request.size, self._request.stated
        if size == len(self._body):
            grown = bytearray(min(max(4 * size, size + LEAST), stated))
            grown[:size] = self._body
            self._body = grown
        return memoryview(self._body)[size:]

    def buffer_updated(self, nbytes: int) -> None:
        """So much of it has come."""
        request = self._request
        request.size += nbytes
        if request.size == request.stated:
            self._connection.filled(request, self._body)

    def eof_received(self) -> bool | None:
        return self._connection.eof_received()

    def connection_lost(self, exc: Exception | None) -> None:
        self._connection.connection_lost(exc)

    def pause_writing(self) -> None:
        self._connection.pause_writing()

    def resume_writing(self) -> None:
        self._connection.resume_writing()
