"""Several classifiers, asked in order until one is sure enough: the quick one first, the slow one when it is unsure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from fingerpost.chat import Conversation
from fingerpost.classifiers import Classifier, ask
from fingerpost.errors import ClassifierError
from fingerpost.records import Verdict
from fingerpost.routes import RouteTable


@dataclass(frozen=True, slots=True)
class Link:
    """A classifier of a chain and the confidence from which its verdict ends the asking."""

    classifier: Classifier
    threshold: float = 0.0


class Chain:
    """Asks its links in order and takes the first verdict that reaches its threshold.

    When none does, the last verdict that was given counts: it comes from the link that was asked because the others were
    unsure. A link that fails or is late is passed over.
    """

    name = "chain"
    deadline: float | None = None

    def __init__(self, links: Sequence[Link]) -> None:
        self.links = tuple(links)

    async def prepare(self, table: RouteTable) -> None:
        """Prepares every link."""
        for link in self.links:
            await link.classifier.prepare(table)

    async def classify(self, conversation: Conversation, table: RouteTable) -> Verdict | None:
        """The first sure verdict, else the last one given; None when no link has an opinion."""
        last: Verdict | None = None
        failures: list[str] = []
        for link in self.links:
            verdict, failure = await ask(link.classifier, conversation, table)
            if failure:
                failures.append(failure)
            if verdict is not None:
                last = verdict
                if verdict.confidence >= link.threshold:
                    break
        if last is None and failures:
            raise ClassifierError("; ".join(failures))
        if last is not None and failures:
            note = "; ".join([*failures, last.note] if last.note else failures)
            return replace(last, note=note, provisional=True)
        return last

    async def aclose(self) -> None:
        """Closes every link."""
        for link in self.links:
            await link.classifier.aclose()
