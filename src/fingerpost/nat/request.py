"""What goes into the functions: a chat request in OpenAI's shape, whatever it came in as."""

from collections.abc import Callable, Mapping
from typing import Any

import msgspec
from nat.data_models import api_server
from pydantic import BaseModel, ConfigDict, Field

from fingerpost.chat import ChatRequest
from fingerpost.routes import AUTO


class RoutingRequest(BaseModel):
    """A chat request of OpenAI's shape, with all of it kept: every role, part and field, known here or not."""

    model_config = ConfigDict(
        extra="allow",
        title="ChatCompletionRequest",
        hide_input_in_errors=True,
        json_schema_extra={"example": {"messages": [{"role": "user", "content": "Hi"}]}},
    )

    messages: list[dict[str, Any]] = Field(description="The conversation, oldest first; at least one message.")
    model: str | None = Field(None, description="Any name; what is asked for is always a decision.")
    stream: bool | None = Field(
        False, description="Whether to answer with server-sent events, where the answer is a completion."
    )

    def to_chat(self) -> ChatRequest:
        """The request as the router takes it.

        Raises:
            InvalidRequest: a message has the wrong shape; says where.
        """
        body = {**(self.model_extra or {}), "messages": self.messages, "stream": self.stream}
        return msgspec.structs.replace(ChatRequest.parse(body), model=AUTO)

    def __repr__(self) -> str:
        """Its size: NAT writes the input of a function that failed to its log, where no prompt belongs."""
        return f"RoutingRequest({len(self.messages)} messages)"

    __str__ = __repr__


def from_text(text: str) -> RoutingRequest:
    """The request in `nat run --input`: a chat body or its messages in JSON, else the text as the user's one message."""
    if text.lstrip()[:1] in ("{", "["):
        try:
            request = from_parts(msgspec.json.decode(text))
        except (msgspec.MsgspecError, ValueError, RecursionError):
            request = RoutingRequest(messages=[])
        if request.messages and all("role" in message for message in request.messages):
            return request
    return RoutingRequest(messages=[{"role": "user", "content": text}])


def from_parts(value: list[Any] | dict[str, Any]) -> RoutingRequest:
    """The request with these messages, or with this body.

    Raises:
        ValueError: it is neither.
    """
    return RoutingRequest.model_validate(value if isinstance(value, Mapping) else {"messages": value})


def from_messages(messages: list[Any]) -> RoutingRequest:
    """The request with these messages."""
    return from_parts(messages)


def from_nat(request: api_server.ChatRequest) -> RoutingRequest:
    """The request that NAT's own chat endpoints took in."""
    return RoutingRequest.model_validate(request.model_dump(mode="json", exclude_unset=True))


def from_nat_either(request: api_server.ChatRequestOrMessage) -> RoutingRequest:
    """The request that NAT's agents hand on: a conversation, or one message as text."""
    if request.input_message is not None:
        return from_text(request.input_message)
    return RoutingRequest.model_validate(request.model_dump(mode="json", exclude_unset=True))


CONVERTERS: list[Callable[[Any], RoutingRequest]] = [from_text, from_messages, from_nat, from_nat_either]
"""How NAT makes a request of what a workflow is given."""
