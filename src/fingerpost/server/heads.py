"""The head of a request that is the same as one before it on its connection, understood without parsing it again. Pure."""

from __future__ import annotations

import re

import msgspec

Headers = tuple[tuple[bytes, bytes], ...]

_LENGTH = re.compile(rb"\r\ncontent-length:[ \t]*([0-9]+)(?=\r\n)", re.IGNORECASE)
_DIGITS = 12
"""Digits of a length that are looked at; no body comes in one piece of so many bytes."""


class KnownHead(msgspec.Struct, frozen=True):
    """The line and the headers of a request that the parser took, but for the length of its body.

    Clients that keep a connection send the same head again and again. Whatever differs by a byte goes to the parser. `before`
    and `after` are its bytes on both sides of that length.
    """

    before: bytes
    after: bytes
    method: str
    path: str
    headers: Headers
    encoding: bytes

    @classmethod
    def of(cls, data: bytes, size: int, method: str, path: str, headers: Headers, encoding: bytes) -> KnownHead | None:
        """What was parsed from `data`, a request with a body of `size` bytes; None where something else is there as well."""
        end = len(data) - size
        length = _LENGTH.search(data, 0, end)
        if length is None or data.find(b"\r\n\r\n") != end - 4:
            return None
        return cls(data[: length.start(1)], data[length.end(1) : end], method, path, headers, encoding)

    def body(self, data: bytes) -> bytes | None:
        """The body of a request with this head; None where `data` is anything but one such request, whole."""
        before, after = self.before, self.after
        start = len(before)
        end = data.find(b"\r", start, start + _DIGITS)
        if end < 0 or not data.startswith(before) or not data.startswith(after, end):
            return None
        digits, body = data[start:end], data[end + len(after) :]
        return body if digits.isdigit() and int(digits) == len(body) else None
