"""The Arch-Router protocol: a small language model behind an upstream reads the routes and the conversation.

The prompt and the answer format are those of katanemo/Arch-Router-1.5B (arXiv 2506.16655); any model that follows them will
do. What it takes to talk to one is pure and lives beside this file: `prompt` writes, `answer` reads.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from fingerpost.chat import Conversation
from fingerpost.classifiers import given_up_at
from fingerpost.classifiers.arch.answer import believe
from fingerpost.classifiers.arch.prompt import render
from fingerpost.errors import ClassifierError, UpstreamError
from fingerpost.records import Verdict
from fingerpost.routes import OTHER, Backend, RouteTable
from fingerpost.upstreams import Call, Upstream

MODEL = "katanemo/Arch-Router-1.5B"
MAX_ANSWER_TOKENS = 64
MAX_REPLY_BYTES = 1 << 20

Constrain = Callable[[list[str]], dict[str, Any]]

_TOO_LONG = re.compile(rb"context[ _](?:length|size|window)", re.IGNORECASE)
"""What vLLM, OpenAI and llama.cpp write when a prompt does not fit: then no other constraint helps."""

_LOGPROBS = {"logprobs": True, "top_logprobs": 20}

CONSTRAINTS: tuple[Constrain, ...] = (
    lambda answers: {"structured_outputs": {"choice": answers}, **_LOGPROBS},
    lambda answers: {"response_format": _schema(answers), **_LOGPROBS},
    lambda answers: _LOGPROBS,
    lambda answers: {},
)
"""What to ask of the server so that it can only answer with a route, the strictest first; a server that refuses one is
asked with the next, and so is one that passes over the first as llama.cpp does: it answers with something else."""


class Arch:
    """Asks an Arch-Router model. `budget` is what the conversation may cost in tokens (estimated); `deadline` in seconds."""

    name = "arch"

    def __init__(
        self,
        backend: Backend,
        upstream: Upstream,
        *,
        deadline: float | None = 0.25,
        budget: int = 2048,
        constraints: Sequence[Constrain] = CONSTRAINTS,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.deadline = deadline
        self._backend = backend
        self._upstream = upstream
        self._budget = budget
        self._constraints = constraints
        self._clock = clock
        self._constraint = 0

    async def prepare(self, table: RouteTable) -> None:
        """Nothing to prepare: the server's prefix cache warms up with the first question."""

    async def classify(self, conversation: Conversation, table: RouteTable) -> Verdict:
        """What the model believes; see `Classifier.classify`."""
        start = self._clock()
        names = [*(route.name for route in table.described), OTHER]
        prompt, note = render(conversation, table.described, self._budget)
        answer = await self._ask(prompt, names)
        probabilities = believe(answer, names)
        if probabilities is None:
            raise ClassifierError(f"{self._backend.name} answered without naming a route")
        return Verdict(probabilities, self.name, self._clock() - start, note)

    async def aclose(self) -> None:
        """Closes the upstream."""
        await self._upstream.aclose()

    async def _ask(self, prompt: str, names: list[str]) -> dict[str, Any]:
        answers = [answer_for(name) for name in names]
        constraint, deadline = self._constraint, given_up_at(self.deadline)
        while True:
            how = self._constraints[constraint](answers)
            body = {
                "model": self._backend.model,
                "messages": [{"role": "user", "content": prompt}],
                "max_tokens": MAX_ANSWER_TOKENS,
                "temperature": 0,
                **how,
            }
            try:
                reply = await self._upstream.send(Call(self._backend, msgspec.json.encode(body), deadline=deadline))
                content = await reply.read(MAX_REPLY_BYTES)
            except UpstreamError as error:
                raise ClassifierError(error.message) from None
            last = constraint + 1 == len(self._constraints)
            if reply.status in (400, 422) and not last and not _TOO_LONG.search(content):
                constraint += 1
                continue
            answer = _decoded(reply.status, content, self._backend.name)
            skipped = "structured_outputs" in how and not last and not _is_one_of(answer, answers)
            # Only now is it known that the constraint was what the server refused, and not, say, a prompt too long for it.
            self._constraint = max(self._constraint, constraint + skipped)
            if skipped and believe(answer, names) is None:
                constraint += 1
                continue
            return answer


def answer_for(name: str) -> str:
    """The answer that the model was trained to give for a route."""
    return msgspec.json.encode({"route": name}).decode().replace('":', '": ', 1)


def _is_one_of(completion: dict[str, Any], answers: list[str]) -> bool:
    """Whether it answers with one of these, or was cut off in the middle of one."""
    try:
        written = completion["choices"][0]["message"]["content"]
    except (KeyError, IndexError, TypeError):
        return False
    return isinstance(written, str) and any(answer.startswith(written) for answer in answers)


def _schema(answers: list[str]) -> dict[str, Any]:
    names = [msgspec.json.decode(answer)["route"] for answer in answers]
    schema = {
        "type": "object",
        "properties": {"route": {"type": "string", "enum": names}},
        "required": ["route"],
        "additionalProperties": False,
    }
    return {"type": "json_schema", "json_schema": {"name": "route", "schema": schema, "strict": True}}


def _decoded(status: int, content: bytes, name: str) -> dict[str, Any]:
    if status != 200:
        why = " (the prompt does not fit into its context)" if _TOO_LONG.search(content) else ""
        raise ClassifierError(f"{name} answered {status}{why}")
    try:
        body = msgspec.json.decode(content, type=dict[str, Any])
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        raise ClassifierError(f"{name} did not answer with JSON") from None
    return body
