"""Usage read out of a reply: wherever its bytes are cut, the same numbers, and those that the standard library finds."""

from __future__ import annotations

import json
from typing import Any

from fingerpost.records import Usage
from fingerpost.upstreams.sse import UsageReader
from fuzz.targets import cuttings

_USAGE = b'{"usage":{"prompt_tokens":3,"completion_tokens":4}}'
SEEDS = (
    b"s" + b'data: {"choices":[]}\n\ndata: ' + _USAGE + b"\n\ndata: [DONE]\n\n",
    b"s" + b"event: x\r\nid: 1\r\ndata:" + _USAGE + b"\r\n\r\n: comment\r\n",
    b"s" + b"data: " + _USAGE,
    b"j" + b'{"id":"x","usage":{"prompt_tokens":1,"completion_tokens":2,"total_tokens":3},"choices":[{}]}',
)
WORDS = (
    b"data:", b"data: ", b"\n", b"\r\n", b"\r", b"\n\n", b"event:", b"[DONE]", b'"usage"', b'"prompt_tokens"', b":", b",",
    b'"completion_tokens"', b"null", b"{}", b"-1", b"9007199254740992", b"9007199254740993", b"1e3", b"1.0", b"true", _USAGE,
    b"\xff", b"\xef\xbb\xbf", b"\xe2\x80\xa8", b"\x0b", b"\x0c", b"\x1c", b"\x85", b"[[[[[[[[", b'"\\ud800"', b"}", b"{",
)  # fmt: skip


def check(data: bytes) -> None:
    """Raises when the numbers depend on the cuts, or differ from a slow reader's."""
    stream, body = data[:1] != b"j", data[1:]
    usage = _read([body], stream)
    for pieces in cuttings(body):
        assert _read(pieces, stream) == usage
    sure, told = _reference(body, stream)
    assert not sure or usage == told, (usage, told)


def _read(pieces: list[bytes], stream: bool) -> Usage | None:
    reader = UsageReader(stream=stream)
    for piece in pieces:
        reader.feed(piece)
    return reader.close()


def _reference(body: bytes, stream: bool) -> tuple[bool, Usage | None]:
    """The usage by the standard library, and whether it is plain: its own leniency and doubled keys leave some doubt."""
    texts = [line[5:] for line in body.splitlines() if line.startswith(b"data:")] if stream else [body]
    if (
        body.count(b"usage") != sum(text.count(b'"usage"') for text in texts)
        or b"\r" in body.replace(b"\r\n", b"")
        or b"\\u" in body
    ):
        return False, None
    found = None
    for text in texts:
        if b"usage" not in text:
            continue
        try:
            answer = json.loads(text.decode(), object_pairs_hook=_once, parse_constant=_no_number)
        except (ValueError, RecursionError):
            return False, None
        counts = answer.get("usage", 0) if isinstance(answer, dict) else 0
        if counts is None:
            continue
        told = [counts.get(name, 0) for name in ("prompt_tokens", "completion_tokens")] if isinstance(counts, dict) else []
        if len(told) != 2 or not all(type(number) is int and 0 <= number <= 2**53 for number in told):
            return False, None
        found = Usage(*told)
    return True, found


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(dict(pairs)) < len(pairs):
        raise ValueError("a key is there twice")
    return dict(pairs)


def _no_number(name: str) -> float:
    raise ValueError(name)
