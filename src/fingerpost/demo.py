"""The conversations that `fingerpost demo` decides: those of the Arch-Router notebook that fingerpost grew out of."""

from __future__ import annotations

from typing import Any

from fingerpost.chat import ChatRequest
from fingerpost.router import Router

_TRAINS = (
    "Can you carefully think through this problem: If a train leaves station A at 3pm traveling at 60mph, and another train "
    "leaves station B at 4pm traveling at 80mph towards station A, and the stations are 200 miles apart, when and where will "
    "they meet?"
)
_PICTURE = {"type": "image_url", "image_url": {"url": "data:image/jpeg;base64,/9j/4AAQSk..."}}


def _asked(text: str) -> list[dict[str, Any]]:
    return [{"role": "user", "content": text}]


def _answered(question: str, answer: str, then: str) -> list[dict[str, Any]]:
    return [*_asked(question), {"role": "assistant", "content": answer}, *_asked(then)]


CONVERSATIONS: tuple[list[dict[str, Any]], ...] = (
    _asked("Hey! How's it going? Nice weather today, isn't it?"),
    _asked(_TRAINS),
    _asked("Can you analyze this image and tell me what objects are in it?"),
    _asked("What can you see in my room? Can you describe my surroundings?"),
    _answered("What is 2+2?", "2+2 equals 5.", "That's wrong! Please try again with the correct answer."),
    _asked("What is the capital of France?"),
    _asked("Hey there! How's your day going?"),
    _asked("Please think carefully: What are the philosophical implications of Gödel's incompleteness theorems?"),
    _asked("Can you look at this photo and tell me what you see?"),
    _answered("What is 15 * 7?", "15 * 7 = 95", "That's incorrect, please try again."),
    [{"role": "user", "content": [{"type": "text", "text": "What's in this image? Can you describe it in detail?"}, _PICTURE]}],
)


async def decide_all(router: Router) -> list[dict[str, Any]]:
    """The decision for each conversation: request (the latest text), route, backend, model, confidence, ms."""
    await router.prepare()
    rows = []
    for messages in CONVERSATIONS:
        request = ChatRequest.from_messages(messages)
        decision = (await router.decide(request)).to_json()
        shown = {key: decision[key] for key in ("route", "backend", "model", "confidence", "ms")}
        rows.append({"request": request.conversation.text, **shown})
    return rows
