"""The door for chat bodies: our error, or a request; what goes on is the client's JSON but for the model, read as here."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from fingerpost.chat import MEDIA, ChatRequest
from fingerpost.errors import InvalidRequest
from fingerpost.hollow import check_values

MODEL = 'the "model"'

SEEDS = (
    b'{"model":"auto","messages":[{"role":"user","content":"Is my tie straight?"}]}',
    b'{"messages":[{"role":"system","content":"x"},{"role":"user","content":[{"type":"text","text":"a"},{"type":"image_url",'
    b'"image_url":{"url":"data:"}}]}],"stream":true,"max_tokens":5,"response_format":{"type":"json_schema"}}',
    b'{"messages":[{"role":"assistant","content":null,"tool_calls":[{"id":"a","type":"function","function":{"name":"f"}}]},'
    b'{"role":"tool","content":"\\u00e9"}],"tools":[{"type":"function","function":{"name":"f"}}],"metadata":{"a":"b","c":1}}',
    b' { "fingerpost" : {"routes":[{"name":"a","description":"A.","examples":["x"],"backends":["b"]}]}, "model":"a" , '
    b'"messages" : [ {"role":"user","refusal":"no"} ] } ',
    b'{"messages":[{"role":"function","function_call":{}}],"functions":[{"name":"f"}],"temperature":1e2,"x":[1,{"a":{}}]}',
    b'{"messages":[{"role":"user","content":"a","role":"system"}]}',
    b'{"messages":[{"role":"user","content":[{"type":"text","text":"a","\\u0074ype":"image"}]}],"Model":"b"}',
)
_NAMES = (
    b"messages", b"model", b"role", b"content", b"type", b"text", b"refusal", b"tool_calls", b"function_call",
    b"fingerpost", b"Model",
    b"tools", b"functions", b"metadata", b"response_format", b"stream", b"max_tokens", b"routes", b"user", b"system",
    b"tool", b"name",
    b"image_url", b"input_audio", b"file", b"\\u0072ole", b"mode\\u006c", b"\\ud800", b"\\ud83d\\ude00", b"\\\"",
    b"\\\\", b"\xe2\x84\xaa",
    b"me\xc5\xbfsages", b"\xff", b"\xed\xa0\x80", b"",
)  # fmt: skip
WORDS = (
    *(b'"%b"' % name for name in _NAMES),
    b"{", b"}", b"[", b"]", b",", b":", b" ", b"\t", b"null", b"true", b"-0", b"1e999", b"1E5", b"01", b"NaN", b"Infinity",
    b"\xef\xbb\xbf",
    b"18446744073709551616", b"0.1000000000000000055511151231257827", b"[" * 40, b'{"a":' * 40, b"\\u00", b"\x00", b"//",
    b'{"role":"user"}',
)  # fmt: skip


def check(data: bytes) -> None:
    """Raises when a promise is broken."""
    _check_count(data)
    try:
        request = ChatRequest.parse(data)
        sent = request.body_for(MODEL)
    except InvalidRequest as error:
        json.dumps(error.to_json()).encode()
        return
    came, goes = _fields(data), _fields(sent)
    assert len({name for name, _ in came}) == len(came)
    kept = [(name, MODEL if name == "model" else value) for name, value in came if name != "fingerpost"]
    assert goes == kept + ([] if any(name == "model" for name, _ in kept) else [("model", MODEL)]), (came, goes)
    seen = [(m.role, m.texts, m.media, m.calls_tools) for m in request.conversation.messages]
    for wins in (dict, _first_wins):
        assert _seen_by_backend(_read(sent, wins)) == seen
    assert isinstance(request.conversation.digest, bytes)
    again = ChatRequest.parse(sent)
    assert (again.conversation, again.model, again.stream, again.needs) == (
        request.conversation, MODEL, request.stream, request.needs,
    )  # fmt: skip


def _read(source: bytes, pairs: Callable[[list[tuple[str, Any]]], Any]) -> Any:
    """JSON by the standard library, numbers as they are written."""
    return json.loads(
        source.decode(), object_pairs_hook=pairs, parse_int=_Number, parse_float=_Number, parse_constant=_no_number
    )


class _Number(str):
    __slots__ = ()


def _no_number(name: str) -> Any:
    raise AssertionError(f"{name} is no JSON")


def _fields(source: bytes) -> list[tuple[str, Any]]:
    found = _read(source, lambda pairs: pairs)
    assert isinstance(found, list)
    return found


def _first_wins(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    return dict(reversed(pairs))


def _seen_by_backend(body: dict[str, Any]) -> list[tuple[Any, ...]]:
    """What a server makes of the messages in a body: role, texts, media and whether tools are called."""
    seen = []
    for message in body["messages"]:
        content = message.get("content")
        parts = content if isinstance(content, list) else [{"type": "text", "text": content or message.get("refusal")}]
        texts = tuple(text for part in parts if (text := part.get("text") or part.get("refusal")))
        media = tuple(MEDIA[part["type"]] for part in parts if part["type"] in MEDIA)
        calls = bool(message.get("tool_calls")) or message.get("function_call") is not None
        seen.append((message["role"], texts, media, calls))
    return seen


def _check_count(data: bytes) -> None:
    """The count of values is that of the standard library's reader."""
    try:
        found = _read(data, lambda pairs: pairs and [("", value) for _, value in pairs])
    except (ValueError, RecursionError, AssertionError):
        return
    count = _separators(found)
    for most in (count - 1, count):
        try:
            check_values(data, most)
        except InvalidRequest:
            assert count > most
        else:
            assert count <= most or len(data) <= most


def _separators(value: Any) -> int:
    """The commas and opening brackets that a value is written with."""
    if isinstance(value, tuple):
        return _separators(value[1])
    return 1 + max(len(value) - 1, 0) + sum(map(_separators, value)) if isinstance(value, list) else 0
