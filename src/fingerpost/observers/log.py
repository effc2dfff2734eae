"""One JSON line for each exchange."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import TextIO

import msgspec

from fingerpost.records import Exchange


class JsonLog:
    """Writes each exchange as a line of JSON to a text stream; `now` gives seconds since the epoch."""

    def __init__(self, stream: TextIO, now: Callable[[], float] = time.time) -> None:  # noqa: TID251  (a stamp)
        self._stream = stream
        self._now = now

    def observe(self, exchange: Exchange) -> None:
        """Writes one line, stamped with UTC."""
        stamp = datetime.fromtimestamp(self._now(), UTC).isoformat(timespec="milliseconds")
        line = msgspec.json.encode({"at": stamp, **exchange.to_json()}).decode()
        self._stream.write(line + "\n")
        self._stream.flush()
