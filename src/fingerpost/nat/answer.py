"""What comes out of the functions: a decision, or the reference's completion that names the model to call."""

import time
import uuid
from collections.abc import Callable
from typing import Any

from nat.data_models import api_server
from pydantic import BaseModel, ConfigDict, Field, PrivateAttr
from starlette.responses import Response

from fingerpost import sfc
from fingerpost.records import Decision


class RouteDecision(BaseModel):
    """One route, the backend to call, and why."""

    route: str | None = Field(description="The chosen route.")
    backend: str | None = Field(description="The name of the backend to call.")
    model: str | None = Field(description="The model to ask it for.")
    backends: list[str] = Field(description="All backends that can serve the request, in the order to try.")
    confidence: float | None = Field(description="The probability of the route; null when nobody could say.")
    probabilities: dict[str, float] = Field(description="Every route's probability, the most probable first.")
    source: str = Field(description="Who decided.")
    reason: str = Field(description="Why, in words.")
    constraints: list[dict[str, str]] = Field(description="Backends that cannot serve the request, and why.")
    cached: bool = Field(description="Whether the verdict was remembered.")
    ms: float = Field(description="Milliseconds to decide.")

    @classmethod
    def of(cls, decision: Decision) -> "RouteDecision":
        """The decision as NAT passes it on."""
        return cls.model_validate(decision.to_json())

    @property
    def chosen(self) -> str:
        """The model to call; empty when the routes have none."""
        return self.model or ""

    def __str__(self) -> str:
        """The decision as JSON."""
        return self.model_dump_json()


class Completion(BaseModel):
    """A chat completion whose message is the name of the model to call: the reference's answer."""

    model_config = ConfigDict(title="ChatCompletion", extra="allow")

    id: str
    object: str
    created: int
    model: str = Field(description="The objective function that decided.")
    choices: list[dict[str, Any]] = Field(description="One choice; its message's content is the model to call.")
    usage: dict[str, int]
    _stream: bool = PrivateAttr(False)

    @classmethod
    def naming(cls, model: str, decided_by: str, *, stream: bool = False) -> "Completion":
        """The completion that names `model`; `stream` asks for server-sent events where it goes out over HTTP."""
        made = cls.model_validate(sfc.completion(model, uuid.uuid4().hex, int(time.time()), decided_by))  # noqa: TID251  (a stamp)
        made._stream = stream
        return made

    @property
    def chosen(self) -> str:
        """The model to call."""
        return str(self.choices[0]["message"]["content"])

    def __str__(self) -> str:
        """The model to call."""
        return self.chosen


class ServedCompletion(Completion):
    """A completion on its way out over HTTP. Its being a type of its own is what makes NAT call `to_http`."""

    model_config = ConfigDict(title="ChatCompletion")


def to_http(made: Completion) -> ServedCompletion:
    """The completion for NAT's HTTP front end, or a whole response where server-sent events were asked for.

    NAT knows streams only at paths of their own. Its handlers hand on what they are given, and FastAPI sends a response as
    it is; so a client that asks the reference's path for a stream gets one.
    """
    if made._stream:
        content = sfc.events(made.chosen, made.id.removeprefix("chatcmpl-"), made.created, made.model)
        return Response(content, media_type="text/event-stream")  # type: ignore[no-any-return, return-value, unused-ignore]
    return ServedCompletion.model_validate(made.model_dump())


def to_text(made: RouteDecision | Completion) -> str:
    """What `nat run` prints and `nat eval` compares."""
    return str(made)


def to_chat(made: RouteDecision | Completion) -> api_server.ChatResponse:
    """The answer of NAT's own chat endpoints: the model to call."""
    usage = api_server.Usage(prompt_tokens=0, completion_tokens=0, total_tokens=0)
    return api_server.ChatResponse.from_string(made.chosen, model=made.chosen, usage=usage)


def to_chunk(made: RouteDecision | Completion) -> api_server.ChatResponseChunk:
    """The same where they stream; NAT adds the end."""
    return api_server.ChatResponseChunk.create_streaming_chunk(made.chosen, model=made.chosen, role="assistant")


CONVERTERS: list[Callable[[Any], Any]] = [to_http, to_text, to_chat, to_chunk]
"""How NAT makes of an answer what a front end wants."""
