"""How vLLM 0.32.0 and llama.cpp (b11549) speak, replayed on a loopback socket: recorded by tests/servers/test_wire.py."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from fingerpost.chat import ChatRequest
from fingerpost.classifiers.arch import CONSTRAINTS, Arch
from fingerpost.errors import ClassifierError
from fingerpost.routes import OTHER, Backend, Route, RouteTable
from fingerpost.testing import FakeBackend, FakeReply
from fingerpost.upstreams.http1 import Http1Upstream

RECORDED = {
    f"{file.parent.name}/{file.stem}": json.loads(file.read_text(encoding="utf-8"))
    for server in ("vllm", "llamacpp")
    for file in sorted((Path(__file__).parents[2] / "golden" / server).glob("*.json"))
}
VERDICTS = [name for name, one in RECORDED.items() if "verdict" in one]
ERRORS = [name for name, one in RECORDED.items() if "error" in one]
BODIES = {name: one["response"].partition("\r\n\r\n")[2] for name, one in RECORDED.items()}


async def asked(fake: FakeBackend, case: dict[str, Any]) -> dict[str, float]:
    backend = Backend("arch", case["model"], fake.url)
    number = case["constraint"]
    arch = Arch(backend, Http1Upstream(backend), budget=case["budget"], constraints=CONSTRAINTS[number : number + 1])
    table = RouteTable(tuple(Route(*route) for route in case["routes"].items()))
    try:
        return dict((await arch.classify(ChatRequest.from_messages(case["messages"]).conversation, table)).probabilities)
    finally:
        await arch.aclose()


def replay(case: dict[str, Any]) -> FakeBackend:
    return FakeBackend(FakeReply(raw=case["response"].encode()))


def test_every_way_of_asking_was_recorded():
    for server in ("vllm", "llamacpp"):
        asked_for = {RECORDED[name]["constraint"] for name in VERDICTS if name.startswith(server)}
        assert asked_for == set(range(len(CONSTRAINTS)))
    assert set(ERRORS) == {"vllm/no_model", "vllm/too_long", "llamacpp/too_long"}


@pytest.mark.parametrize("name", VERDICTS)
async def test_a_recorded_answer_gives_the_verdict_that_it_gave_then(name):
    case = RECORDED[name]
    with replay(case) as fake:
        probabilities = await asked(fake, case)
    assert probabilities == pytest.approx(case["verdict"])
    assert sum(probabilities.values()) == pytest.approx(1)
    assert set(probabilities) == {*case["routes"], OTHER}


@pytest.mark.parametrize("name", [*VERDICTS, *ERRORS])
async def test_what_is_asked_is_what_the_recorded_server_was_asked(name):
    case = RECORDED[name]
    with replay(case) as fake:
        try:
            await asked(fake, case)
        except ClassifierError:
            assert name in ERRORS
    assert fake.requests[0].json == case["request"]


@pytest.mark.parametrize("name", ERRORS)
async def test_a_recorded_error_is_no_verdict(name):
    with replay(RECORDED[name]) as fake, pytest.raises(ClassifierError) as caught:
        await asked(fake, RECORDED[name])
    assert caught.value.message == RECORDED[name]["error"]
    assert ("does not fit" in caught.value.message) is name.endswith("too_long")


@pytest.mark.parametrize("server", ["vllm", "llamacpp"])
async def test_a_prompt_that_does_not_fit_is_not_tried_with_other_constraints(server):
    case = RECORDED[f"{server}/too_long"]
    with replay(case) as fake:
        backend = Backend("arch", case["model"], fake.url)
        arch = Arch(backend, Http1Upstream(backend), budget=case["budget"])
        with pytest.raises(ClassifierError, match="does not fit into its context"):
            await arch.classify(ChatRequest.from_messages(case["messages"]).conversation, RouteTable((Route(OTHER),)))
        await arch.aclose()
    assert len(fake.requests) == 1


@pytest.mark.parametrize(
    "name", ["vllm/choice", "vllm/schema", "vllm/free", "llamacpp/choice", "llamacpp/schema", "llamacpp/free"]
)
def test_the_probabilities_come_from_the_recorded_logprobs(name):
    steps = json.loads(BODIES[name])["choices"][0]["logprobs"]["content"]
    assert len(steps) > 3
    assert all(len(step["top_logprobs"]) == 20 for step in steps)
    bare = f"{name.partition('/')[0]}/bare"
    assert RECORDED[name]["verdict"] != pytest.approx(RECORDED[bare]["verdict"])


@pytest.mark.parametrize("name", ["vllm/stream", "llamacpp/stream"])
def test_a_recorded_stream_passes_the_gateway_with_its_usage(serving, name):
    one = serving()
    one.fake.script(FakeReply(raw=RECORDED[name]["response"].encode()))
    status, _, body = one.request("POST", "/v1/chat/completions", {**RECORDED[name]["request"], "model": "chat"})
    assert status == 200
    events = [line for line in BODIES[name].splitlines() if line.startswith("data: ")]
    assert [line for line in body.decode().splitlines() if line.startswith("data: ")] == events
    usage = next(json.loads(line[5:])["usage"] for line in events if '"usage":{' in line)
    told = one.told()[-1].usage
    assert (told.input_tokens, told.output_tokens) == (usage["prompt_tokens"], usage["completion_tokens"])


@pytest.mark.parametrize("name", ["vllm/bad_value", "vllm/bad_constraint", "llamacpp/bad_value"])
def test_a_recorded_refusal_reaches_the_client_as_it_was(serving, name):
    one = serving()
    one.fake.script(FakeReply(raw=RECORDED[name]["response"].encode()))
    status, _, body = one.request("POST", "/v1/chat/completions", {**RECORDED[name]["request"], "model": "chat"})
    assert (status, body.decode()) == (400, BODIES[name])
