"""What is asked and what is answered: request bodies, canned replies, and the cases that combine them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

CHUNKS = 200
"""Events of the canned stream, `[DONE]` included."""

_MARK = "@number@"
_WORDS = "please find the cheapest train from the old harbour to my sister's house on friday evening because our car broke down"


@dataclass(frozen=True, slots=True)
class Body:
    """A request body around a number of eight digits; another number makes another conversation of the same length."""

    before: bytes
    after: bytes

    def number(self, value: int) -> bytes:
        """The digits that go between, for one conversation."""
        return b"%08d" % (value % 10**8)

    def __len__(self) -> int:
        return len(self.before) + 8 + len(self.after)


@dataclass(frozen=True, slots=True)
class Case:
    """One kind of request: which upstream answers it (`small`, `whole`, `stream`, `large`) and with how many connections.

    `short` requests are over so quickly that those which wrk breaks off at the end do not count.
    """

    name: str
    title: str
    upstream: str
    reply: bytes
    messages: list[dict[str, Any]]
    connections: tuple[int, ...] = (1, 16, 256)
    stream: bool = False
    short: bool = False

    def body(self, model: str) -> Body:
        """The request for a model of this name."""
        options = {"stream": True, "stream_options": {"include_usage": True}} if self.stream else {}
        text = json.dumps({"model": model, "messages": self.messages, **options})
        before, after = text.split(_MARK)
        return Body(before.encode(), after.encode())

    def is_answered_by(self, got: bytes, *, exact: bool) -> bool:
        """Whether this is the upstream's reply; not `exact` is for gateways that write JSON anew: the text must be the same."""
        return got == self.reply if exact else text_of(got) == text_of(self.reply) != ""


def text_of(reply: bytes) -> str:
    """What the assistant says in a completion or in a whole stream; empty when it is neither."""
    events = [line[5:].strip() for line in reply.split(b"\n") if line.startswith(b"data:")] or [reply]
    said = []
    for event in events:
        try:
            read: Any = json.loads(event)
        except ValueError:
            continue
        for choice in read.get("choices", []) if isinstance(read, Mapping) else []:
            part = choice.get("delta") or choice.get("message") or {}
            said.append(part.get("content") or "")
    return "".join(said)


def _completion(text: str) -> bytes:
    return json.dumps({
        "id": "chatcmpl-7f3a9d1c5b2e4f60", "object": "chat.completion", "created": 1767225600, "model": "bench",
        "choices": [{"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 34, "completion_tokens": 31, "total_tokens": 65},
    }).encode()  # fmt: skip


def events() -> list[bytes]:
    """The events of the canned stream: a role, words, the end, the usage, `[DONE]`."""
    head = {"id": "chatcmpl-7f3a9d1c5b2e4f60", "object": "chat.completion.chunk", "created": 1767225600, "model": "bench"}
    deltas: list[dict[str, Any]] = [{"role": "assistant", "content": ""}]
    deltas += [{"content": f" word{place}"} for place in range(CHUNKS - 4)]
    told: list[dict[str, Any]] = [{**head, "choices": [{"index": 0, "delta": d, "finish_reason": None}]} for d in deltas]
    told.append({**head, "choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]})
    usage = {"prompt_tokens": 34, "completion_tokens": CHUNKS - 4, "total_tokens": CHUNKS + 30}
    told.append({**head, "choices": [], "usage": usage})
    return [b"data: " + json.dumps(event).encode() + b"\n\n" for event in told] + [b"data: [DONE]\n\n"]


def _user(content: Any) -> list[dict[str, Any]]:
    return [{"role": "system", "content": "You are a helpful assistant."}, {"role": "user", "content": content}]


def _long(size: int) -> list[dict[str, Any]]:
    """A conversation of about `size` bytes whose last turn carries the number."""
    turn = " ".join([_WORDS] * 9)
    turns = [{"role": ("user", "assistant")[place % 2], "content": turn} for place in range(size // len(turn) // 2 * 2)]
    return [*turns, {"role": "user", "content": f"Ticket {_MARK}: {_WORDS}?"}]


def _picture(size: int) -> list[dict[str, Any]]:
    url = "data:image/png;base64," + "iVBORw0KGgoAAAANSUhEUg" * (size // 22)
    return _user(
        [{"type": "text", "text": f"Picture {_MARK}: what is on it?"}, {"type": "image_url", "image_url": {"url": url}}]
    )


SMALL = _completion("The cheapest connection leaves at 18:05 and needs one change; a ticket is 14 euros if bought today.")
LARGE = _completion("All work and no play makes a long reply. " * 25_000)
STREAM = b"".join(events())

_ASKED = _user(f"Ticket {_MARK}: {_WORDS}?")
CASES = {
    case.name: case
    for case in (
        Case("small", "small chat", "small", SMALL, _ASKED, short=True),
        Case("64kb", "conversation of 64 KB", "whole", SMALL, _long(64_000), short=True),
        Case("10mb", "image of 10 MB", "whole", SMALL, _picture(10_000_000), (1, 16)),
        Case("stream", f"stream of {CHUNKS} chunks", "stream", STREAM, _ASKED, stream=True),
        Case("large", "reply of 1 MB", "large", LARGE, _ASKED, (1, 16)),
    )
}
