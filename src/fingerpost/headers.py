"""Which headers go on to a backend, which go back to the client, and what those of a reply say of its body. Pure."""

from __future__ import annotations

from functools import lru_cache
from typing import Literal

from fingerpost.upstreams import Headers
from fingerpost.upstreams.wire import fields

PASSED_REQUEST_HEADERS = frozenset({
    b"accept", b"accept-encoding", b"accept-language", b"content-type", b"idempotency-key", b"openai-beta", b"traceparent",
    b"tracestate", b"user-agent", b"x-request-id",
})  # fmt: skip
"""Client headers that reach a backend. A list of what may pass, so that no client can add a key, a host or a proxy hop."""

STOPPED_REPLY_HEADERS = frozenset({
    b"connection", b"keep-alive", b"proxy-authenticate", b"proxy-connection", b"te", b"trailer", b"transfer-encoding",
    b"upgrade", b"content-length", b"set-cookie", b"alt-svc", b"strict-transport-security",
})  # fmt: skip
"""Reply headers that stop here: hop-by-hop ones (RFC 9110, section 7.6.1), the length, which is written anew, and those that
speak for the backend's host."""


@lru_cache(64)
def going_on(headers: tuple[tuple[bytes, bytes], ...]) -> Headers:
    """Those of a client's headers that a backend gets; a client mostly sends the same ones again."""
    hop = _hop_by_hop(headers)
    return tuple(pair for pair in headers if pair[0] in PASSED_REQUEST_HEADERS and pair[0] not in hop)


def readable(headers: Headers) -> Headers:
    """The headers, asking for a reply whose usage can be read in passing: a compressed one would hide what it costs."""
    kept = (pair for pair in headers if pair[0] != b"accept-encoding")
    return (*kept, (b"accept-encoding", b"identity"))


class ReplyHead:
    """What a reply's headers say: those that go back to the client, also as `lines`, and whether it is encoded or a stream of
    events.

    Raises:
        ValueError: one of them cannot be written.
    """

    __slots__ = ("encoded", "events", "going_back", "lines")

    def __init__(self, headers: Headers) -> None:
        self.encoded = self.events = False
        going_back, hop = [], _NO_HEADERS
        for pair in headers:
            matter = _matter(pair[0])
            if matter == "type":
                self.events = b"event-stream" in pair[1].lower()
            elif matter == "encoding":
                self.encoded = True
            elif matter == "connection" and pair[1].lower() not in _ABOUT_IT_ONLY:
                hop = _hop_by_hop(headers)
            if matter not in _STOPPED:
                going_back.append(pair)
        self.going_back: Headers = tuple([pair for pair in going_back if pair[0] not in hop] if hop else going_back)
        self.lines = fields(self.going_back)


read_head = lru_cache(64)(ReplyHead)
"""The same for a tuple of headers; replies that come at the same time often have the same ones."""

_Matter = Literal["none", "type", "encoding", "connection", "stopped"]
_STOPPED = frozenset({"connection", "stopped"})


@lru_cache(512)
def _matter(name: bytes) -> _Matter:
    """What a reply's header of that name is to us; backends send the same few dozen names again and again."""
    if name in STOPPED_REPLY_HEADERS or name.startswith(b"x-fingerpost-"):
        return "connection" if name == b"connection" else "stopped"
    known: dict[bytes, _Matter] = {b"content-type": "type", b"content-encoding": "encoding"}
    return known.get(name, "none")


_ABOUT_IT_ONLY = frozenset({b"keep-alive", b"close"})
_NO_HEADERS: frozenset[bytes] = frozenset()


def _hop_by_hop(headers: Headers) -> frozenset[bytes]:
    """The headers that `connection` declares to be about this hop only."""
    for name, value in headers:
        if name == b"connection" and value.lower() not in _ABOUT_IT_ONLY:
            values = [value for name, value in headers if name == b"connection"]
            return frozenset(token.strip().lower() for value in values for token in value.split(b","))
    return _NO_HEADERS
