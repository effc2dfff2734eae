from __future__ import annotations

import asyncio
import contextlib
import json
import math
from contextlib import asynccontextmanager
from itertools import count

import pytest

from fingerpost.chat import ChatRequest, Conversation
from fingerpost.classifiers.arch import MAX_REPLY_BYTES, MODEL, Arch, answer_for
from fingerpost.classifiers.arch.prompt import CUT_NOTE, DROPPED_NOTE, render
from fingerpost.errors import ClassifierError
from fingerpost.router import Router
from fingerpost.routes import OTHER, Backend, Route, RouteTable
from fingerpost.testing import FakeBackend, FakeReply
from fingerpost.upstreams.http1 import Http1Upstream

TABLE = RouteTable((Route("hard_question", "Thinking."), Route("chit_chat", "Small talk."), Route(OTHER)))
NAMES = ["hard_question", "chit_chat", OTHER]
ANSWER = FakeReply('{"route": "chit_chat"}')
CONSTRAINED = {"structured_outputs", "response_format", "logprobs", "top_logprobs"}


@asynccontextmanager
async def arch_at(fake: FakeBackend, **options):
    backend = Backend("arch", MODEL, fake.url, "secret")
    classifier = Arch(backend, Http1Upstream(backend), **options)
    try:
        yield classifier
    finally:
        await classifier.aclose()


def asked(*texts: str) -> Conversation:
    return ChatRequest.from_messages([{"role": "user", "content": text} for text in texts]).conversation


def refusing(*fields: str, status: int = 400):
    """A server that refuses requests with any of these fields."""
    return lambda request: FakeReply("unknown field", status) if set(fields) & request.json.keys() else ANSWER


async def test_the_model_is_asked_with_the_prompt_at_temperature_zero():
    with FakeBackend(ANSWER) as fake:
        async with arch_at(fake) as arch:
            await arch.prepare(TABLE)
            verdict = await arch.classify(asked("Hé!"), TABLE)
    assert verdict.route == "chit_chat"
    assert verdict.source == "arch"
    assert list(verdict.probabilities) == NAMES
    (request,) = fake.requests
    assert request.target == "/v1/chat/completions"
    assert request.headers["authorization"] == "Bearer secret"
    assert request.json["model"] == MODEL
    assert request.json["temperature"] == 0
    assert request.json["messages"] == [{"role": "user", "content": render(asked("Hé!"), TABLE.described, 2048)[0]}]
    assert "Hé!" in request.body.decode()


async def test_the_server_is_asked_to_answer_with_nothing_but_a_route():
    with FakeBackend(ANSWER) as fake:
        async with arch_at(fake) as arch:
            await arch.classify(asked("Hi"), TABLE)
    body = fake.requests[0].json
    assert body["structured_outputs"] == {"choice": [f'{{"route": "{name}"}}' for name in NAMES]}
    assert body["logprobs"] is True
    assert "response_format" not in body


async def test_a_table_without_other_still_offers_it():
    with FakeBackend(FakeReply('{"route": "other"}')) as fake:
        async with arch_at(fake) as arch:
            verdict = await arch.classify(asked("Hi"), RouteTable((Route("chit_chat", "Small talk."),)))
    assert verdict.route == OTHER
    assert set(verdict.probabilities) == {"chit_chat", OTHER}


@pytest.mark.parametrize("status", [400, 422])
@pytest.mark.parametrize(
    ("refused", "used"),
    [
        (["structured_outputs"], {"response_format", "logprobs", "top_logprobs"}),
        (["structured_outputs", "response_format"], {"logprobs", "top_logprobs"}),
        (["structured_outputs", "response_format", "logprobs"], set()),
    ],
)
async def test_a_server_that_refuses_a_constraint_is_asked_with_the_next_and_that_is_remembered(refused, used, status):
    with FakeBackend(refusing(*refused, status=status)) as fake:
        async with arch_at(fake) as arch:
            first = await arch.classify(asked("Hi"), TABLE)
            tries = len(fake.requests)
            second = await arch.classify(asked("Hello"), TABLE)
    assert first.route == second.route == "chit_chat"
    assert tries == len(refused) + 1
    assert len(fake.requests) == tries + 1
    assert fake.requests[-1].json.keys() & CONSTRAINED == used
    assert fake.requests[-1].json["temperature"] == 0


