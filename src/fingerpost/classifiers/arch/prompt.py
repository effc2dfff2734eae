"""Writing the Arch-Router prompt. Pure: the same conversation and routes give the same bytes."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence

from fingerpost.chat import Conversation, Message, estimate_tokens
from fingerpost.routes import Route

TASK_INSTRUCTION = """
You are a helpful assistant designed to find the best suited route.
You are provided with route description within <routes></routes> XML tags:
<routes>

{routes}

</routes>

<conversation>

{conversation}

</conversation>
"""

FORMAT_PROMPT = """
Your task is to decide which route is best suit with user intent on the conversation in <conversation></conversation> XML tags.  Follow the instruction:
1. If the latest intent from user is irrelevant or user intent is full filled, response with other route {"route": "other"}.
2. You must analyze the route descriptions and find the best match route for user latest intent. 
3. You only response the name of the route that best matches the user's request, use the exact name in the <routes></routes>.

Based on your analysis, provide your response in the following JSON formats if you decide to match any route:
{"route": "route_name"} 
"""  # noqa: E501, W291  (the model was trained on exactly these bytes)

_TAG = re.compile(r"<(?=\s*/?\s*(?:conversation|routes)\b)", re.IGNORECASE)

CUT_NOTE = "the latest message was cut to its head and tail for the router"
DROPPED_NOTE = "the oldest turns were left out for the router"


def render(conversation: Conversation, routes: Sequence[Route], budget: int) -> tuple[str, str]:
    """The prompt, and a note that says what had to be left out to keep the conversation within `budget` tokens."""
    turns, note = window(conversation, budget)
    described = [{"name": route.name, "description": route.description} for route in routes]
    return TASK_INSTRUCTION.format(routes=_json(described), conversation=_json(turns)) + FORMAT_PROMPT, note


def window(conversation: Conversation, budget: int) -> tuple[list[dict[str, str]], str]:
    """The newest turns that fit into `budget` tokens, oldest first, and a note on what is missing.

    The latest user turn always stays: whole where it fits, else its head and tail.
    """
    turns = [{"role": message.role, "content": content(message)} for message in conversation.messages]
    latest = max((i for i, message in enumerate(conversation.messages) if message.role == "user"), default=None)
    notes = []
    kept: dict[int, dict[str, str]] = {}
    if latest is not None:
        if estimate_tokens(turns[latest]["content"]) > budget:
            turns[latest]["content"] = head_and_tail(turns[latest]["content"], budget)
            notes.append(CUT_NOTE)
        kept[latest] = turns[latest]
        budget -= estimate_tokens(turns[latest]["content"])
    for index in range(len(turns) - 1, -1, -1):
        if index == latest:
            continue
        budget -= estimate_tokens(turns[index]["content"])
        if budget < 0:
            notes.append(DROPPED_NOTE)
            break
        kept[index] = turns[index]
    return [kept[index] for index in sorted(kept)], "; ".join(notes)


def content(message: Message) -> str:
    """A turn's text as the model saw it in training: parts are wrapped, payloads are left out."""
    if message.in_parts:
        return " ".join(f"<new msg>{text} </msg>" for text in message.texts)
    return message.text


def head_and_tail(text: str, budget: int) -> str:
    """The beginning and the end of a text, together about `budget` tokens."""
    # Counted in bytes, as the estimate is: the ends may be in another script than the middle.
    keep = max(1, budget * (4 if text.isascii() else 3) // 2)
    encoded = text.encode()
    head, tail = (part.decode("utf-8", "ignore") for part in (encoded[:keep], encoded[-keep:]))
    return f"{head} [...] {tail}"


def _json(value: object) -> str:
    """JSON that keeps non-ASCII characters and in which no text can open or close the prompt's own tags."""
    return _TAG.sub(r"\\u003c", json.dumps(value, ensure_ascii=False))
