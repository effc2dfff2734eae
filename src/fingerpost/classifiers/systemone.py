"""A decision model behind `POST /v1/systemone` reads the routes as the choices of one question.

The contract is that of TypeSafe's Jev and the servers that copy it, this project's own among them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from fingerpost.chat import Conversation, Message
from fingerpost.classifiers import given_up_at
from fingerpost.classifiers.arch.prompt import window
from fingerpost.errors import ClassifierError, UpstreamError
from fingerpost.records import Verdict
from fingerpost.routes import OTHER, Backend, RouteTable
from fingerpost.upstreams import Call, Upstream

MAX_REPLY_BYTES = 1 << 20

INSTRUCTIONS = "Which of these does the user's latest request in this conversation belong to?"
NONE_OF_THESE = "None of the others fits."
_EXAMPLES = 5


class _Answer(msgspec.Struct):
    choice: str
    probabilities: dict[str, float] = {}
    confidence: float = 1.0


class _Answers(msgspec.Struct):
    answers: dict[str, _Answer]


class SystemOne:
    """Asks a decision model. `budget` is what the conversation may cost in tokens (estimated); `deadline` in seconds."""

    name = "systemone"

    def __init__(
        self,
        backend: Backend,
        upstream: Upstream,
        *,
        deadline: float | None = 1.0,
        budget: int = 2048,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.deadline = deadline
        self._backend = backend
        self._upstream = upstream
        self._budget = budget
        self._clock = clock

    async def prepare(self, table: RouteTable) -> None:
        """Nothing to prepare: the server learns of the routes with the first question."""

    async def classify(self, conversation: Conversation, table: RouteTable) -> Verdict:
        """What the model believes; see `Classifier.classify`."""
        start = self._clock()
        state, note = transcript(conversation, self._budget)
        body = {"model": self._backend.model, "state": state, "questions": {"route": question(table)}}
        answer = await self._ask(body)
        probabilities = believe(answer, [*(route.name for route in table.described), OTHER])
        return Verdict(probabilities, self.name, self._clock() - start, note)

    async def aclose(self) -> None:
        """Closes the upstream."""
        await self._upstream.aclose()

    async def _ask(self, body: dict[str, Any]) -> _Answer:
        name, content = self._backend.name, msgspec.json.encode(body)
        call = Call(self._backend, content, path="/v1/systemone", deadline=given_up_at(self.deadline))
        try:
            reply = await self._upstream.send(call)
            content = await reply.read(MAX_REPLY_BYTES)
        except UpstreamError as error:
            raise ClassifierError(error.message) from None
        if reply.status != 200:
            raise ClassifierError(f"{name} answered {reply.status}")
        try:
            return msgspec.json.decode(content, type=_Answers).answers["route"]
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError, KeyError):
            raise ClassifierError(f"{name} did not answer the question") from None


def transcript(conversation: Conversation, budget: int) -> tuple[list[dict[str, str]], str]:
    """What was said, the newest turns that fit into `budget` tokens, oldest first, and a note on what is missing.

    System text and tool output never decide what the user wants; of media, only their kinds are told.
    """
    spoken = [message for message in conversation.messages if message.role in ("user", "assistant")]
    plain = (Message(m.role, (*m.texts, *(f"[{medium} attached]" for medium in m.media))) for m in spoken)
    return window(Conversation(tuple(plain)), budget)


def question(table: RouteTable) -> dict[str, Any]:
    """The routes as a choice, `other` last; a route without a description is known by its first examples."""
    criteria = {route.name: route.description or "; ".join(route.examples[:_EXAMPLES]) for route in table.described}
    other = table.by_name[OTHER].description if OTHER in table.by_name else ""
    return {"type": "choice", "instructions": INSTRUCTIONS, "criteria": {**criteria, OTHER: other or NONE_OF_THESE}}


def believe(answer: _Answer, names: Sequence[str]) -> dict[str, float]:
    """The probabilities of `names`, the last of which gets what the others leave.

    Raises:
        ClassifierError: the choice is none of them, or a number is no probability.
    """
    given = answer.probabilities or {answer.choice: answer.confidence}
    shares = {name: given.get(name, 0.0) for name in names}
    total = sum(shares.values())
    if answer.choice not in shares or not all(0 <= share <= 1 for share in shares.values()) or total <= 0:
        raise ClassifierError("the decision model chose none of the routes")
    shares = {name: share / max(total, 1.0) for name, share in shares.items()}
    return {**shares, names[-1]: shares[names[-1]] + max(0.0, 1 - total)}
