"""A classifier for tests: it believes what its script says."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from fingerpost.chat import Conversation
from fingerpost.records import Verdict
from fingerpost.routes import RouteTable


class ScriptedClassifier:
    """Believes what its script says, verdict by verdict, then the last one for ever; raises what is an exception.

    `seen` holds the conversations that it was asked about; `delay` seconds pass before each answer.
    """

    name = "scripted"

    def __init__(
        self, *script: Verdict | Exception | None, delay: float = 0.0, deadline: float | None = None, name: str = "scripted"
    ) -> None:
        self.name = name
        self.deadline = deadline
        self.delay = delay
        self.seen: list[Conversation] = []
        self.prepared: list[RouteTable] = []
        self.closed = 0
        self._script: Sequence[Verdict | Exception | None] = script or (None,)

    async def prepare(self, table: RouteTable) -> None:
        """Remembers that it was asked to."""
        self.prepared.append(table)

    async def classify(self, conversation: Conversation, table: RouteTable) -> Verdict | None:
        """The next entry of the script."""
        self.seen.append(conversation)
        await asyncio.sleep(self.delay)
        entry = self._script[min(len(self.seen), len(self._script)) - 1]
        if isinstance(entry, Exception):
            raise entry
        return entry

    async def aclose(self) -> None:
        """Counts."""
        self.closed += 1
