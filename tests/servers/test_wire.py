"""The server still speaks as it did when tests/golden was recorded; `--record` records it anew.

The other tests replay these recordings (tests/classifiers/arch/test_wire.py), so that they know how a real server speaks.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from fingerpost.chat import ChatRequest
from fingerpost.classifiers.arch import CONSTRAINTS, MODEL
from fingerpost.errors import ClassifierError
from fingerpost.routes import Backend, Route, RouteTable
from fingerpost.upstreams import Call
from fingerpost.upstreams.http1 import Http1Upstream

GOLDEN = Path(__file__).parents[1] / "golden"
ROUTES = {
    "weather": "The user asks what the weather will be like somewhere.",
    "music": "The user wants to listen to a song, an album or an artist.",
}
HI = [{"role": "user", "content": "Hi"}]
QUESTION = [
    {"role": "user", "content": "Will it rain in Köln tomorrow?"},
    {"role": "assistant", "content": "No, it stays dry."},
    {"role": "user", "content": "And how warm will it get?"},
]

QUESTIONS: dict[str, dict[str, Any]] = {
    "choice": {"constraint": 0},
    "schema": {"constraint": 1},
    "free": {"constraint": 2},
    "bare": {"constraint": 3},
    "too_long": {"constraint": 0, "messages": [{"role": "user", "content": "🙂 " * 1200}]},
    "no_model": {"constraint": 0, "model": "no-such-model"},
}
"""What the classifier asks."""

CALLS: dict[str, dict[str, Any]] = {
    "stream": {"model": MODEL, "messages": HI, "max_tokens": 4, "stream": True, "stream_options": {"include_usage": True}},
    "bad_value": {"model": MODEL, "messages": HI, "temperature": "hot"},
    "bad_constraint": {"model": MODEL, "messages": HI, "structured_outputs": {"choice": "weather"}},
}
"""What the gateway may carry there."""

ONLY_VLLM = {"no_model", "bad_constraint"}
"""What llama.cpp does not mind: it has one model, whatever it is called, and passes over fields that it does not know."""


@pytest.fixture(autouse=True)
def _asked_of_this_server(name: str, request: pytest.FixtureRequest) -> None:
    if name in ONLY_VLLM and request.config.getoption("--server") != "vllm":
        pytest.skip("llama.cpp does not mind it")


def shape(value: Any) -> Any:
    """What a JSON value is made of: keys and types."""
    if isinstance(value, dict):
        return {key: shape(inner) for key, inner in sorted(value.items())}
    if isinstance(value, list):
        return sorted({json.dumps(shape(inner)) for inner in value})
    return "nothing" if value is None else type(value).__name__


def shape_of(response: str) -> Any:
    """What a response is made of: its status, header names, and the shape of its body or events."""
    head, _, body = response.partition("\r\n\r\n")
    status, *headers = head.split("\r\n")
    events = [line[5:] for line in body.split("\n") if line.startswith("data: {")]
    return (
        status,
        sorted(line.split(":")[0].lower() for line in headers),
        shape([json.loads(text) for text in events or [body]]),
    )


def agrees(name: str, found: dict[str, Any], config: pytest.Config) -> None:
    """Records what was found, or compares it with the recording."""
    file = GOLDEN / config.getoption("--server") / f"{name}.json"
    if config.getoption("--record"):
        file.write_text(json.dumps(found, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    known = json.loads(file.read_text(encoding="utf-8"))
    assert found["request"] == known["request"]
    assert shape_of(found["response"]) == shape_of(known["response"])


@pytest.mark.parametrize("name", QUESTIONS)
async def test_the_answers_to_the_classifier(tap, arch_at, request, name):
    case = {"constraint": 0, "messages": QUESTION, "model": MODEL, "routes": ROUTES, "budget": 100_000} | QUESTIONS[name]
    table = RouteTable(tuple(Route(*route) for route in ROUTES.items()))
    number = case["constraint"]
    async with arch_at(tap.url, case["model"], constraints=CONSTRAINTS[number : number + 1], budget=case["budget"]) as arch:
        try:
            verdict = await arch.classify(ChatRequest.from_messages(case["messages"]).conversation, table)
            outcome = {"verdict": verdict.probabilities}
        except ClassifierError as error:
            outcome = {"error": error.message}
    exchange = {"request": json.loads(tap.asked()), "response": tap.answered()}
    agrees(name, {**case, **exchange, **outcome}, request.config)


@pytest.mark.parametrize("name", CALLS)
async def test_the_answers_to_the_gateway(tap, request, name):
    backend = Backend("toy", MODEL, tap.url)
    upstream = Http1Upstream(backend)
    reply = await upstream.send(Call(backend, json.dumps(CALLS[name]).encode()))
    await reply.read(1 << 20)
    await upstream.aclose()
    agrees(name, {"request": CALLS[name], "response": tap.answered()}, request.config)
