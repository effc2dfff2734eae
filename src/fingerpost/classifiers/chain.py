"""Several classifiers, asked in order until one is sure enough, or all at once: a quick one, and a slow one for hard cases."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

import msgspec

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

    def is_sure(self, verdict: Verdict | None) -> bool:
        """Whether a verdict of this link ends the asking."""
        return verdict is not None and verdict.confidence >= self.threshold


Answer = tuple[Verdict | None, str]


class Chain:
    """Asks its links in order and takes the first verdict that reaches its threshold; with `race`, asks all of them at once.

    When none reaches it, the verdict of the last link that gave one counts: that link is asked because the others are
    unsure. A link that fails or is late is passed over. A race ends with the first sure verdict to arrive; those who have
    not answered by then are cancelled, so no race takes longer than the longest deadline of its links.
    """

    name = "chain"
    deadline: float | None = None

    def __init__(self, links: Sequence[Link], *, race: bool = False) -> None:
        self.links = tuple(links)
        self.race = race

    async def prepare(self, table: RouteTable) -> None:
        """Prepares every link."""
        for link in self.links:
            await link.classifier.prepare(table)

    async def classify(self, conversation: Conversation, table: RouteTable) -> Verdict | None:
        """The first sure verdict, else that of the last link that gave one; None when no link has an opinion."""
        answers = await (self._at_once if self.race else self._in_turn)(conversation, table)
        failures = [failure for _, (_, failure) in answers if failure]
        given = [verdict for _, (verdict, _) in answers if verdict is not None]
        sure = [verdict for link, (verdict, _) in answers if verdict is not None and link.is_sure(verdict)]
        if not given:
            if failures:
                raise ClassifierError("; ".join(failures))
            return None
        verdict = sure[0] if sure else given[-1]
        if failures:
            note = "; ".join([*failures, verdict.note] if verdict.note else failures)
            return msgspec.structs.replace(verdict, note=note, provisional=True)
        return verdict

    async def aclose(self) -> None:
        """Closes every link."""
        for link in self.links:
            await link.classifier.aclose()

    async def _in_turn(self, conversation: Conversation, table: RouteTable) -> list[tuple[Link, Answer]]:
        answers = []
        for link in self.links:
            answer = await ask(link.classifier, conversation, table)
            answers.append((link, answer))
            if link.is_sure(answer[0]):
                break
        return answers

    async def _at_once(self, conversation: Conversation, table: RouteTable) -> list[tuple[Link, Answer]]:
        # The group waits for the cancelled too, also when the client leaves: what they hold is given back before it ends.
        async with asyncio.TaskGroup() as group:
            running = {group.create_task(ask(link.classifier, conversation, table)): link for link in self.links}
            late = set(running)
            while late:
                done, late = await asyncio.wait(late, return_when=asyncio.FIRST_COMPLETED)
                if any(running[task].is_sure(task.result()[0]) for task in done):
                    break
            for task in late:
                task.cancel()
        return [(link, task.result()) for task, link in running.items() if task not in late]
