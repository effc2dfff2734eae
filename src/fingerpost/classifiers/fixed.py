"""The classifier that always believes the same: for tests and for gateways with a single route."""

from __future__ import annotations

from fingerpost.chat import Conversation
from fingerpost.records import Verdict
from fingerpost.routes import OTHER, RouteTable


class Fixed:
    """Believes in one route with one probability and gives the rest to `other`."""

    name = "fixed"
    deadline: float | None = None

    def __init__(self, route: str, confidence: float = 1.0) -> None:
        self.route = route
        self.confidence = confidence

    async def prepare(self, table: RouteTable) -> None:
        """Nothing to prepare."""

    async def classify(self, conversation: Conversation, table: RouteTable) -> Verdict:
        """The same verdict whatever is said."""
        if self.route == OTHER:
            return Verdict({OTHER: 1.0}, self.name)
        return Verdict({self.route: self.confidence, OTHER: 1 - self.confidence}, self.name)

    async def aclose(self) -> None:
        """Nothing to give back."""
