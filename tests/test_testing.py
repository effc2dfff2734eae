"""The public doubles behave like what they stand for."""

from __future__ import annotations

import asyncio
import http.client
import json
import socket
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any

import pytest

from fingerpost.chat import ChatRequest
from fingerpost.errors import ClassifierError
from fingerpost.records import Verdict
from fingerpost.router import Router
from fingerpost.routes import Route, RouteTable
from fingerpost.testing import FakeBackend, FakeReply, Received, ScriptedClassifier

HI = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}
STREAM = {**HI, "stream": True}


@pytest.fixture
def client(fake: FakeBackend) -> Iterator[http.client.HTTPConnection]:
    with closing(http.client.HTTPConnection("127.0.0.1", fake.port, timeout=30)) as connection:
        yield connection


def ask(client: http.client.HTTPConnection, body: Any = None, path: str = "/v1/chat/completions") -> tuple[int, bytes]:
    client.request("POST" if body else "GET", path, json.dumps(body) if body else None, {"X-Test": " a b "})
    with client.getresponse() as response:
        return response.status, response.read()


def events_of(content: bytes) -> list[Any]:
    *events, done, rest = content.decode().split("\n\n")
    assert (done, rest) == ("data: [DONE]", "")
    return [json.loads(event.removeprefix("data: ")) for event in events]


def test_it_answers_a_chat_with_a_completion_and_remembers_the_request(
    fake: FakeBackend, client: http.client.HTTPConnection
) -> None:
    status, content = ask(client, HI)
    completion = json.loads(content)
    assert (status, completion["object"], completion["model"]) == (200, "chat.completion", "m")
    assert completion["choices"][0]["message"] == {"role": "assistant", "content": "Hello from the backend."}
    assert completion["usage"] == {"prompt_tokens": 7, "completion_tokens": 5, "total_tokens": 12}
    received = fake.requests[0]
    assert (received.method, received.target, received.json) == ("POST", "/v1/chat/completions", HI)
    assert received.headers["x-test"] == "a b"
    assert fake.url == f"http://127.0.0.1:{client.port}/v1"


def test_it_answers_a_request_without_a_body(client: http.client.HTTPConnection) -> None:
    assert ask(client, path="/v1/models")[0] == 200


def test_it_streams_word_by_word(fake: FakeBackend, client: http.client.HTTPConnection) -> None:
    fake.script(FakeReply("one two  three"))
    events = events_of(ask(client, STREAM)[1])
    deltas = [event["choices"][0]["delta"].get("content") for event in events]
    assert deltas == ["", "one", " two", " ", " three", None]
    assert events[-1]["choices"][0]["finish_reason"] == "stop"
    assert all("usage" not in event for event in events)


def test_it_reports_usage_in_a_stream_that_asks_for_it(fake: FakeBackend, client: http.client.HTTPConnection) -> None:
    fake.script(FakeReply(usage=(1, 2)))
    events = events_of(ask(client, {**STREAM, "stream_options": {"include_usage": True}})[1])
    assert events[-1]["choices"] == []
    assert events[-1]["usage"]["total_tokens"] == 3


@pytest.mark.parametrize("body", [HI, STREAM])
def test_it_calls_a_tool(fake: FakeBackend, client: http.client.HTTPConnection, body: Any) -> None:
    fake.script(FakeReply(tool_call=("weather", {"city": "Köln"})))
    content = ask(client, body)[1]
    choices = [event["choices"][0] for event in (events_of(content) if body is STREAM else [json.loads(content)])]
    messages = [choice.get("message") or choice["delta"] for choice in choices]
    call = next(message["tool_calls"][0] for message in messages if "tool_calls" in message)
    assert call["function"]["name"] == "weather"
    assert json.loads(call["function"]["arguments"]) == {"city": "Köln"}
    assert choices[-1]["finish_reason"] == "tool_calls"


def test_it_fails_as_it_is_told_whether_streamed_or_not(fake: FakeBackend, client: http.client.HTTPConnection) -> None:
    fake.script(FakeReply("too busy", status=503, headers={"retry-after": "1"}), FakeReply("too busy", status=503))
    for body in (HI, STREAM):
        status, content = ask(client, body)
        assert (status, json.loads(content)["error"]["message"]) == (503, "too busy")


def test_it_answers_with_any_completion(fake: FakeBackend, client: http.client.HTTPConnection) -> None:
    fake.script(FakeReply(completion={"choices": []}))
    assert json.loads(ask(client, HI)[1]) == {"choices": []}


def test_it_follows_its_script_and_then_its_default(fake: FakeBackend, client: http.client.HTTPConnection) -> None:
    def default(request: Received) -> FakeReply:
        return FakeReply(f"asked for {request.json['model']}")

    fake.default = default
    fake.script(FakeReply("first"), FakeReply("second"))
    assert [json.loads(ask(client, HI)[1])["choices"][0]["message"]["content"] for _ in range(4)] == [
        "first", "second", "asked for m", "asked for m"
    ]  # fmt: skip


def test_it_serves_pipelined_requests(fake: FakeBackend) -> None:
    body = json.dumps(HI).encode()
    request = b"POST /v1/chat/completions HTTP/1.1\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body)
    fake.script(FakeReply("one", delay=0.05), FakeReply("two"), FakeReply("three"))
    received = b""
    with closing(socket.create_connection(("127.0.0.1", fake.port), timeout=30)) as client:
        client.sendall(request * 3)
        while received.count(b"total_tokens") < 3:
            received += client.recv(65536)
    assert received.index(b'"one"') < received.index(b'"two"') < received.index(b'"three"')
    assert [request.body for request in fake.requests] == [body] * 3


