"""Who watches: an Observer hears the whole story of each request once, when it is over."""

from __future__ import annotations

from typing import Protocol

from fingerpost.records import Exchange


class Observer(Protocol):
    """Hears each Exchange. Must not block: it runs in the event loop."""

    def observe(self, exchange: Exchange) -> None:
        """Takes one exchange."""
