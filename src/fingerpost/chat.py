"""The one door for requests: OpenAI chat bodies in, typed conversations out.

Only what routing needs is decoded; image, audio and file payloads are skipped where they lie, and every unknown field and
part stays in the body that the backend will see.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from hashlib import blake2b
from typing import Any, Literal

import msgspec
from msgspec import UNSET, UnsetType

from fingerpost.errors import InvalidRequest
from fingerpost.hollow import LARGE, Hollow, hollow
from fingerpost.once import check_messages, check_object
from fingerpost.splice import Fields, Source, check_utf8, locate, read_fields, replace, splice

Role = Literal["system", "developer", "user", "assistant", "tool", "function"]
Feature = Literal["text", "image", "audio", "video", "file", "tools", "json_schema"]

MEDIA: Mapping[str, Feature] = {
    "image_url": "image",
    "input_image": "image",
    "image": "image",
    "input_audio": "audio",
    "video_url": "video",
    "input_video": "video",
    "file": "file",
    "input_file": "file",
}
"""Which part types carry which medium; a type that is not here is passed on and does not count."""

IMAGE_TOKENS = 800
"""What an image is taken to cost in tokens: about the price of one 1,024-pixel tile picture with the common vendors."""


MAX_MESSAGES = 10_000
"""Messages in one request."""

MAX_METADATA = 1000
"""Entries of a request's metadata; OpenAI takes 16."""


class Message(msgspec.Struct, frozen=True, gc=False, array_like=True):
    """One turn: who spoke, its texts, and the media that came with it, one entry for each payload.

    `texts` has one entry for each text part, or one for a plain string; `in_parts` says which of the two it was.
    """

    role: Role
    texts: tuple[str, ...] = ()
    media: tuple[Feature, ...] = ()
    calls_tools: bool = False
    in_parts: bool = False

    @property
    def text(self) -> str:
        """The texts, joined by line feeds."""
        return self.texts[0] if len(self.texts) == 1 else "\n".join(self.texts)

    @property
    def images(self) -> int:
        """The number of image parts in this turn."""
        return self.media.count("image")


class Conversation(msgspec.Struct, frozen=True, dict=True):
    """All turns of a request, oldest first, with the names of the tools on offer and the request's metadata."""

    messages: tuple[Message, ...]
    tools: tuple[str, ...] = ()
    metadata: Mapping[str, str] = msgspec.field(default_factory=dict)

    @cached_property
    def latest_user(self) -> Message | None:
        """The user's latest turn, or None in a conversation without one."""
        return next((message for message in reversed(self.messages) if message.role == "user"), None)

    @property
    def text(self) -> str:
        """The text of the user's latest turn; empty when there is none."""
        return self.latest_user.text if self.latest_user else ""

    @property
    def images(self) -> int:
        """The number of images anywhere in the conversation."""
        return sum(message.images for message in self.messages)

    @property
    def digest(self) -> bytes:
        """16 bytes that are equal exactly for conversations that look the same to a classifier (metadata left out)."""
        seen = self.messages, self.tools
        try:
            encoded = msgspec.msgpack.encode(seen)
        except UnicodeEncodeError:  # half of a surrogate pair
            encoded = repr(seen).encode("utf-8", "surrogatepass")
        return blake2b(encoded, digest_size=16).digest()


class Needs(msgspec.Struct, frozen=True, gc=False):
    """What a backend must be able to do to serve a request: features, and tokens of context (estimated)."""

    features: frozenset[Feature] = frozenset({"text"})
    tokens: int = 0


class RequestedRoute(msgspec.Struct, frozen=True):
    """A route that a request brings along in its `fingerpost.routes` field."""

    name: str
    description: str = ""
    examples: tuple[str, ...] = ()
    backends: tuple[str, ...] = ()


class _Part(msgspec.Struct, gc=False):
    type: str
    text: str | None = None
    refusal: str | None = None


