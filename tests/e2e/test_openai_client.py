"""The official OpenAI client against a real server with a real backend behind it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import openai
import pytest
from pydantic import BaseModel

from fingerpost.testing import FakeBackend, FakeReply

HI: Any = [{"role": "user", "content": "Hi, 你好 😀"}]
PIXEL = "data:image/png;base64,iVBORw0KGgo="
LOOK: Any = [
    {"role": "user", "content": [{"type": "text", "text": "What is it?"}, {"type": "image_url", "image_url": {"url": PIXEL}}]}
]
WEATHER: Any = {
    "type": "function",
    "function": {"name": "weather", "parameters": {"type": "object", "properties": {"city": {"type": "string"}}}},
}


def client_of(door: Any) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{door.url}/v1", api_key="sk-client-canary", max_retries=0, timeout=30)


@pytest.fixture
def client(door: Any) -> Iterator[openai.OpenAI]:
    with client_of(door) as client:
        yield client


@pytest.fixture
async def async_client(door: Any) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(base_url=f"{door.url}/v1", api_key="sk-client", max_retries=0, timeout=30) as client:
        yield client


def test_a_chat(door: Any, client: openai.OpenAI) -> None:
    answer = client.chat.completions.with_raw_response.create(model="auto", messages=HI, temperature=0.5)
    completion = answer.parse()
    assert completion.choices[0].message.content == "Hello from the backend."
    assert completion.usage is not None
    assert completion.usage.total_tokens == 12
    assert answer.headers["x-fingerpost-route"] == "chat"
    assert door.fake.requests[0].json == {"messages": HI, "model": "model-0", "temperature": 0.5}
    assert "canary" not in str(door.fake.requests[0].headers)


async def test_a_chat_async(door: Any, async_client: openai.AsyncOpenAI) -> None:
    completion = await async_client.chat.completions.create(model="chat", messages=HI)
    assert completion.choices[0].message.content == "Hello from the backend."
    assert completion.model == "model-0"


def test_a_stream_with_usage(door: Any, client: openai.OpenAI) -> None:
    stream = client.chat.completions.create(model="auto", messages=HI, stream=True, stream_options={"include_usage": True})
    *chunks, last = list(stream)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == "Hello from the backend."
    assert last.usage is not None
    assert (last.usage.prompt_tokens, last.usage.completion_tokens) == (7, 5)
    assert door.told()[0].usage is not None


async def test_a_stream_async(async_client: openai.AsyncOpenAI) -> None:
    stream = await async_client.chat.completions.create(model="auto", messages=HI, stream=True)
    words = [chunk.choices[0].delta.content or "" async for chunk in stream]
    assert "".join(words) == "Hello from the backend."


def test_tools_and_their_results(door: Any, client: openai.OpenAI) -> None:
    door.fake.script(FakeReply(tool_call=("weather", {"city": "Köln"})), FakeReply("Rain."))
    asked = client.chat.completions.create(model="auto", messages=HI, tools=[WEATHER])
    message = asked.choices[0].message
    assert message.tool_calls is not None
    assert message.tool_calls[0].function.arguments == '{"city": "K\\u00f6ln"}'
    result = {"role": "tool", "tool_call_id": message.tool_calls[0].id, "content": "rain"}
    answered = client.chat.completions.create(model="auto", messages=[*HI, message, result], tools=[WEATHER])
    assert answered.choices[0].message.content == "Rain."
    sent = door.fake.requests[1].json["messages"]
    assert [turn["role"] for turn in sent] == ["user", "assistant", "tool"]
    assert sent[1]["tool_calls"][0]["function"]["name"] == "weather"


def test_tools_in_a_stream(door: Any, client: openai.OpenAI) -> None:
    door.fake.script(FakeReply(tool_call=("weather", {"city": "Köln"})))
    with client.chat.completions.stream(model="auto", messages=HI, tools=[WEATHER]) as stream:
        message = stream.get_final_completion().choices[0].message
    assert message.tool_calls is not None
    assert message.tool_calls[0].function.name == "weather"


def test_an_image_goes_to_a_backend_that_sees(serving: Callable[..., Any], fake: FakeBackend) -> None:
    door = serving(backend={"accepts": ["text", "image"]})
    with client_of(door) as client:
        completion = client.chat.completions.create(model="auto", messages=LOOK)
    assert completion.choices[0].finish_reason == "stop"
    assert fake.requests[0].json["messages"] == LOOK


def test_an_image_alone_never_goes_to_a_backend_without_eyes(serving: Callable[..., Any], fake: FakeBackend) -> None:
    with FakeBackend(FakeReply("I see.")) as eyes:
        backends = [
            {"name": "blind", "model": "m", "url": fake.url},
            {"name": "eyes", "model": "m", "url": eyes.url, "accepts": ["text", "image"]},
        ]
        routes = [{"name": "chat", "backends": ["blind"]}, {"name": "other", "backends": ["blind", "eyes"]}]
        alone = [{"role": "user", "content": [part for part in LOOK[0]["content"] if part["type"] == "image_url"]}]
        with client_of(serving(backends=backends, routes=routes)) as client:
            completion = client.chat.completions.create(model="auto", messages=alone)
    assert completion.choices[0].message.content == "I see."
    assert not fake.requests


def test_structured_output_is_parsed(door: Any, client: openai.OpenAI) -> None:
    class Weather(BaseModel):
        city: str
        degrees: int

    door.fake.script(FakeReply('{"city": "Köln", "degrees": 12}'))
    parsed = client.chat.completions.parse(model="auto", messages=HI, response_format=Weather)
    assert parsed.choices[0].message.parsed == Weather(city="Köln", degrees=12)
    assert door.fake.requests[0].json["response_format"]["json_schema"]["name"] == "Weather"


def test_the_models(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["auto", "chat", "other", "b0"]


@pytest.mark.parametrize(
    ("wrong", "kind", "param"),
    [
        ({"messages": [{"role": "wizard", "content": "x"}]}, openai.BadRequestError, "messages[0].role"),
        ({"messages": []}, openai.BadRequestError, "messages"),
        ({"model": "gpt-9"}, openai.NotFoundError, "model"),
        ({"messages": LOOK}, openai.UnprocessableEntityError, "messages"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_wrong_requests_raise_the_clients_own_errors(
    client: openai.OpenAI, wrong: Any, kind: type[openai.APIStatusError], param: str, stream: bool
) -> None:
    with pytest.raises(kind) as caught:
        client.chat.completions.create(**{"model": "auto", "messages": HI, "stream": stream, **wrong})
    assert caught.value.param == param
    assert caught.value.type == "invalid_request_error"


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (429, openai.RateLimitError),
        (503, openai.InternalServerError),
        (401, openai.InternalServerError),
        (400, openai.BadRequestError),
        (409, openai.ConflictError),
    ],
)
async def test_failing_backends_raise_the_clients_own_errors(
    serving: Callable[..., Any], fake: FakeBackend, status: int, kind: type[openai.APIStatusError]
) -> None:
    fake.default = FakeReply("no", status=status)
    door = serving(server={"retries": 0})
    async with openai.AsyncOpenAI(base_url=f"{door.url}/v1", api_key="k", max_retries=0) as client:
        with pytest.raises(kind) as caught:
            await client.chat.completions.create(model="auto", messages=HI)
    if status not in (400, 409):
        assert f"b0: answered {status}" in caught.value.message


@pytest.mark.parametrize("cut_after", [2, 3])
def test_a_stream_that_breaks_raises_an_error_that_says_so(door: Any, client: openai.OpenAI, cut_after: int) -> None:
    door.fake.script(FakeReply("one two three", cut_after=cut_after))
    words = []
    with pytest.raises(openai.APIError, match="b0: the connection broke"):  # noqa: PT012
        for chunk in client.chat.completions.create(model="auto", messages=HI, stream=True):
            words.append(chunk.choices[0].delta.content)
    assert words == ["", "one", " two"][:cut_after]


def test_a_reply_that_breaks_raises_a_connection_error(door: Any, client: openai.OpenAI) -> None:
    door.fake.script(FakeReply(raw=b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 99\r\n\r\n{"))
    with pytest.raises(openai.APIConnectionError):
        client.chat.completions.create(model="auto", messages=HI)


def test_a_stream_closed_by_the_client_cancels_the_backend(
    door: Any, client: openai.OpenAI, eventually: Callable[..., None]
) -> None:
    door.fake.script(FakeReply("word " * 100, pause=0.05))
    with client.chat.completions.create(model="auto", messages=HI, stream=True) as stream:
        next(iter(stream))
    eventually(lambda: door.fake.abandoned == 1)
    assert [told.outcome for told in door.told()] == ["client_gone"]


async def test_a_cancelled_call_cancels_the_backend(
    door: Any, async_client: openai.AsyncOpenAI, eventually: Callable[..., None]
) -> None:
    door.fake.script(FakeReply(hang=True))
    calling = asyncio.ensure_future(async_client.chat.completions.create(model="auto", messages=HI))
    await asyncio.to_thread(eventually, lambda: door.fake.requests)
    calling.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await calling
    await asyncio.to_thread(eventually, lambda: door.fake.abandoned == 1)


def test_routes_can_come_with_the_request(door: Any, client: openai.OpenAI) -> None:
    routes = [{"name": "chat", "description": "Small talk."}, {"name": "parcel", "description": "Where is my parcel?"}]
    answer = client.chat.completions.with_raw_response.create(
        model="parcel", messages=HI, extra_body={"fingerpost": {"routes": routes}}
    )
    assert answer.headers["x-fingerpost-route"] == "parcel"
    assert "fingerpost" not in door.fake.requests[0].json


def test_the_references_clients_move_over_unchanged(door: Any) -> None:
    with openai.OpenAI(base_url=f"{door.url}/sfc_router", api_key="k", max_retries=0) as client:
        whole = client.chat.completions.create(model="any", messages=HI)
        stream = list(client.chat.completions.create(model="any", messages=HI, stream=True))
    assert whole.choices[0].message.content == "model-0"
    assert "".join(chunk.choices[0].delta.content or "" for chunk in stream) == "model-0"
    assert stream[-1].choices[0].finish_reason == "stop"
    assert not door.fake.requests


@pytest.mark.parametrize("stream", [False, True])
def test_a_gateway_can_stand_in_front_of_a_gateway(serving: Callable[..., Any], fake: FakeBackend, stream: bool) -> None:
    inner = serving()
    backend = {"name": "inner", "model": "auto", "url": f"{inner.url}/v1"}
    outer = serving(backends=[backend], routes=[{"name": "chat", "description": "x", "backends": ["inner"]},
                                                {"name": "other", "backends": ["inner"]}])  # fmt: skip
    with client_of(outer) as client:
        answer = client.chat.completions.with_raw_response.create(model="auto", messages=HI, stream=stream)
        parsed: Any = answer.parse()
        text = "".join(c.choices[0].delta.content or "" for c in parsed) if stream else parsed.choices[0].message.content
    assert text == "Hello from the backend."
    assert answer.headers.get_list("x-fingerpost-backend") == ["inner"]
    assert fake.requests[0].json["messages"] == HI
    assert [len(door.told()) for door in (inner, outer)] == [1, 1]


def test_an_error_passes_through_two_gateways_with_both_reasons(serving: Callable[..., Any], fake: FakeBackend) -> None:
    fake.default = FakeReply(status=429)
    inner = serving(server={"retries": 0})
    backend = {"name": "inner", "model": "auto", "url": f"{inner.url}/v1"}
    outer = serving(backends=[backend], routes=[{"name": "other", "backends": ["inner"]}], server={"retries": 0},
                    classifier={"use": "fixed", "route": "other"})  # fmt: skip
    with client_of(outer) as client, pytest.raises(openai.RateLimitError, match="inner: answered 429"):
        client.chat.completions.create(model="auto", messages=HI)
