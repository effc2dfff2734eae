"""An output that several processes write lines to."""

from __future__ import annotations

import io
import os
import select
from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

MOST = select.PIPE_BUF
"""Bytes that a pipe takes in one piece, however full it is (POSIX, write())."""


class WholeLines(io.RawIOBase):
    """Writes lines to a file descriptor so that those of other processes come between them, and never within one.

    A line that is longer than `MOST` is written alone, and may be broken by another one where the pipe is full.
    """

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def writable(self) -> bool:
        return True

    def write(self, data: ReadableBuffer, /) -> int:
        """Writes whole lines, all of them."""
        given = memoryview(data).tobytes()
        for piece in in_pieces(given, MOST):
            left = piece
            while left:
                left = left[os.write(self._descriptor, left) :]
        return len(given)


def in_pieces(lines: bytes, most: int) -> Iterator[bytes]:
    """The lines in pieces of at most so many bytes, each of whole lines, but for a line that is longer itself."""
    start = 0
    while start < len(lines):
        end = len(lines) if len(lines) - start <= most else lines.rfind(b"\n", start, start + most) + 1
        if end == 0:
            end = lines.find(b"\n", start) + 1 or len(lines)
        yield lines[start:end]
        start = end
