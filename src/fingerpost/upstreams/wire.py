"""HTTP/1.1 as bytes (RFC 9112): the head of a request out, the reply in. Pure: no sockets, no clock."""

from __future__ import annotations

from functools import lru_cache

import httptools
import msgspec

from fingerpost.heads import KnownHead, shared
from fingerpost.routes import Backend
from fingerpost.upstreams import Headers
from fingerpost.upstreams.openai import Address, own_headers

MAX_HEAD = 65_536
"""Bytes of header fields in one reply, interim replies and trailers included. Servers send 1 KB; none needs more than 16."""

MAX_FIELDS = 256
"""Header fields in one reply."""

HEADS_LEARNT = 4
"""Heads of a connection's replies that are kept in vain, each in place of the one before, until no more are."""

FRAMING = frozenset({
    b"host", b"connection", b"content-length", b"expect", b"keep-alive", b"proxy-connection", b"te", b"trailer",
    b"transfer-encoding", b"upgrade",
})  # fmt: skip
"""Headers that are this client's own business: how requests are delimited, and what happens to the connection."""


_SAYS_WHERE_IT_ENDS = frozenset({b"transfer-encoding", b"content-length"})


class NotHttp(Exception):
    """What came is no valid reply, or one beyond the bounds above."""


class RequestWriter:
    """Writes the heads of requests to one backend; all that does not change between them is written once."""

    def __init__(self, backend: Backend, address: Address) -> None:
        self._backend, self._address = backend, address
        own = {name.encode("latin-1"): value.encode() for name, value in own_headers(backend).items()}
        host = own.pop(b"host", address.authority.encode())
        kept = [(name, value) for name, value in own.items() if name not in FRAMING]
        self._fixed = b" HTTP/1.1\r\n" + fields([(b"host", host), *kept])
        self._stopped = FRAMING | own.keys()
        self._before_length = lru_cache(64)(self._write_before_length)

    def head(self, path: str, headers: Headers, length: int, method: str = "POST") -> bytes:
        """The head of a request with a body of `length` bytes and those of a client's headers that we do not send ourselves.

        Raises:
            ValueError: a header or the path has a line break or another character that would end it early.
        """
        return b"%b%d\r\n\r\n" % (self._before_length(path, tuple(headers), method), length)

    def _write_before_length(self, path: str, headers: tuple[tuple[bytes, bytes], ...], method: str) -> bytes:
        line = f"{method} {self._address.target(path, self._backend.api_version)}".encode("ascii")
        if not line.decode().isprintable() or line.count(b" ") != 1:
            raise ValueError("this path cannot be asked for")
        passed = fields([field for field in headers if field[0] not in self._stopped])
        return b"%b%b%bcontent-length: " % (line, self._fixed, passed)


def without_length(headers: Headers) -> tuple[Headers, int | None]:
    """The header fields of a reply but for its content-length, and that length, None where it is no number (see `Reply`)."""
    stated = next((value for name, value in headers if name == b"content-length"), b"")
    return tuple(pair for pair in headers if pair[0] != b"content-length"), int(stated) if stated.isdigit() else None


def fields(headers: Headers) -> bytes:
    """Header fields as lines.

    Raises:
        ValueError: one of them has a line break or another character that would end it early.
    """
    written = b"".join([b"%b: %b\r\n" % field for field in headers])
    # One comparison for all of them: any line break beyond those just written is somebody's attempt to add a header.
    if not len(headers) == written.count(b"\n") == written.count(b"\r") or written.count(b"\0"):
        raise ValueError("this header cannot be sent")
    return written


class Incoming(msgspec.Struct, eq=False):
    """One reply as far as it has come in: `status` is 0 until its head is there, `length` is what it states, if it does, and
    `headers` are all others; `parts` is the body not yet taken.

    `reusable` says whether the connection is fit for another request once the reply is complete.
    """

    status: int = 0
    headers: tuple[tuple[bytes, bytes], ...] = ()
    length: int | None = None
    parts: list[bytes] = []
    begun: bool = False
    complete: bool = False
    reusable: bool = False


