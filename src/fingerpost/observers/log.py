"""One JSON line for each exchange."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from datetime import UTC, datetime
from functools import lru_cache
from typing import TextIO

import msgspec

from fingerpost.records import Exchange

_log = logging.getLogger("fingerpost.observers")
_encode_lines = msgspec.json.Encoder().encode_lines


class JsonLog:
    """Writes each exchange as a line of JSON to a text stream; `now` gives seconds since the epoch.

    In an event loop, what ends in one round of it is stamped alike and written together, at the end of that round.
    """

    def __init__(self, stream: TextIO, now: Callable[[], float] = time.time) -> None:  # noqa: TID251  (a stamp)
        self._stream = stream
        self._now = now
        self._told: list[Exchange] = []
        self._stamp = ""

    def observe(self, exchange: Exchange) -> None:
        """Takes one exchange, stamped with UTC."""
        self._told.append(exchange)
        if len(self._told) > 1:
            return
        seconds, milliseconds = divmod(int(self._now() * 1e3), 1000)
        self._stamp = f"{_second(seconds)}.{milliseconds:03d}+00:00"
        try:
            asyncio.get_running_loop().call_soon(self.flush)
        except RuntimeError:  # no loop: nobody comes back to it
            self.flush()

    def flush(self) -> None:
        """Writes what was taken."""
        told, self._told = self._told, []
        try:
            self._stream.write(_encode_lines([exchange.line(self._stamp) for exchange in told]).decode())
            self._stream.flush()
        except (OSError, ValueError) as error:  # a full disk, a reader that has gone, a stream that was closed
            _log.error("the log of requests cannot be written: %s", type(error).__name__)


@lru_cache(2)
def _second(seconds: int) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S")
