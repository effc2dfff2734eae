"""Keys that must be there once, in the messages of a chat body: msgspec takes the last of two, some backends take the first."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any

import msgspec
from msgspec import UNSET

from fingerpost.splice import Source, twice

MESSAGE_FIELDS = ("role", "content", "refusal", "tool_calls", "function_call")
PART_FIELDS = ("type", "text", "refusal")
"""The fields that decide over a route or a backend; any others pass as they are."""

SHORT = 512
"""Bytes that messages have at most, on average, where searching them for names is the fastest way."""

_RARE = (b'"refusal"', b'"tool_calls"', b'"function_call"')
_ESCAPED_LETTER = re.compile(rb"\\u00[567]")


class _Name:
    """A key that equals no other, so that a dict keeps those that are there twice."""

    __slots__ = ("text",)

    def __init__(self, text: str) -> None:
        self.text = text


def _named(kind: type, text: Any) -> _Name:
    return _Name(text)


_decode_object = msgspec.json.Decoder(dict[_Name, msgspec.Raw], dec_hook=_named).decode
_decode_objects = msgspec.json.Decoder(list[dict[_Name, msgspec.Raw]], dec_hook=_named).decode


def check_messages(messages: Sequence[Any], source: msgspec.Raw, within: Source) -> None:
    """Refuses messages in which a field is there twice; `messages` is what was read from `source`, which stands `within`.

    Raises:
        InvalidRequest: with the path of the field.
    """
    if len(within) <= SHORT * len(messages) and _are_once(messages, within):
        return
    for place, fields in enumerate(_decode_objects(source)):
        _check_once(fields, MESSAGE_FIELDS, f"messages[{place}]")
        if isinstance(messages[place].content, list):
            content = next(value for name, value in fields.items() if name.text == "content")
            for index, part in enumerate(_decode_objects(content)):
                _check_once(part, PART_FIELDS, f"messages[{place}].content[{index}]")


def check_object(source: msgspec.Raw, names: Sequence[str], path: str) -> None:
    """Refuses a JSON object that has one of `names` twice.

    Raises:
        InvalidRequest: with the path of the field.
    """
    _check_once(_decode_object(source), names, path)


def _are_once(messages: Sequence[Any], source: Source) -> bool:
    """Whether names of fields stand there no more often than fields were read, so that none can be there twice.

    This takes a microsecond and settles nearly all requests; names that stand as values, or in tool calls, need a closer look.
    """
    lists, contents, has_rare = [], 0, False
    for message in messages:
        content = message.content
        if content is not UNSET:
            contents += 1
            if type(content) is list:
                lists.append(content)
        if message.refusal is not UNSET or message.tool_calls is not UNSET or message.function_call is not UNSET:
            has_rare = True
    if source.count(b'"role"') != len(messages) or source.count(b'"content"') != contents:
        return False
    if has_rare or (lists and source.find(b'"refusal"') >= 0):  # `in` takes three times as long
        read = [value for m in messages for value in (m.refusal, m.tool_calls, m.function_call) if value is not UNSET]
        if sum(map(source.count, _RARE)) != len(read):
            return False
    if lists and not _parts_are_once([part for content in lists for part in content], messages, source):
        return False
    # A name may hide behind escapes, which nobody needs for letters.
    return source.find(b"\\") < 0 or source.find(rb"\u00") < 0 or _ESCAPED_LETTER.search(source) is None


def _parts_are_once(parts: Sequence[Any], messages: Sequence[Any], source: Source) -> bool:
    texts = len([1 for part in parts if part.text is not None]) + len([1 for part in parts if part.type == "text"])
    called = [call for message in messages for call in message.tool_calls or () if isinstance(call, dict) and "type" in call]
    return source.count(b'"type"') == len(parts) + len(called) and source.count(b'"text"') == texts


def _check_once(fields: Iterable[_Name], names: Sequence[str], path: str) -> None:
    texts = [name.text for name in fields]
    if len(set(texts)) < len(texts):
        for name in names:
            if texts.count(name) > 1:
                raise twice(f"{path}.{name}")
