"""Real clients of the contracts that fingerpost serves, and a real server of one of them beside it."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from typing import Any

import pytest

from fingerpost.testing import FakeBackend, FakeReply, Received

QUESTION = [{"role": "user", "content": "Hello there"}]


def post(url: str, body: Any) -> tuple[int, Any]:
    request = urllib.request.Request(url, json.dumps(body).encode(), {"content-type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.load(error)


class Between:
    """Passes requests on to fingerpost and notes them with their answers: what a client really sends and gets."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.exchanges: list[dict[str, Any]] = []

    def __call__(self, received: Received) -> FakeReply:
        status, answer = post(self.url + received.target, received.json)
        shown = {name: received.headers[name] for name in ("authorization", "content-type") if name in received.headers}
        self.exchanges.append(
            {"target": received.target, "headers": shown, "body": received.json, "status": status, "answer": answer}
        )
        return FakeReply(status=status, completion=answer)


def test_litellms_router_takes_its_tiers_from_fingerpost(url, in_environment, record) -> None:
    prompts = ["Hi there!", "Prove step by step that the sum of two even numbers is even, then derive a general theorem."]
    between = Between(url)
    with FakeBackend(between) as decisions, FakeBackend() as models:
        base = decisions.url.removesuffix("/v1")
        found = in_environment("litellm", "ask_litellm.py", base, models.url, given=prompts)
        asked = [request.json["model"] for request in models.requests]
    assert asked == ["simple-model", "reasoning-model"]
    assert found["answer"]["answers"]["team"]["choice"] == "billing"
    assert [exchange["status"] for exchange in between.exchanges] == [200] * 3
    made = "LiteLLM 1.106's systemone client, then its complexity router, asked fingerpost (scripts/test-interop)"
    record("systemone_litellm.json", {"made": made, "exchanges": between.exchanges})


def test_semantic_routers_decision_router_routes_by_fingerpost(url, in_environment, record) -> None:
    queries = ["My parcel has not come.", "I was charged twice, refund me!", "Write a haiku about frogs."]
    between = Between(url)
    with FakeBackend(between) as decisions:
        found = in_environment("semantic-router", "ask_semantic_router.py", decisions.url.removesuffix("/v1"), given=queries)
    assert [route for route, _ in found] == ["delivery", "billing", None]
    assert found[0][1] > 0.5
    made = "semantic-router 1.1's SystemOneDecisionModel in a DecisionRouter asked fingerpost (scripts/test-interop)"
    record("systemone_semantic_router.json", {"made": made, "exchanges": between.exchanges})


BODIES: list[Any] = [
    {"input_format": "openai_chat", "request": {"model": "direct", "messages": QUESTION}},
    {"input_format": "openai_chat", "request": {"model": "mixed", "stream": True, "messages": QUESTION}},
    {"input_format": "anthropic_messages", "request": {"model": "mixed", "max_tokens": 5, "messages": QUESTION}},
    {"input_format": "openai_responses", "request": {"model": "direct", "input": "Hello there"}},
    {"input_format": "openai_responses", "request": {"model": "mixed", "input": [{"type": "message", **QUESTION[0]}]}},
    {"input_format": "openai_chat", "request": {"model": "nope", "messages": QUESTION}},
    {"input_format": "openai_chat", "request": {"model": "direct", "messages": [{"role": "nobody", "content": "x"}]}},
    {"input_format": "openai_chat", "request": []},
    {"input_format": "openai_chat"},
    {"request": {"model": "direct", "messages": QUESTION}},
    {"input_format": "smoke_signals", "request": {"model": "direct", "messages": QUESTION}},
    {"model": "direct", "messages": QUESTION},
    {"input_format": "openai_chat", "session_id": "s", "request": {"model": "direct", "messages": QUESTION}},
    [],
]


def test_switchyards_decisions_and_ours_are_the_same(url, in_environment, record, pytestconfig) -> None:
    toml = str(pytestconfig.rootpath / "interop/switchyard.toml")
    theirs = in_environment("switchyard", "ask_switchyard.py", toml, given=BODIES)
    record("decision.json", {
        "made": "NeMo Switchyard 0.3.0's server with interop/switchyard.toml answered these (scripts/test-interop)",
        "exchanges": [
            {"body": body, "status": status, "answer": answer} for body, (status, answer) in zip(BODIES, theirs, strict=True)
        ],
    })  # fmt: skip
    for body, (status, answer) in zip(BODIES, theirs, strict=True):
        our_status, ours = post(f"{url}/v1/decision", body)
        if status == 200:
            assert (our_status, ours) == (status, answer)
        else:  # the envelope's mistakes are 422 there and 400 here, as everywhere in fingerpost
            assert our_status == (400 if status == 422 else status)
            assert answer["error"].keys() <= ours["error"].keys()


@pytest.mark.parametrize(
    ("peer", "sample", "expected"),
    [
        ("litellm", "complexity.yaml", ["small", "large", "smart"]),
        ("semantic-router", "semantic_router.yaml", ["billing", "delivery", "auto"]),
    ],
)
def test_the_samples_of_import_are_what_the_peers_read(in_environment, pytestconfig, peer, sample, expected) -> None:
    path = pytestconfig.rootpath / "tests/config/importers/samples" / sample
    assert in_environment(peer, "read_sample.py", peer, str(path), given=None) == expected


def test_the_sample_of_switchyards_is_what_its_server_serves(in_environment, pytestconfig) -> None:
    path = pytestconfig.rootpath / "tests/config/importers/samples/switchyard.toml"
    body = {"input_format": "openai_chat", "request": {"model": "cheap", "messages": QUESTION}}
    ((status, answer),) = in_environment("switchyard", "ask_switchyard.py", str(path), given=[body])
    assert (status, answer["selected"]["target"]) == (200, "efficient")