@pytest.mark.parametrize(
    ("reply", "body"),
    [
        (FakeReply(cut_after=0), HI),
        (FakeReply(cut_after=0), STREAM),
        (FakeReply(cut_after=2), STREAM),
        (FakeReply(raw=b""), HI),
        (FakeReply(raw=b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nhalf"), HI),
    ],
)
def test_it_cuts_its_answer_where_it_is_told_to(
    fake: FakeBackend, client: http.client.HTTPConnection, reply: FakeReply, body: Any
) -> None:
    fake.script(reply)
    with pytest.raises((http.client.HTTPException, ConnectionError)):
        ask(client, body)
    assert fake.abandoned == 0


@pytest.mark.parametrize("reply", [FakeReply(hang=True), FakeReply(delay=9), FakeReply("one two", pause=9)])
def test_it_counts_clients_that_leave_before_the_answer_is_over(
    fake: FakeBackend, client: http.client.HTTPConnection, reply: FakeReply, eventually: Callable[..., None]
) -> None:
    fake.script(reply)
    client.request("POST", "/v1/chat/completions", json.dumps(STREAM))
    eventually(lambda: fake.requests)
    client.close()
    eventually(lambda: fake.abandoned == 1)


@pytest.mark.parametrize("early", [b"", b"GE", b"GET / HTTP/1.1\r\n\r\n"])
def test_it_counts_clients_that_tear_the_connection_down(
    fake: FakeBackend, early: bytes, eventually: Callable[..., None]
) -> None:
    fake.script(FakeReply("x" * 10_000_000))
    with closing(socket.create_connection(("127.0.0.1", fake.port), timeout=30)) as client:
        client.sendall(b"GET / HTTP/1.1\r\n\r\n" + early)
        client.recv(100)
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
    eventually(lambda: fake.abandoned == 1)


def test_it_does_not_count_clients_that_leave_between_requests(
    fake: FakeBackend, client: http.client.HTTPConnection, eventually: Callable[..., None]
) -> None:
    ask(client, HI)
    client.close()
    eventually(lambda: not fake._open)
    assert fake.abandoned == 0


def test_it_survives_what_is_no_request(fake: FakeBackend, client: http.client.HTTPConnection) -> None:
    with closing(socket.create_connection(("127.0.0.1", fake.port))) as stranger:
        stranger.sendall(b"half a req")
    assert ask(client, HI)[0] == 200


def test_its_port_is_the_callers_choice_and_a_taken_one_the_callers_error(fake: FakeBackend, unused_tcp_port: int) -> None:
    with FakeBackend(port=unused_tcp_port) as chosen:
        assert chosen.port == unused_tcp_port
    with pytest.raises(OSError, match="in use"):
        FakeBackend(port=fake.port).__enter__()


def test_it_can_be_stopped_twice_and_started_again_on_its_port(fake: FakeBackend) -> None:
    port = fake.port
    fake.script(FakeReply(hang=True))
    with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=30)) as client:
        client.request("POST", "/", json.dumps(HI))
        fake.stop()
        with pytest.raises((http.client.HTTPException, ConnectionError)):
            client.getresponse()
    fake.stop()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port))
    with fake, closing(http.client.HTTPConnection("127.0.0.1", port, timeout=30)) as client:
        assert ask(client, HI)[0] == 200


def test_one_that_never_starts_holds_nothing() -> None:
    FakeBackend().stop()


TABLE = RouteTable((Route("chat", "Small talk."), Route("other")))
CONVERSATION = ChatRequest.from_messages("hi").conversation


async def test_a_scripted_classifier_believes_its_script_and_then_the_last_entry_for_ever() -> None:
    one, two = Verdict({"chat": 1.0}, "scripted"), Verdict({"other": 1.0}, "scripted")
    classifier = ScriptedClassifier(one, None, two)
    assert [await classifier.classify(CONVERSATION, TABLE) for _ in range(4)] == [one, None, two, two]
    assert classifier.seen == [CONVERSATION] * 4


async def test_a_scripted_classifier_raises_what_is_an_exception() -> None:
    classifier = ScriptedClassifier(ClassifierError("no"), Verdict({"chat": 1.0}, "scripted"))
    with pytest.raises(ClassifierError, match="no"):
        await classifier.classify(CONVERSATION, TABLE)
    verdict = await classifier.classify(CONVERSATION, TABLE)
    assert verdict is not None
    assert verdict.route == "chat"


async def test_a_scripted_classifier_without_a_script_has_no_opinion() -> None:
    assert await ScriptedClassifier().classify(CONVERSATION, TABLE) is None


async def test_a_router_prepares_times_and_closes_a_scripted_classifier() -> None:
    classifier = ScriptedClassifier(Verdict({"chat": 1.0}, "slow"), delay=5, deadline=0.02, name="slow")
    router = Router(TABLE, classifier)
    await router.prepare()
    async with asyncio.timeout(2):
        decision = await router.decide("hi")
    await router.aclose()
    assert decision.route == "other"
    assert decision.reason.startswith("slow gave no verdict within")
    assert (classifier.prepared, classifier.closed) == ([TABLE], 1)