@pytest.mark.parametrize(
    ("said", "tries"),
    [("I would say it rains.", 2), ('{"route": "weather"}', 2), ('Sure!\n{"route": "chit_chat"}', 1)],
    ids=["nothing", "no route of these", "a route in its own words"],
)
async def test_a_server_that_passes_over_the_choice_is_asked_for_the_schema_and_that_is_remembered(said, tries):
    with FakeBackend(lambda request: ANSWER if "response_format" in request.json else FakeReply(said)) as fake:
        async with arch_at(fake) as arch:
            first = await arch.classify(asked("Hi"), TABLE)
            assert len(fake.requests) == tries
            second = await arch.classify(asked("Hello"), TABLE)
    assert first.route == second.route == "chit_chat"
    assert len(fake.requests) == tries + 1
    assert fake.requests[-1].json.keys() & CONSTRAINED == {"response_format", "logprobs", "top_logprobs"}


@pytest.mark.parametrize("said", ['{"route": "chit_chat"}', '{"route": "chit_c'], ids=["whole", "cut off"])
async def test_a_server_that_keeps_to_the_choice_is_asked_for_it_again(said):
    with FakeBackend(FakeReply(said)) as fake:
        async with arch_at(fake) as arch:
            for _ in range(2):
                with contextlib.suppress(ClassifierError):
                    await arch.classify(asked("Hi"), TABLE)
    assert ["structured_outputs" in request.json for request in fake.requests] == [True, True]


async def test_the_response_format_is_a_strict_schema_of_the_routes():
    with FakeBackend(refusing("structured_outputs")) as fake:
        async with arch_at(fake) as arch:
            await arch.classify(asked("Hi"), TABLE)
    wanted = fake.requests[1].json["response_format"]
    assert wanted["type"] == "json_schema"
    assert wanted["json_schema"]["strict"] is True
    assert wanted["json_schema"]["schema"]["properties"]["route"]["enum"] == NAMES


async def test_questions_asked_at_the_same_time_find_the_constraint_that_works():
    with FakeBackend(refusing("structured_outputs")) as fake:
        async with arch_at(fake) as arch:
            verdicts = await asyncio.gather(*(arch.classify(asked(f"Hi {n}"), TABLE) for n in range(8)))
            await arch.classify(asked("Hi"), TABLE)
    assert {verdict.route for verdict in verdicts} == {"chit_chat"}
    assert "response_format" in fake.requests[-1].json


async def test_a_refusal_that_no_constraint_explains_is_an_error_and_not_remembered():
    with FakeBackend(ANSWER) as fake:
        fake.script(*[FakeReply("too long", 400)] * 4)
        async with arch_at(fake) as arch:
            with pytest.raises(ClassifierError, match="arch answered 400"):
                await arch.classify(asked("Hi"), TABLE)
            await arch.classify(asked("Hi"), TABLE)
    assert len(fake.requests) == 5
    assert "structured_outputs" in fake.requests[-1].json


@pytest.mark.parametrize("status", [301, 401, 404, 429, 500, 503])
async def test_any_other_status_is_an_error_at_once(status):
    with FakeBackend(FakeReply("no", status)) as fake:
        async with arch_at(fake) as arch:
            with pytest.raises(ClassifierError, match=f"arch answered {status}"):
                await arch.classify(asked("Hi"), TABLE)
    assert len(fake.requests) == 1


def raw(body: bytes, length: int | None = None) -> FakeReply:
    head = f"HTTP/1.1 200 OK\r\ncontent-length: {len(body) if length is None else length}\r\nconnection: close\r\n\r\n"
    return FakeReply(raw=head.encode() + body)


BROKEN = [
    (raw(b""), "did not answer with JSON"),
    (raw(b"<html>"), "did not answer with JSON"),
    (raw(b"[]"), "did not answer with JSON"),
    (raw(b'"chit_chat"'), "did not answer with JSON"),
    (raw(b'{"choices": "\xff"}'), "did not answer with JSON"),
    (raw(b'{"choices": ' + b"[" * 100_000), "did not answer with JSON"),
    (raw(b'{"x": "' + b"a" * MAX_REPLY_BYTES + b'"}'), "did not answer with JSON"),
    (raw(b'{"choices": [', 5000), "the connection broke"),
    (FakeReply(raw=b"nonsense\r\n\r\n"), "arch: "),
    (FakeReply(raw=b""), "the connection broke"),
    (FakeReply("weather"), "without naming a route"),
    (FakeReply("hard_question or chit_chat"), "without naming a route"),
    (FakeReply(""), "without naming a route"),
    (FakeReply(tool_call=("route", {"route": "chit_chat"})), "without naming a route"),
    (FakeReply(completion={}), "without naming a route"),
    (FakeReply(completion={"choices": []}), "without naming a route"),
]