class _Message(msgspec.Struct, gc=False):
    role: Role
    content: str | list[_Part] | UnsetType | None = UNSET
    refusal: str | UnsetType | None = UNSET
    tool_calls: list[Any] | UnsetType | None = UNSET
    function_call: Any = UNSET


class _Tool(msgspec.Struct, gc=False):
    function: dict[str, Any] | None = None
    name: str | None = None
    description: Any = None
    parameters: Any = None


class _ResponseFormat(msgspec.Struct):
    type: str = "text"


class _Extension(msgspec.Struct, forbid_unknown_fields=True):
    routes: list[RequestedRoute] | None = None


class _Body(msgspec.Struct, gc=False):
    messages: list[_Message]
    model: str = "auto"
    stream: bool | None = False
    tools: list[_Tool] | None = None
    functions: list[_Tool] | None = None
    response_format: _ResponseFormat | None = None
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    metadata: dict[str, Any] | None = None
    fingerpost: _Extension | None = None


_decode_body = msgspec.json.Decoder(_Body).decode
_INT_MAX = 2**31
_NO_FIELDS = Fields({})
_NOT_JSON = (msgspec.MsgspecError, TypeError, ValueError, RecursionError)


class ChatRequest(msgspec.Struct, frozen=True):
    """A chat request after the door: checked, typed, with the client's body kept whole.

    `model` is the routing hint (`auto`, a route or a backend); `routes` are those that the request brought along, or None;
    `source` is the body as it came: JSON bytes, or a mapping in library use.
    """

    _body: _Body
    model: str = "auto"
    stream: bool = False
    needs: Needs = Needs()
    routes: tuple[RequestedRoute, ...] | None = None
    source: Source | Mapping[str, Any] = b"{}"
    _fields: Fields = _NO_FIELDS
    _bare: Hollow | None = None

    @classmethod
    def parse(cls, source: Source | Mapping[str, Any]) -> ChatRequest:
        """The request in `source`: JSON bytes from a socket, or a mapping whose values may be objects with `model_dump`.

        Raises:
            InvalidRequest: wrong JSON, or a wrong shape; `param` is its path, such as `messages[2].content[1].type`.
        """
        try:
            if isinstance(source, (bytes, bytearray)):
                if not source.isascii():
                    check_utf8(source)
                bare = hollow(source) if len(source) >= LARGE else None
                read = source if bare is None else bare.source
                # Nothing here looks into an image.
                body = _decode_body(source if bare is None or not bare.only_payloads else read)
                fields = read_fields(read)
                _check_keys(body, read, fields.values)
                return _checked(body, source, fields, bare)
            source = _plain(source)
            return _checked(msgspec.convert(source, _Body), source)
        except msgspec.ValidationError as error:
            raise _wrong_shape(str(error)) from None
        except _NOT_JSON as error:
            raise _not_json(error) from None

    @classmethod
    def from_messages(cls, messages: Sequence[Any] | str, **fields: Any) -> ChatRequest:
        """A request from messages (dicts, or objects with `model_dump`), or from one user message given as text."""
        if isinstance(messages, str):
            messages = [{"role": "user", "content": messages}]
        return cls.parse({"messages": messages, **fields})

    def body_for(self, model: str) -> Source:
        """The client's body as JSON with `model` replaced, the `fingerpost` field taken out, and nothing else changed.

        Bytes are copied once, into the result, and stay as they are, spaces and escapes included.

        Raises:
            InvalidRequest: what `parse` had no need to look at cannot be JSON, such as an object of some class.
        """
        source, fields, bare = self.source, self._fields, self._bare
        if isinstance(source, (bytes, bytearray)):
            values, name = fields.values, msgspec.json.encode(model)
            if "model" in values and "fingerpost" not in values:
                if model == self.model:
                    return source
                if bare is None:
                    return replace(source, fields, "model", name)
            members = locate(fields) if bare is None else bare.located(fields)
            return splice(source, members, {"model": name, "fingerpost": None})
        try:
            return msgspec.json.encode({**{key: source[key] for key in source if key != "fingerpost"}, "model": model})
        except _NOT_JSON as error:
            raise _not_json(error) from None

    @property
    def conversation(self) -> Conversation:
        """What was said, made anew each time: who names a model is never asked about it."""
        body = self._body
        messages = tuple([_message(message) for message in body.messages])
        tools = (*(body.tools or ()), *(body.functions or ()))
        return Conversation(messages, tuple(map(_tool_name, tools)), body.metadata or {})


