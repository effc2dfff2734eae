"""Who guesses: a Classifier reads a conversation and says what it believes about the routes of a table."""

from __future__ import annotations

from typing import Protocol

from fingerpost.chat import Conversation
from fingerpost.records import Verdict
from fingerpost.routes import RouteTable


class Classifier(Protocol):
    """Believes something about the routes of a table.

    `name` is the source that its verdicts carry; `deadline` is how long the router waits for it, in seconds (None: for as
    long as it takes).
    """

    name: str
    deadline: float | None

    async def prepare(self, table: RouteTable) -> None:
        """Does ahead of time what the first verdict about this table would have to wait for."""

    async def classify(self, conversation: Conversation, table: RouteTable) -> Verdict | None:
        """What it believes, or None when it has no opinion.

        Raises:
            ClassifierError: it should have an opinion but could not form one.
        """

    async def aclose(self) -> None:
        """Gives back what it holds."""
