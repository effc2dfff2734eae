"""Reading token usage out of a reply while its bytes pass by. Pure: bytes in, numbers out."""

from __future__ import annotations

from typing import Annotated

import msgspec

from fingerpost.records import Usage

MAX_BUFFERED = 1 << 20
"""Bytes of one event, or of one JSON body, beyond which usage is given up rather than memory spent on it."""


_Count = Annotated[int, msgspec.Meta(ge=0, le=2**53)]


class _Counts(msgspec.Struct):
    prompt_tokens: _Count = 0
    completion_tokens: _Count = 0


class _Answer(msgspec.Struct):
    usage: _Counts | None = None


_decode = msgspec.json.Decoder(_Answer).decode


class UsageReader:
    """Sees every chunk of one reply and knows its usage at the end.

    Feed it the chunks of a JSON body, or (`stream`) of server-sent events as the WHATWG HTML specification has them
    (section 9.2.6, lines end with LF or CR LF), cut anywhere.
    """

    def __init__(self, *, stream: bool) -> None:
        self.usage: Usage | None = None
        self._stream = stream
        self._buffer = bytearray()
        self._too_long = False

    def feed(self, chunk: bytes) -> None:
        """Takes the next chunk."""
        if self._too_long or (self._stream and not self._buffer and chunk.endswith(b"\n") and chunk.find(b'"usage"') < 0):
            return  # whole events that do not speak of usage, as nearly all of a stream's chunks are
        self._buffer += chunk
        if self._stream:
            self._read_lines()
        if len(self._buffer) > MAX_BUFFERED:
            self._buffer.clear()
            self._too_long = not self._stream

    def close(self) -> Usage | None:
        """The usage, or None when the reply did not say it."""
        if self._buffer:
            self._read(bytes(self._buffer).removeprefix(b"data:"))
        return self.usage

    def _read_lines(self) -> None:
        end = self._buffer.rfind(b"\n") + 1
        for line in bytes(self._buffer[:end]).splitlines():
            # Only the last event of a stream carries usage; the others are not worth decoding.
            if line.startswith(b"data:") and b'"usage"' in line:
                self._read(line[5:])
        del self._buffer[:end]

    def _read(self, data: bytes) -> None:
        self.usage = read_usage(data) or self.usage


def read_usage(data: bytes) -> Usage | None:
    """The usage that a JSON body says; None where it does not, or is no JSON."""
    try:
        counts = _decode(data).usage
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None
    return None if counts is None else Usage(counts.prompt_tokens, counts.completion_tokens)