def estimate_tokens(text: str) -> int:
    """About how many tokens `text` costs: a quarter of its ASCII characters, a third of its bytes in other scripts."""
    if text.isascii():
        return (len(text) + 3) // 4
    return (len(text.encode("utf-8", "surrogatepass")) + 2) // 3


def _checked(
    body: _Body, source: Source | Mapping[str, Any], fields: Fields = _NO_FIELDS, bare: Hollow | None = None
) -> ChatRequest:
    if not body.messages:
        raise InvalidRequest("messages: at least one message is needed", param="messages")
    if len(body.messages) > MAX_MESSAGES:
        raise InvalidRequest(f"messages: more than {MAX_MESSAGES} of them", param="messages")
    if body.metadata:
        if len(body.metadata) > MAX_METADATA:
            raise InvalidRequest(f"metadata: more than {MAX_METADATA} entries", param="metadata")
        body.metadata = {key: _as_text(value) for key, value in body.metadata.items()}
    routes = tuple(body.fingerpost.routes) if body.fingerpost and body.fingerpost.routes is not None else None
    return ChatRequest(body, body.model, bool(body.stream), _needs(body), routes, source, fields, bare)


_FIELDS = frozenset(_Body.__struct_fields__)


def _check_keys(body: _Body, source: Source, fields: Mapping[str, msgspec.Raw]) -> None:
    """Refuses keys that a backend may read otherwise: those in messages that are there twice, and `Model`.

    Some servers take the first of two, some the last, and those in Go take `Model` for `model`.
    """
    if not _FIELDS.issuperset(fields):
        for name in fields:
            if name not in _FIELDS and name.casefold() in _FIELDS:
                raise InvalidRequest(f"{name[:100]}: write this field as {name.casefold()}", param=name[:100])
    messages = fields["messages"]
    # The names of messages rarely stand anywhere else, but for the parameters of tools.
    within = source if body.tools is None and body.functions is None else bytes(messages)
    check_messages(body.messages, messages, within)
    wanted = fields.get("response_format")
    if wanted is not None and body.response_format is not None:
        check_object(wanted, ("type",), "response_format")


def _message(message: _Message) -> Message:
    content, calls_tools = message.content, bool(message.tool_calls) or message.function_call not in _NO_CALL
    if not isinstance(content, list):
        text = content or message.refusal
        return Message(message.role, (text,) if text else (), (), calls_tools)
    texts = tuple([text for part in content if (text := part.text or part.refusal)])
    media = tuple([MEDIA[part.type] for part in content if part.type in MEDIA])
    return Message(message.role, texts, media, calls_tools, in_parts=True)


def _tool_name(tool: _Tool) -> str:
    return str((tool.function or {}).get("name") or tool.name or "")


_NO_CALL = UNSET, None
_NO_MEDIA: frozenset[Feature] = frozenset()
_ROLES_OF_TOOLS = frozenset({"tool", "function"})
_PLAIN: frozenset[Feature] = frozenset({"text"})
_WITH_TOOLS: frozenset[Feature] = frozenset({"text", "tools"})