@pytest.mark.parametrize(("reply", "why"), BROKEN, ids=lambda value: str(value)[-60:])
async def test_a_broken_answer_is_an_error(reply, why):
    with FakeBackend(reply) as fake:
        async with arch_at(fake) as arch:
            with pytest.raises(ClassifierError, match=why):
                await arch.classify(asked("Hi"), TABLE)


async def test_a_server_that_is_not_there_is_an_error():
    with FakeBackend() as fake:
        pass
    async with arch_at(fake) as arch:
        with pytest.raises(ClassifierError, match="arch: cannot connect"):
            await arch.classify(asked("Hi"), TABLE)


async def test_confidence_comes_from_the_logprobs():
    def token(text, **others):
        top = [{"token": other, "logprob": math.log(p)} for other, p in others.items()]
        return {"token": text, "logprob": math.log(others.get(text, 1.0)), "top_logprobs": top}

    content = [token('{"route": "'), token("chit", chit=0.6, hard=0.3, other=0.1), token('_chat"}')]
    choice = {"message": {"content": '{"route": "chit_chat"}'}, "logprobs": {"content": content}}
    with FakeBackend(FakeReply(completion={"choices": [choice]})) as fake:
        async with arch_at(fake) as arch:
            verdict = await arch.classify(asked("Hi"), TABLE)
    assert verdict.probabilities == pytest.approx({"chit_chat": 0.6, "hard_question": 0.3, "other": 0.1})


@pytest.mark.parametrize(("texts", "note"), [(["Hi"], ""), (["x" * 9000], CUT_NOTE), (["x" * 900, "Hi"], DROPPED_NOTE)])
async def test_the_verdict_says_what_had_to_be_left_out(texts, note):
    with FakeBackend(ANSWER) as fake:
        async with arch_at(fake, budget=100) as arch:
            verdict = await arch.classify(asked(*texts), TABLE)
            decision = await Router(TABLE, arch).decide([{"role": "user", "content": text} for text in texts])
    assert verdict.note == note
    assert note in decision.reason
    assert len(fake.requests[0].json["messages"][0]["content"]) < 2500


async def test_unusual_names_and_texts_reach_the_server():
    table = RouteTable((Route('say "hi"', "a\x00{}"), Route("größe", "}{")))
    with FakeBackend(FakeReply('{"route": "say \\"hi\\""}')) as fake:
        async with arch_at(fake) as arch:
            verdict = await arch.classify(asked("b\x00\u2028"), table)
    assert verdict.route == 'say "hi"'
    choices = fake.requests[0].json["structured_outputs"]["choice"]
    assert [json.loads(choice)["route"] for choice in choices] == ['say "hi"', "größe", OTHER]


async def test_the_time_it_took_comes_from_the_clock():
    with FakeBackend(ANSWER) as fake:
        async with arch_at(fake, clock=count().__next__) as arch:
            verdict = await arch.classify(asked("Hi"), TABLE)
    assert verdict.elapsed == 1


async def test_a_late_answer_is_not_waited_for_and_its_call_is_cut():
    with FakeBackend(FakeReply(hang=True)) as fake:
        async with arch_at(fake, deadline=0.1) as arch:
            decision = await Router(TABLE, arch).decide("Hi")
            async with asyncio.timeout(5):
                while not fake.abandoned:  # noqa: ASYNC110  (the fake lives in another thread)
                    await asyncio.sleep(0.01)
    assert decision.route == OTHER
    assert "arch gave no verdict within 0.1 s" in decision.reason


async def test_a_slow_answer_does_not_hold_up_others():
    with FakeBackend(lambda request: FakeReply(ANSWER.text, delay=0.2)) as fake:
        async with arch_at(fake, deadline=None) as arch, asyncio.timeout(1.5):
            await asyncio.gather(*(arch.classify(asked(f"Hi {n}"), TABLE) for n in range(10)))
    assert len(fake.requests) == 10


def test_the_deadline_is_a_quarter_of_a_second_unless_said_otherwise():
    backend = Backend("arch", MODEL, "http://localhost:1/v1")
    assert Arch(backend, Http1Upstream(backend)).deadline == 0.25


@pytest.mark.parametrize("name", ["chit_chat", "größe", 'a": b', "a\\b", "🙂", "路"])
def test_the_answer_for_a_name_is_the_json_that_the_model_was_trained_to_give(name):
    assert answer_for(name) == json.dumps({"route": name}, ensure_ascii=False)
