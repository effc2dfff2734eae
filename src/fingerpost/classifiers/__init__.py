"""Who guesses: a Classifier reads a conversation and says what it believes about the routes of a table."""

from __future__ import annotations

import asyncio
from typing import Protocol

from fingerpost.chat import Conversation
from fingerpost.errors import ClassifierError
from fingerpost.records import Verdict
from fingerpost.routes import OTHER, RouteTable


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


async def ask(classifier: Classifier, conversation: Conversation, table: RouteTable) -> tuple[Verdict | None, str]:
    """A classifier's verdict within its deadline, or None and how it failed (empty when it only has no opinion).

    Any plugin may stand there, and a broken one fails no request: whatever it raises or returns ends here.
    """
    name, deadline = classifier.name, classifier.deadline
    late = asyncio.timeout(deadline)
    try:
        async with late:
            verdict = await classifier.classify(conversation, table)
        if verdict is None or _is_sound(verdict, table):
            return verdict, ""
        return None, f"{name} gave no sound verdict about the routes asked"
    except ClassifierError as error:
        return None, f"{name} gave no verdict ({error.message})"
    except asyncio.CancelledError:
        task = asyncio.current_task()
        if task is None or task.cancelling():
            raise
        return None, f"{name} gave no verdict (something in it was cancelled)"
    except Exception as error:
        return None, f"{name} gave no verdict {f'within {deadline:g} s' if late.expired() else f'({type(error).__name__})'}"


def given_up_at(deadline: float | None) -> float | None:
    """When, on the event loop's clock, a question asked now has waited for (nearly) all of a classifier's deadline.

    The wait began a moment before, in `ask`: a call that is cut in the last tenth of it was too slow, not unwanted.
    """
    return None if deadline is None else asyncio.get_running_loop().time() + 0.9 * deadline


def _is_sound(verdict: Verdict, table: RouteTable) -> bool:
    believed = verdict.probabilities
    names_known = all(name in table.by_name or name == OTHER for name in believed)
    return bool(believed) and names_known and all(-1e-3 < p < 1 + 1e-3 for p in believed.values())
