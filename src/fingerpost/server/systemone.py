"""The contract of decision models, `POST /v1/systemone`: questions about a state in, a choice with probabilities for each out.

The shapes are those that LiteLLM's and semantic-router's clients of Jev send and read.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, get_args

import msgspec

from fingerpost.chat import ChatRequest, Conversation, Feature, Message, Role
from fingerpost.errors import ConfigError, InvalidRequest
from fingerpost.records import Verdict
from fingerpost.router import MAX_REQUESTED_ROUTES
from fingerpost.routes import AUTO, OTHER, Route, RouteTable
from fingerpost.splice import Source

_ROLES = frozenset(get_args(Role))
_MEDIA: Mapping[str, Feature] = {"images": "image", "audio": "audio", "videos": "video"}


@dataclass(frozen=True, slots=True)
class Question:
    """A question's name, its choices, and the table whose routes are those choices in the same order, then perhaps `other`."""

    name: str
    choices: tuple[str, ...]
    table: RouteTable


@dataclass(frozen=True, slots=True)
class Asked:
    """A request after the door: the state as a conversation and the questions about it."""

    model: str
    conversation: Conversation
    questions: tuple[Question, ...]

    @property
    def tables(self) -> list[tuple[Conversation, RouteTable]]:
        """What the classifier is asked, question by question."""
        return [(self.conversation, question.table) for question in self.questions]


def read(body: Source) -> Asked:
    """The request in a body.

    Raises:
        InvalidRequest: wrong JSON or a wrong shape; `param` is its path, such as `questions.tier.criteria`.
    """
    try:
        fields = msgspec.json.decode(body, type=dict[str, Any])
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise InvalidRequest(f"the body is not a JSON object: {type(error).__name__}") from None
    asked = fields.get("questions")
    if not isinstance(asked, dict) or not asked:
        raise _wrong("questions", "a mapping of at least one name to a question is needed")
    questions = tuple(_question(name, question) for name, question in asked.items())
    if sum(len(question.choices) for question in questions) > MAX_REQUESTED_ROUTES:
        raise _wrong("questions", f"more than {MAX_REQUESTED_ROUTES} choices together")
    return Asked(str(fields.get("model") or ""), _conversation(fields), questions)


def answer(asked: Asked, verdicts: Sequence[Verdict]) -> dict[str, Any]:
    """The body of the answer: for each question the most probable choice and the probabilities of all.

    They sum to one less the probability that none of them is right; where `other` is a choice, that is its probability.
    """
    answers = {}
    for question, verdict in zip(asked.questions, verdicts, strict=True):
        believed = [verdict.probabilities.get(route.name, 0.0) for route in question.table.routes]
        probabilities = {choice: round(share, 6) for choice, share in zip(question.choices, believed, strict=False)}
        choice = max(probabilities, key=lambda choice: probabilities[choice])
        answers[question.name] = {
            "type": "choice", "choice": choice, "confidence": probabilities[choice], "probabilities": probabilities,
        }  # fmt: skip
    return {"model": asked.model, "answers": answers}


def _question(name: str, question: Any) -> Question:
    path = f"questions.{name[:200]}"
    if not isinstance(question, dict):
        raise _wrong(path, "a question is a mapping with type and criteria")
    if question.get("type") != "choice":
        raise _wrong(f"{path}.type", "only questions of the type choice are answered here")
    criteria, where = question.get("criteria"), f"{path}.criteria"
    if not isinstance(criteria, dict) or not criteria:
        raise _wrong(where, "a mapping of at least one choice to its description (or null) is needed")
    # As a route's name, `auto` asks for a decision; as a choice it is a word like any other.
    routes = [Route(f"{AUTO}_" if choice == AUTO else choice, _text(criteria[choice])) for choice in criteria]
    try:
        table = RouteTable((*routes, *([] if OTHER in criteria else [Route(OTHER)])))
    except ConfigError as error:
        problem = error.problems[0]
        raise _wrong(where, f"{problem.what}. {problem.fix}") from None
    return Question(name, tuple(criteria), table)


def _conversation(fields: Mapping[str, Any]) -> Conversation:
    state = fields.get("state")
    if state is None:
        raise _wrong("state", "this field is required")
    inner = state.get("messages") if isinstance(state, dict) else None
    messages, path = (inner, "state.messages") if inner is not None else (state, "state")
    if not _are_messages(messages):
        messages = _text(state)
    try:
        conversation = ChatRequest.from_messages(messages).conversation
    except InvalidRequest as error:
        found = (error.param or "").replace("messages", path, 1)
        raise InvalidRequest(error.message.replace(error.param or "", found, 1), param=found or path) from None
    media = [(medium, fields.get(key)) for key, medium in _MEDIA.items()]
    return _with_media(conversation, tuple(medium for medium, given in media if isinstance(given, list) for _ in given))


def _are_messages(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(m, dict) and str(m.get("role")) in _ROLES for m in value)


def _with_media(conversation: Conversation, media: tuple[Feature, ...]) -> Conversation:
    if not media:
        return conversation
    latest = conversation.latest_user or Message("user")
    others = [message for message in conversation.messages if message is not latest]
    place = conversation.messages.index(latest) if len(others) < len(conversation.messages) else len(others)
    others.insert(place, msgspec.structs.replace(latest, media=(*latest.media, *media)))
    return msgspec.structs.replace(conversation, messages=tuple(others))


def _text(value: Any) -> str:
    """What a model reads of a JSON value: text as it is, anything else as JSON."""
    return "" if value is None else value if isinstance(value, str) else msgspec.json.encode(value).decode()


def _wrong(path: str, what: str) -> InvalidRequest:
    return InvalidRequest(f"{path}: {what}", param=path)
