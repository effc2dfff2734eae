"""A table and what is asked of it, whatever the server."""

from __future__ import annotations

from fingerpost.chat import ChatRequest, Conversation
from fingerpost.routes import OTHER, Route, RouteTable

TABLE = RouteTable(
    (
        Route("weather", "The user asks what the weather will be like somewhere."),
        Route("music", "The user wants to listen to a song, an album or an artist."),
        Route("hard_question", "A question that needs careful reasoning over several steps."),
        Route(OTHER),
    )
)
NAMES = [route.name for route in TABLE.routes]
TEXTS = [
    "Will it rain in Lisbon tomorrow?",
    "put on some jazz",
    "Prove that there are infinitely many primes.",
    "größe? 路 🙂",
    "asdf",
]


def asked(*texts: str) -> Conversation:
    return ChatRequest.from_messages([{"role": "user", "content": text} for text in texts]).conversation
