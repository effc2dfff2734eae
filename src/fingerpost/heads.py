"""The head of a message that is the same as one before it on its connection, known again without parsing it. Pure."""

from __future__ import annotations

import re
from functools import lru_cache

import msgspec

Headers = tuple[tuple[bytes, bytes], ...]

_LENGTH = re.compile(rb"\r\ncontent-length:[ \t]*([0-9]+)(?=\r\n)", re.IGNORECASE)
_DIGITS = 12
"""Digits of a length that are looked at; no body comes in one piece of so many bytes."""


class KnownHead(msgspec.Struct, frozen=True, gc=False):
    """The first line and the headers of an HTTP message that a parser took, but for the length of its body.

    Who keeps a connection sends the same head again and again. Whatever differs by a byte goes to the parser. `before` and
    `after` are its bytes on both sides of that length, `start` is where the length is, and `rest` how long `after` is.
    """

    before: bytes
    after: bytes
    start: int
    rest: int

    @classmethod
    def of(cls, data: bytes, size: int) -> KnownHead | None:
        """What was parsed from `data`, a message with a body of `size` bytes; None where something else is there as well."""
        end = len(data) - size
        length = _LENGTH.search(data, 0, end)
        if length is None or data.find(b"\r\n\r\n") != end - 4:
            return None
        return cls(data[: length.start(1)], data[length.end(1) : end], length.start(1), end - length.end(1))

    def body(self, data: bytes) -> bytes | None:
        """The body of a message with this head; None where `data` is anything but one such message, whole."""
        start = self.start
        end = data.find(b"\r", start, start + _DIGITS)
        if end > start and data.startswith(self.before) and data.startswith(self.after, end):
            body = data[end + self.rest :]
            if data[start:end] == b"%d" % len(body):
                return body
        return None


@lru_cache(256)
def shared(headers: Headers) -> Headers:
    """The one tuple for all that are equal to it: finding it in a cache then takes no comparing."""
    return headers
