"""The head of a message that is the same as one before it on its connection, known again without parsing it. Pure."""

from __future__ import annotations

import re
from functools import lru_cache

import msgspec

Headers = tuple[tuple[bytes, bytes], ...]

_LENGTH = re.compile(rb"\r\ncontent-length:[ \t]*([0-9]+)(?=\r\n)", re.IGNORECASE)


class KnownHead(msgspec.Struct, frozen=True, gc=False):
    """The first line and the headers of an HTTP message that a parser took, but for the length of its body.

    Who keeps a connection sends the same head again and again. Whatever differs by a byte goes to the parser. `before` and
    `after` are its bytes on both sides of that length, and `fixed` is how many those are.
    """

    before: bytes
    after: bytes
    fixed: int

    @classmethod
    def of(cls, data: bytes, size: int) -> KnownHead | None:
        """What was parsed from `data`, a message with a body of `size` bytes; None where something else is there as well."""
        end = len(data) - size
        length = _LENGTH.search(data, 0, end)
        if length is None or data.find(b"\r\n\r\n") != end - 4:
            return None
        before, after = data[: length.start(1)], data[length.end(1) : end]
        return cls(before, after, len(before) + len(after))

    def body(self, data: bytes) -> bytes | None:
        """The body of a message with this head; None where `data` is anything but one such message, whole.

        How much there is tells what its length must be, so that one comparison is enough. That it has as many digits as it
        has together with them is wrong for the likes of 99 bytes; those are parsed.
        """
        size = len(data)
        start = self.fixed + len(str(size - self.fixed))
        return data[start:] if data[:start] == b"%b%d%b" % (self.before, size - start, self.after) else None


@lru_cache(256)
def shared(headers: Headers) -> Headers:
    """The one tuple for all that are equal to it: finding it in a cache then takes no comparing."""
    return headers
