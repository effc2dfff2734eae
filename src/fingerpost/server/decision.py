"""NeMo Switchyard's contract, `POST /v1/decision`: a model request in one of three formats in, the backends to call out.

The shapes are those of nemo-switchyard 0.3.0's server; tests/server/recorded holds exchanges with it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal
from urllib.parse import urlsplit

import msgspec

from fingerpost.chat import ChatRequest
from fingerpost.errors import InvalidRequest
from fingerpost.records import Decision
from fingerpost.routes import Backend
from fingerpost.splice import Source


class _Body(msgspec.Struct, forbid_unknown_fields=True):
    input_format: Literal["openai_chat", "anthropic_messages", "openai_responses"]
    request: dict[str, Any]


def read(body: Source) -> ChatRequest:
    """The request within a body, whichever format it has, as a chat request.

    Raises:
        InvalidRequest: wrong JSON or a wrong shape; `param` is its path within `request`.
    """
    try:
        asked = msgspec.json.decode(body, type=_Body)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        what = str(error) if isinstance(error, msgspec.ValidationError) else type(error).__name__
        raise InvalidRequest(f"the body needs input_format and request: {what[:200]}") from None
    return ChatRequest.parse(_TRANSLATIONS[asked.input_format](asked.request))


def answer(decision: Decision) -> dict[str, Any]:
    """The body of the answer: the backend to call and those to fall back on. No key is in it."""
    selected, *fallbacks = map(_target, decision.backends)
    return {"selected": selected, "fallbacks": fallbacks}


def _target(backend: Backend) -> dict[str, Any]:
    url = urlsplit(backend.url)
    without_password = url._replace(netloc=url.netloc.rpartition("@")[2]).geturl()
    client = {"format": "openai_chat", "base_url": without_password}
    return {"target": backend.name, "model": backend.model, "llm_client": client, "extra_body": {}}


def _from_anthropic(request: dict[str, Any]) -> dict[str, Any]:
    """Anthropic's Messages: tool results come as the user's, calls as parts of the assistant's."""
    messages = request.get("messages")
    if not isinstance(messages, list):
        return request
    return {**request, "messages": [_anthropic_message(m) if isinstance(m, dict) else m for m in messages]}


def _anthropic_message(message: dict[str, Any]) -> dict[str, Any]:
    content = message.get("content")
    if not isinstance(content, list) or not all(isinstance(part, dict) for part in content):
        return message
    kinds = {str(part.get("type")) for part in content}
    if kinds == {"tool_result"}:
        return {"role": "tool"}
    parts = [{**part, "type": "file"} if part.get("type") == "document" else part for part in content]
    return {**message, "content": parts, **({"tool_calls": [None]} if "tool_use" in kinds else {})}


def _from_responses(request: dict[str, Any]) -> dict[str, Any]:
    """OpenAI's Responses: `input` is text or a list of messages, calls and their outputs."""
    given = request.get("input")
    items = [{"role": "user", "content": given}] if isinstance(given, str) else given
    if not isinstance(items, list):
        raise InvalidRequest("input: text or a list of items is needed", param="input")
    wanted = (request.get("text") or {}).get("format") if isinstance(request.get("text"), dict | None) else None
    kept: dict[str, Any] = {key: request[key] for key in _SAME if key in request}
    return {
        **kept,
        "messages": [_responses_item(item) if isinstance(item, dict) else item for item in items],
        "max_tokens": request.get("max_output_tokens"),
        "response_format": wanted,
    }


def _responses_item(item: dict[str, Any]) -> dict[str, Any]:
    kind = str(item.get("type", "message"))
    if kind == "message":
        return item
    return {"role": "tool"} if kind.endswith("_output") else {"role": "assistant", "tool_calls": [None]}


_SAME = ("model", "stream", "tools", "metadata", "fingerpost")
_TRANSLATIONS: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
    "openai_chat": dict,
    "anthropic_messages": _from_anthropic,
    "openai_responses": _from_responses,
}
