"""Changing fields of a JSON object where they stand, in bytes that otherwise stay as they are. Pure."""

from __future__ import annotations

import codecs
import re
from collections.abc import Mapping

import msgspec

from fingerpost.errors import InvalidRequest

MAX_FIELDS = 1000
"""Fields of one object whose places are looked for; the largest requests have forty."""

Source = bytes | bytearray
"""JSON as it came. A large one is read straight into a bytearray, which nobody writes to from then on."""

_decode_fields = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_KEY = re.compile(rb'[ \t\n\r]*+[{,][ \t\n\r]*+("[^"\\]*+(?:\\.[^"\\]*+)*+")[ \t\n\r]*+:[ \t\n\r]*+')
_END = re.compile(rb"[ \t\n\r]*+}")


class Member(msgspec.Struct, frozen=True, gc=False):
    """Where a field stands: from its key to the end of its value, and where the value begins. Offsets in bytes."""

    start: int
    value: int
    end: int


class Fields(msgspec.Struct, frozen=True, gc=False):
    """The fields of a JSON object, each value as the bytes that it is, and where they stand.

    Packed JSON, in which nothing is but fields, has no `members`: they can be counted when they are wanted.
    """

    values: dict[str, msgspec.Raw]
    members: dict[str, Member] | None = None


def check_utf8(source: Source) -> None:
    """Raises UnicodeDecodeError for what is no UTF-8. msgspec decodes only strings that are wanted, and skips the others."""
    if source.isascii():
        return
    decode = codecs.getincrementaldecoder("utf-8")().decode
    view = memoryview(source)
    for start in range(0, len(source), 65_536):  # in pieces: whole, it would take up to four times the memory
        decode(view[start : start + 65_536])
    decode(b"", True)


def read_fields(source: Source) -> Fields:
    """The fields of a JSON object, without reading what is in them.

    Where the values, with quotes, a colon and a comma or brace for each, add up to the whole, nothing else is there: no spaces,
    no escapes in a name, no key twice. Else they are looked for.

    Raises:
        InvalidRequest: there are more than MAX_FIELDS, or a key is there twice. Which of the two a backend takes cannot be
            known, so that what was read here and what is answered there might be two different requests.
        msgspec.MsgspecError: it is no JSON object.
    """
    values = _decode_fields(source)
    if len(values) > MAX_FIELDS:
        raise InvalidRequest(f"the body has more than {MAX_FIELDS} fields")
    size = 1 + len(b"".join(values.values()))  # a memoryview of each takes longer
    for name in values:
        size += len(name) + 4
    return Fields(values) if size == len(source) else Fields(values, _search(source, values))


def locate(fields: Fields) -> dict[str, Member]:
    """Where each field stands, in their order."""
    if fields.members is not None:
        return fields.members
    members: dict[str, Member] = {}
    start = 1
    for name, value in fields.values.items():
        at = start + len(name) + 3
        end = at + len(memoryview(value))
        members[name] = Member(start, at, end)
        start = end + 1
    return members


def _search(source: Source, fields: Mapping[str, msgspec.Raw]) -> dict[str, Member]:
    """Where the fields stand that msgspec read, however they are written.

    Going through the text, they are found again one after the other. If a key is there twice, msgspec knows its last value
    only: then some value is not the one that stands there, or there are fields left at the end.
    """
    members: dict[str, Member] = {}
    at, name = 0, ""
    for name, value in fields.items():
        key = _KEY.match(source, at)
        if key is None:  # the value before is only the beginning of what stands there
            raise twice(list(members)[-1])
        start = key.end()
        if not source.startswith(value, start) or msgspec.json.decode(key[1]) != name:
            raise twice(str(msgspec.json.decode(key[1])))
        at = start + len(memoryview(value))
        members[name] = Member(key.start(1), start, at)
    if members and _END.match(source, at) is None:
        key = _KEY.match(source, at)
        raise twice(str(msgspec.json.decode(key[1])) if key else name)
    return members


def replace(source: Source, fields: Fields, name: str, value: bytes) -> bytes:
    """What `splice` makes of a change of one field that is there, in fewer steps."""
    if fields.members is not None:
        member = fields.members[name]
        start, end = member.value, member.end
    else:
        start = 1
        for field, old in fields.values.items():
            start += len(field) + 3
            if field == name:
                break
            start += len(memoryview(old)) + 1
        end = start + len(memoryview(fields.values[name]))
    view = memoryview(source)
    return b"".join((view[:start], value, view[end:]))


def splice(source: Source, members: Mapping[str, Member], changes: Mapping[str, bytes | None]) -> bytes:
    """The object with the values of some fields replaced or (None) the fields taken out; new ones come last.

    `members` is what `locate` says of `source`, and something must be left. Copies the bytes once.
    """
    order = list(members.values())
    edits: list[tuple[int, int, bytes]] = []
    for name, value in changes.items():
        member = members.get(name)
        if member is None:
            end = order[-1].end
            edits += [(end, end, b",%b:%b" % (msgspec.json.encode(name), value))] if value is not None else []
        elif value is not None:
            edits.append((member.value, member.end, value))
        elif member is not order[-1]:
            edits.append((member.start, order[order.index(member) + 1].start, b""))
        else:  # the last one takes the comma before it along
            edits.append((order[-2].end, member.end, b""))
    view, at = memoryview(source), 0
    pieces: list[bytes | memoryview] = []
    for start, end, new in sorted(edits):
        pieces += [view[at:start], new]
        at = end
    return b"".join([*pieces, view[at:]])


def twice(name: str) -> InvalidRequest:
    """The refusal of a key, given with its path, that is there twice."""
    name = name if len(name) <= 100 else f"{name[:100]}…"
    error = InvalidRequest(f"{name}: this key is there twice; keep one of them", param=name)
    error.code = "duplicate_key"
    return error