class ReplyParser:
    """Reads the replies of one connection, one after the other, out of bytes that are cut anywhere.

    llhttp, which does the reading, refuses what may be understood in two ways: conflicting lengths, folded or odd headers,
    bare line feeds. What it leaves open is closed here. The methods named `on_` are called by it.
    """

    def __init__(self) -> None:
        self._parser = httptools.HttpResponseParser(self)
        self._incoming = Incoming()
        self._known: KnownHead | None = None
        self._known_reply = self._incoming
        self._to_learn = HEADS_LEARNT

    def expect(self, incoming: Incoming) -> None:
        """Gets ready for the next reply and fills `incoming` with it."""
        self._incoming = incoming

    def feed(self, data: bytes) -> None:
        """Takes the next bytes.

        Raises:
            NotHttp: they are no part of a valid reply.
        """
        incoming, begins = self._incoming, False
        if not incoming.begun:
            incoming.begun = begins = True
            if self._known is not None and (body := self._known.body(data)):
                return self._fill(incoming, body)
            self._headers: list[tuple[bytes, bytes]] = []
            self._room = MAX_HEAD
            self._silent = 0
            self._framed = self._interim = False
            self._length: int | None = None
        self._silent += len(data)
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade):
            # A complete reply stays good whatever follows it; only the connection is spoilt.
            incoming.reusable = False
            if not incoming.complete:
                raise NotHttp from None
        # What is never finished would pile up without being noticed: a header line, a chunk's extension, a trailer.
        if self._silent > 2 * MAX_HEAD and not incoming.complete:
            raise NotHttp
        if begins and incoming.reusable and incoming.complete and self._to_learn:
            self._learn(incoming, data)

    def end(self) -> bool:
        """Takes the end of the connection; whether the reply is complete now. Without a length it reaches to here."""
        incoming = self._incoming
        incoming.complete = incoming.complete or bool(incoming.status and not self._framed)
        incoming.reusable = False
        return incoming.complete

    def on_message_begin(self) -> None:
        if self._incoming.complete:
            raise NotHttp  # another reply, which nobody asked for

    def on_header(self, name: bytes, value: bytes) -> None:
        name = name.lower()
        if self._incoming.status:
            return self._take_trailer(name, value)
        if name in _SAYS_WHERE_IT_ENDS:
            if name == b"transfer-encoding" and (self._framed or value.lower() != b"chunked"):
                raise NotHttp  # we offered no other coding, so this one could only be passed on undecoded
            self._framed = True
            if name == b"content-length":
                self._length = int(value)
                return
        self._headers.append((name, value.rstrip(b" \t")))

    def on_headers_complete(self) -> None:
        incoming, status, headers = self._incoming, self._parser.get_status_code(), self._headers
        if len(headers) > MAX_FIELDS:
            raise NotHttp
        if self._silent > self._room:  # else they cannot be too large; adding up takes time
            self._spend(sum([len(name) + len(value) + 4 for name, value in headers]))
        if status < 100 or self._parser.get_http_version() not in ("1.1", "1.0"):
            raise NotHttp
        self._interim = status < 200 and status != 101
        if self._interim:
            self._headers.clear()
            self._framed, self._length = False, None
            return
        incoming.status, incoming.headers, incoming.length = status, tuple(headers), self._length
        incoming.reusable = status != 101 and self._parser.should_keep_alive()
        self._framed = self._framed or status in (101, 204, 304)

    def _fill(self, incoming: Incoming, body: bytes) -> None:
        """Takes a reply that has come whole and whose head is known."""
        known = self._known_reply
        incoming.status, incoming.headers, incoming.length = known.status, known.headers, len(body)
        incoming.parts.append(body)
        incoming.complete = incoming.reusable = True
        self._to_learn = HEADS_LEARNT

    def _learn(self, incoming: Incoming, data: bytes) -> None:
        """Keeps the head of a reply that has come whole, and with nothing else."""
        self._to_learn -= 1
        size = sum([len(part) for part in incoming.parts])
        self._known = KnownHead.of(data, size) if size else None
        self._known_reply = Incoming(incoming.status, shared(incoming.headers))

    def _take_trailer(self, name: bytes, value: bytes) -> None:
        self._spend(len(name) + len(value) + 4)
        if name == b"transfer-encoding":  # llhttp would take such a one along to the next reply
            self._incoming.reusable = False

    def _spend(self, size: int) -> None:
        self._room -= size
        if self._room < 0:
            raise NotHttp

    def on_body(self, data: bytes) -> None:
        self._silent = 0
        self._incoming.parts.append(data)

    def on_message_complete(self) -> None:
        if self._interim:
            self._interim = False
        else:
            self._incoming.complete = True