def _needs(body: _Body) -> Needs:
    """What serving the request takes; its tokens are those of turns, tools, their calls, images, and the longest answer.

    Raises:
        InvalidRequest: a text part has no text.
    """
    answer = body.max_completion_tokens or body.max_tokens or 0
    tokens = min(max(answer, 0), _INT_MAX) if answer else 0
    media, uses_tools = _NO_MEDIA, bool(body.tools or body.functions)
    for place, message in enumerate(body.messages):
        tokens += 4
        content = message.content
        if isinstance(content, list):
            more, seen = _weigh(content, place)
            tokens += more
            media = media.union(seen)
        elif text := content or message.refusal:
            tokens += (len(text) + 3) // 4 if text.isascii() else estimate_tokens(text)
        if message.role in _ROLES_OF_TOOLS or message.tool_calls or message.function_call not in _NO_CALL:
            uses_tools = True
    if uses_tools:
        tools = [body.tools, body.functions] if body.tools or body.functions else []
        calls = [call for message in body.messages for call in (message.tool_calls, message.function_call) if call]
        tokens += len(msgspec.json.encode(tools)) // 4 + (len(msgspec.json.encode(calls)) // 4 if calls else 0)
    if body.response_format is not None and body.response_format.type == "json_schema":
        media |= {"json_schema"}
    features = _WITH_TOOLS if uses_tools else _PLAIN
    return Needs(features | media if media else features, tokens)


def _weigh(content: list[_Part], place: int) -> tuple[int, list[Feature]]:
    """About how many tokens the parts of a message cost, and the media that are among them."""
    tokens, media = 0, []
    for index, part in enumerate(content):
        if part.type == "text" and part.text is None:
            where = f"messages[{place}].content[{index}].text"
            raise InvalidRequest(f"{where}: a text part needs a string here", param=where)
        if text := part.text or part.refusal:
            tokens += estimate_tokens(text)
        if (medium := MEDIA.get(part.type)) is not None:
            media.append(medium)
    return tokens + media.count("image") * IMAGE_TOKENS, media


def _as_text(value: Any) -> str:
    """A metadata value as text; one that is no string, as it would stand in JSON."""
    return value if isinstance(value, str) else msgspec.json.encode(value).decode()


def _plain(value: Any) -> Any:
    """`value` as dicts, lists and plain strings, with objects that have `model_dump` (pydantic, OpenAI's client) dumped."""
    if isinstance(value, str):
        if not value.isascii():
            value.encode()  # a lone surrogate cannot be sent; it raises here, at the door
        return str.__str__(value)  # of a subclass or an enum member: the string that it is
    if type(value) is list:  # asking what else is iterable takes ten times as long
        return [_plain(inner) for inner in value]
    if isinstance(value, dict | Mapping):
        return {_plain(key): _plain(inner) for key, inner in value.items()}
    if hasattr(value, "model_dump") and not isinstance(value, type):
        return _plain(value.model_dump(exclude_none=True))
    if isinstance(value, Iterable) and not isinstance(value, bytes):
        return [_plain(inner) for inner in value]
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{value} is no JSON number")
    return value


def _not_json(error: Exception) -> InvalidRequest:
    if isinstance(error, RecursionError):
        return InvalidRequest("the body is nested too deeply")
    return InvalidRequest(f"the body is not valid JSON: {error}")


def _wrong_shape(text: str) -> InvalidRequest:
    """Msgspec's complaint with its path in the form that clients know: `messages[2].content[1].type`."""
    found = re.fullmatch(r"(.*?)(?: - at (?:`key` in )?`\$\.?([^`]*)`)?", text, re.DOTALL)
    what, path = (found[1], found[2] or "") if found else (text, "")
    missing = re.fullmatch(r"Object missing required field `(.+)`", what)
    if missing:
        path = f"{path}.{missing[1]}".lstrip(".")
        what = "this field is required"
    if what.startswith("Invalid enum value"):  # the value itself stays out: messages are logged, and it may hold anything
        what = "not a role; the roles are system, developer, user, assistant, tool and function"
    what = what if len(what) <= 200 else f"{what[:200]}…"
    return InvalidRequest(f"{path}: {what}" if path else what, param=path or None)
