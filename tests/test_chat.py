from __future__ import annotations

import copy
import enum
import json
import tracemalloc
from collections.abc import Iterable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from openai.types.chat import ChatCompletion, ChatCompletionMessage, ChatCompletionUserMessageParam
from pydantic import BaseModel

from fingerpost.chat import (
    IMAGE_TOKENS,
    MAX_MESSAGES,
    MAX_METADATA,
    ChatRequest,
    Conversation,
    Message,
    Needs,
    RequestedRoute,
    estimate_tokens,
)
from fingerpost.errors import InvalidRequest

ROLES = ["system", "developer", "user", "assistant", "tool", "function"]
MEDIA_TYPES = {"image_url": "image", "input_audio": "audio", "file": "file", "video_url": "video"}
KNOWN_FIELDS = {"messages", "model", "stream", "tools", "functions", "response_format", "max_tokens", "max_completion_tokens",
                "metadata", "fingerpost"}  # fmt: skip

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
extras = st.dictionaries(st.text().filter(lambda key: key not in KNOWN_FIELDS), json_values, max_size=3)


def part(kind, **payload):
    return st.fixed_dictionaries({"type": st.just(kind), **payload}, optional={"cache_control": json_values})


parts = st.one_of(
    part("text", text=st.text()),
    part(
        "image_url", image_url=st.fixed_dictionaries({"url": st.sampled_from(["data:image/png;base64,iVBO", "http://a/b.png"])})
    ),
    part("input_audio", input_audio=st.fixed_dictionaries({"data": st.text(), "format": st.just("wav")})),
    part("file", file=st.fixed_dictionaries({"file_id": st.text()})),
    part("video_url", video_url=st.fixed_dictionaries({"url": st.just("http://a/b.mp4")})),
    part("refusal", refusal=st.text()),
    st.builds(
        lambda kind, rest: {**rest, "type": f"x-{kind}"}, st.text(), st.dictionaries(st.sampled_from(["x", "y"]), json_values)
    ),
)
tool_calls = st.lists(
    st.fixed_dictionaries(
        {
            "id": st.text(),
            "type": st.just("function"),
            "function": st.fixed_dictionaries({"name": st.text(), "arguments": st.text()}),
        }
    ),
    max_size=2,
)
messages = st.fixed_dictionaries(
    {"role": st.sampled_from(ROLES)},
    optional={
        "content": st.none() | st.text() | st.lists(parts, max_size=4),
        "name": st.text(),
        "tool_calls": st.none() | tool_calls,
        "tool_call_id": st.text(),
        "function_call": st.none() | st.fixed_dictionaries({"name": st.text(), "arguments": st.text()}),
        "refusal": st.none() | st.text(),
        "x_vendor": json_values,
    },
)
tools = st.lists(
    st.fixed_dictionaries(
        {
            "type": st.just("function"),
            "function": st.fixed_dictionaries({"name": st.text()}, optional={"parameters": st.just({"type": "object"})}),
        }
    ),
    max_size=2,
)
bodies = st.builds(
    lambda known, more: {**more, **known},
    st.fixed_dictionaries(
        {"messages": st.lists(messages, min_size=1, max_size=5)},
        optional={
            "model": st.text(),
            "stream": st.none() | st.booleans(),
            "tools": st.none() | tools,
            "functions": st.lists(st.fixed_dictionaries({"name": st.text()}), max_size=2),
            "response_format": st.none()
            | st.fixed_dictionaries({"type": st.sampled_from(["text", "json_object", "json_schema"])}),
            "max_tokens": st.none() | st.integers(-5, 2**70),
            "max_completion_tokens": st.none() | st.integers(0, 10),
            "metadata": st.none() | st.dictionaries(st.text(), st.text() | st.booleans() | st.integers(), max_size=2),
            "fingerpost": st.none() | st.just({"routes": [{"name": "a", "description": "A."}]}) | st.just({}),
        },
    ),
    extras,
)


def encoded(value) -> bytes:
    return json.dumps(value, ensure_ascii=False).encode()


def user(content) -> dict:
    return {"messages": [{"role": "user", "content": content}]}


def parse_or_refuse(source) -> ChatRequest | None:
    """The request, carried once too; None when it is refused as it should be. Anything else raises."""
    try:
        request = ChatRequest.parse(source)
        request.body_for("m")
    except InvalidRequest:
        return None
    assert isinstance(request.conversation.digest, bytes)
    assert request.needs.tokens >= 0
    return request


def refusal(source) -> InvalidRequest:
    with pytest.raises(InvalidRequest) as raised:
        ChatRequest.parse(source)
    return raised.value


# What comes in


@given(bodies)
def test_every_message_shape_is_read(body):
    conversation = ChatRequest.parse(body).conversation

    assert [message.role for message in conversation.messages] == [message["role"] for message in body["messages"]]
    for message, given_message in zip(conversation.messages, body["messages"], strict=True):
        content = given_message.get("content")
        if isinstance(content, list):
            said = [item.get("text") or item.get("refusal") for item in content if item["type"] in ("text", "refusal")]
            assert message.texts == tuple(text for text in said if text)
            assert message.media == tuple(MEDIA_TYPES[item["type"]] for item in content if item["type"] in MEDIA_TYPES)
        else:
            text = content or given_message.get("refusal")
            assert message.texts == ((text,) if text else ())
            assert message.media == ()
        assert message.in_parts == isinstance(content, list)
        called = given_message.get("tool_calls") or given_message.get("function_call")
        assert message.calls_tools == bool(called)


@given(bodies)
def test_bytes_and_mappings_are_read_alike(body):
    from_bytes, from_mapping = ChatRequest.parse(encoded(body)), ChatRequest.parse(body)

    assert from_bytes.conversation == from_mapping.conversation
    assert from_bytes.conversation.digest == from_mapping.conversation.digest
    for name in ("model", "stream", "needs", "routes"):
        assert getattr(from_bytes, name) == getattr(from_mapping, name)
    assert json.loads(from_bytes.body_for("m")) == json.loads(from_mapping.body_for("m"))


@given(bodies)
def test_a_mapping_is_not_changed_by_reading_it(body):
    before = copy.deepcopy(body)

    ChatRequest.parse(body).body_for("m")

    assert body == before


@given(st.binary() | st.builds(encoded, json_values))
def test_arbitrary_bytes_are_read_or_refused(source):
    assert parse_or_refuse(source) is None or b"messages" in source


@given(json_values | st.builds(lambda value: {"messages": value}, json_values))
def test_arbitrary_json_is_read_or_refused_alike_in_both_forms(value):
    from_bytes, from_mapping = parse_or_refuse(encoded(value)), parse_or_refuse(value)

    assert (from_bytes is None) == (from_mapping is None)


@given(st.builds(encoded, bodies), st.data())
def test_a_damaged_body_is_read_or_refused(source, data):
    place = data.draw(st.integers(0, len(source)))
    parse_or_refuse(source[:place])
    parse_or_refuse(source[:place] + data.draw(st.binary(max_size=2)) + source[place + 1 :])


def places_in(value, path=()) -> Iterable[tuple]:
    yield path
    if isinstance(value, dict | list):
        for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
            yield from places_in(inner, (*path, key))


@given(bodies, json_values, st.data())
@settings(max_examples=200)
def test_any_value_in_any_place_is_read_or_refused_alike_in_both_forms(body, value, data):
    *way, last = data.draw(st.sampled_from([path for path in places_in(body) if path]))
    body = copy.deepcopy(body)
    owner = body
    for step in way:
        owner = owner[step]
    owner[last] = value

    from_bytes, from_mapping = parse_or_refuse(encoded(body)), parse_or_refuse(body)

    assert (from_bytes is None) == (from_mapping is None)


@pytest.mark.parametrize(
    ("body", "path"),
    [
        ({}, "messages"),
        ({"messages": []}, "messages"),
        ({"messages": None}, "messages"),
        ({"messages": "hi"}, "messages"),
        ({"messages": {"role": "user"}}, "messages"),
        ({"messages": ["hi"]}, "messages[0]"),
        ({"messages": [{"content": "hi"}]}, "messages[0].role"),
        ({"messages": [{"role": "user"}, {"role": None}]}, "messages[1].role"),
        ({"messages": [{"role": "bot", "content": "hi"}]}, "messages[0].role"),
        ({"messages": [{"role": "User", "content": "hi"}]}, "messages[0].role"),
        (user(5), "messages[0].content"),
        (user({"type": "text", "text": "hi"}), "messages[0].content"),
        (user(["hi"]), "messages[0].content[0]"),
        (user([None]), "messages[0].content[0]"),
        (user([{"text": "hi"}]), "messages[0].content[0].type"),
        (user([{"type": "text", "text": "hi"}, {"type": 5}]), "messages[0].content[1].type"),
        (user([{"type": "text", "text": 5}]), "messages[0].content[0].text"),
        (user([{"type": "text"}]), "messages[0].content[0].text"),
        (user([{"type": "text", "text": None}]), "messages[0].content[0].text"),
        (user([{"type": "refusal", "refusal": []}]), "messages[0].content[0].refusal"),
        ({"messages": [{"role": "user", "content": [{"type": "text", "text": ""}]}] * 2 + [
            {"role": "user", "content": [{"type": "text", "text": ""}, {"type": None}]}]}, "messages[2].content[1].type"),
        ({"messages": [{"role": "assistant", "tool_calls": {}}]}, "messages[0].tool_calls"),
        ({**user("hi"), "model": None}, "model"),
        ({**user("hi"), "model": ["auto"]}, "model"),
        ({**user("hi"), "stream": "yes"}, "stream"),
        ({**user("hi"), "max_tokens": "9"}, "max_tokens"),
        ({**user("hi"), "max_tokens": 9.5}, "max_tokens"),
        ({**user("hi"), "max_tokens": True}, "max_tokens"),
        ({**user("hi"), "tools": {}}, "tools"),
        ({**user("hi"), "tools": ["search"]}, "tools[0]"),
        ({**user("hi"), "tools": [{"type": "function", "function": "f"}]}, "tools[0].function"),
        ({**user("hi"), "functions": [{"name": 1}]}, "functions[0].name"),
        ({**user("hi"), "response_format": "json"}, "response_format"),
        ({**user("hi"), "response_format": {"type": 1}}, "response_format.type"),
        ({**user("hi"), "metadata": []}, "metadata"),
        ({**user("hi"), "fingerpost": "x"}, "fingerpost"),
        ({**user("hi"), "fingerpost": {"rotues": []}}, "fingerpost"),
        ({**user("hi"), "fingerpost": {"routes": {"name": "a"}}}, "fingerpost.routes"),
        ({**user("hi"), "fingerpost": {"routes": [{}]}}, "fingerpost.routes[0].name"),
        ({**user("hi"), "fingerpost": {"routes": [{"name": "a", "examples": [1]}]}}, "fingerpost.routes[0].examples[0]"),
        ({**user("hi"), "fingerpost": {"routes": [{"name": "a", "backends": "b"}]}}, "fingerpost.routes[0].backends"),
    ],
)  # fmt: skip
def test_a_wrong_shape_is_refused_with_its_path(body, path):
    for source in (body, encoded(body)):
        error = refusal(source)

        assert (error.status, error.param) == (400, path)
        assert error.message.startswith(f"{path}: ")


@pytest.mark.parametrize(
    "source",
    [b"", b"null", b"[]", b'"hi"', b"5", b"{", b'{"messages": [{"role": "user"}]} x', b"\xef\xbb\xbf{}", [], None, 5, "{}"],
)
def test_what_is_no_json_object_is_refused_without_a_path(source):
    assert refusal(source).param is None


def test_a_metadata_key_that_is_no_text_is_refused_with_the_path_of_its_owner():
    assert refusal({**user("hi"), "metadata": {1: "a"}}).param == "metadata"


@pytest.mark.parametrize("role", ["SECRET - at `$.messages[7]`", "SECRET" * 1000, "SECRET'"])
def test_a_refusal_repeats_no_wrong_role_and_keeps_its_path(role):
    error = refusal({"messages": [{"role": role, "content": "hi"}]})

    assert error.param == "messages[0].role"
    assert "SECRET" not in error.message
    assert "developer" in error.message


@pytest.mark.parametrize("key", ["a - at `$.b", "x" * 10_000, "a\nb", "`"])
def test_a_refusal_of_an_unknown_key_keeps_its_path_and_is_short(key):
    error = refusal({**user("hi"), "fingerpost": {key: 1}})

    assert error.param == "fingerpost"
    assert len(error.message) < 300


@pytest.mark.parametrize(
    "source",
    [
        b'{"a": NaN, "messages": [{"role": "user"}]}',
        b'{"a": Infinity, "messages": [{"role": "user"}]}',
        b'{"messages": [{"role": "user", "content": "\xff"}]}',
        b'{"\xff": 1, "messages": [{"role": "user"}]}',
        b'{"a": "\xff", "messages": [{"role": "user"}]}',
        b'{"a": "\xed\xa0\x80", "messages": [{"role": "user"}]}',
        b'{"a": "\\udc00", "messages": [{"role": "user"}]}',
        b'{"messages": [{"role": "user"}], "a": "' + b"x" * 100_000 + b'\xc3"}',
        b'{"messages": [{"role": "user", "content": "\xed\xa0\x80"}]}',
        b'{"messages": [{"role": "user", "content": "\\ud800"}]}',
        b'{"messages": [{"role": "user", "content": "\\ud800 and more text"}]}',
        b'{"tools": [{"function": {"name": 1e400}}], "messages": [{"role": "user"}]}',
        {"a": float("nan"), **user("hi")},
        {"a": [float("-inf")], **user("hi")},
        user("\ud800"),
        {"tools": [{"function": {"name": "\ud800"}}], **user("hi")},
        {"a\ud800": 1, **user("hi")},
        {"a": {(1, 2): 3}, **user("hi")},
        {"metadata": {"a": 10**5000}, **user("hi")},
        {"tools": [{"function": {"name": "a", "x": object()}}], **user("hi")},
    ],
)
def test_what_json_cannot_say_is_refused(source):
    assert "JSON" in refusal(source).message or refusal(source).param


@pytest.mark.parametrize(
    "source",
    [{"a": object(), **user("hi")}, {"a": BaseModel, **user("hi")}],
)
def test_what_was_not_looked_at_is_refused_at_the_latest_when_it_is_to_be_carried(source):
    request = ChatRequest.parse(source)

    with pytest.raises(InvalidRequest, match="not valid JSON"):
        request.body_for("m")


def nested(depth) -> bytes:
    return b"[" * depth + b"]" * depth


@pytest.mark.parametrize("depth", [*range(100, 1000, 50), *range(970, 1010, 3), 5000, 200_000])
@pytest.mark.parametrize(
    "template",
    [
        b'{"x": %b, "messages": [{"role": "user"}]}',
        b'{"metadata": {"a": %b}, "messages": [{"role": "user"}]}',
        b'{"tools": [{"function": {"name": %b}}], "messages": [{"role": "user"}]}',
        b'{"functions": [{"name": "a", "parameters": %b}], "messages": [{"role": "user"}]}',
        b'{"messages": [{"role": "user", "tool_calls": %b}]}',
        b'{"messages": [{"role": "user", "content": %b}]}',
        b'{"messages": [{"role": "user", "content": [{"type": "x", "x": %b}]}]}',
        b"%b",
    ],
)
def test_deep_nesting_is_read_or_refused(template, depth):
    parse_or_refuse(template % nested(depth))


@pytest.mark.parametrize(("depth", "fine"), [(100, True), (300, True), (100_000, False)])
def test_a_deep_mapping_is_read_or_refused(depth, fine):
    value: list = []
    for _ in range(depth):
        value = [value]

    assert (parse_or_refuse({"x": value, **user("hi")}) is not None) == fine


def test_a_mapping_that_holds_itself_is_refused():
    body = user("hi")
    body["self"] = body

    assert "nested too deeply" in refusal(body).message


def test_a_body_at_the_very_depth_that_can_be_read_may_be_carried_from_deeper_in_the_stack_or_is_refused():
    template = b'{"x": %b, "messages": [{"role": "user"}]}'
    depth = max(d for d in range(800, 1001) if parse_or_refuse(template % nested(d)))
    request = ChatRequest.parse(template % nested(depth))

    def carried(levels):
        if levels:
            return carried(levels - 1)
        try:
            return request.body_for("m")
        except InvalidRequest as error:
            return error.message

    assert carried(200) in (request.body_for("m"), "the body is nested too deeply")


@pytest.mark.parametrize(
    ("source", "key"),
    [
        (b'{"model": "one", "messages": [{"role": "user"}], "model": "two"}', "model"),
        (b'{"model": "one", "messages": [{"role": "user"}], "model": "one"}', "model"),
        (b'{"messages": [], "messages": [{"role": "user"}]}', "messages"),
        (b'{"messages": [{"role": "user"}], "fingerpost": {}, "mod\\u0065l": "a", "model": "b"}', "model"),
        (b'{"x": 1, "x": 12, "messages": [{"role": "user"}]}', "x"),
        (b'{"x": 12, "messages": [{"role": "user"}], "x": 1}', "x"),
    ],
)
def test_a_key_that_is_there_twice_is_refused_since_backends_differ_in_which_they_take(source, key):
    error = refusal(source)

    assert (error.status, error.code, error.param) == (400, "duplicate_key", key)
    assert error.message.startswith(f"{key}: ")


def test_more_messages_than_any_conversation_has_are_refused():
    assert refusal({"messages": [{"role": "user"}] * (MAX_MESSAGES + 1)}).param == "messages"
    assert ChatRequest.parse({"messages": [{"role": "user"}] * MAX_MESSAGES})


def test_more_metadata_than_any_request_has_is_refused():
    fine = {**user("x"), "metadata": {str(number): "" for number in range(MAX_METADATA)}}
    assert len(ChatRequest.parse(encoded(fine)).conversation.metadata) == MAX_METADATA
    assert refusal({**fine, "metadata": {**fine["metadata"], "one more": ""}}).param == "metadata"


def test_a_key_written_with_escapes_is_the_same_key():
    request = ChatRequest.parse(b'{"mod\\u0065l": "chat", "f\\u0069ngerpost": {}, "messages": [{"r\\u006fle": "user"}]}')

    assert request.model == "chat"
    assert json.loads(request.body_for("m")) == {"model": "m", "messages": [{"role": "user"}]}


# What goes out


@given(bodies, st.text())
def test_the_body_for_a_backend_changes_only_the_model(body, model):
    expected = [(key, model if key == "model" else value) for key, value in body.items() if key != "fingerpost"]
    if "model" not in body:
        expected.append(("model", model))

    for source in (encoded(body), body):
        sent = json.loads(ChatRequest.parse(source).body_for(model), object_pairs_hook=list)
        wanted = json.loads(encoded(dict(expected)), object_pairs_hook=list)

        assert sent == wanted


@pytest.mark.parametrize(
    "value",
    [b"1e400", b"1.10", b"-0.0", b"1E+2", b"123456789012345678901234567890", b"0.1000000000000000055511151231257827",
     b'"\\u00e9\\/"', b'"\xc3\xa9\xf0\x9f\x98\x80"', b"[ 1 ,\n\t2 ]", b'{"b": 1, "a": 1, "b": 2}', b"null", b"true"],
)  # fmt: skip
def test_a_value_that_we_do_not_understand_is_passed_on_byte_for_byte(value):
    source = b'{"x": %b, "messages": [{"role": "user", "x": %b, "content": [{"type": "y", "x": %b}]}]}' % (value, value, value)

    sent = ChatRequest.parse(source).body_for("m")

    assert sent == source[:-1] + b',"model":"m"}'


def test_the_model_keeps_its_place_in_the_body():
    assert ChatRequest.parse(b'{"a":1,"model":"auto","messages":[{"role":"user"}]}').body_for("é") == (
        '{"a":1,"model":"é","messages":[{"role":"user"}]}'.encode()
    )


def test_routes_that_a_request_brings_along_never_reach_the_backend():
    body = {"fingerpost": {"routes": [{"name": "a", "description": "A.", "examples": ["x"], "backends": ["b"]}]}, **user("hi")}
    request = ChatRequest.parse(body)

    assert request.routes == (RequestedRoute("a", "A.", ("x",), ("b",)),)
    assert b"fingerpost" not in request.body_for("m")


@pytest.mark.parametrize(("extension", "routes"), [(None, None), ({}, None), ({"routes": None}, None), ({"routes": []}, ())])
def test_no_routes_are_something_else_than_an_empty_list_of_them(extension, routes):
    assert ChatRequest.parse({"fingerpost": extension, **user("hi")}).routes == routes


# Objects


def test_messages_may_be_objects_of_the_openai_client():
    called = {"id": "c1", "type": "function", "function": {"name": "look", "arguments": '{"at": "naïve"}'}}
    said = {"role": "assistant", "content": None, "tool_calls": [called]}
    choice = {"index": 0, "finish_reason": "tool_calls", "message": said}
    completion = ChatCompletion.model_validate(
        {"id": "1", "object": "chat.completion", "created": 1, "model": "m", "choices": [choice]}
    )
    asked: ChatCompletionUserMessageParam = {"role": "user", "content": [
        {"type": "text", "text": "Look!"}, {"type": "image_url", "image_url": {"url": "http://a/b.png"}}]}  # fmt: skip
    answer = completion.choices[0].message

    request = ChatRequest.from_messages([asked, answer, {"role": "tool", "tool_call_id": "c1", "content": "A cat."}])

    assert [message.role for message in request.conversation.messages] == ["user", "assistant", "tool"]
    assert request.conversation.messages[1].calls_tools
    assert request.needs.features == {"text", "image", "tools"}
    sent = json.loads(request.body_for("m"))["messages"]
    assert sent[0] == asked
    assert sent[1]["tool_calls"] == [called]


def test_an_object_is_read_like_the_mapping_that_it_dumps():
    message = ChatCompletionMessage(role="assistant", content="Hi.", refusal=None)

    assert ChatRequest.from_messages([message]) == ChatRequest.from_messages([message.model_dump(exclude_none=True)])


def test_objects_that_dump_iterators_and_objects_within_are_read():
    class Chat(BaseModel):
        role: str
        content: Iterable[dict[str, str]]

    class Body(BaseModel):
        messages: list[Chat]
        model: str = "auto"
        seed: int | None = None

    body = Body(messages=[Chat(role="user", content=iter([{"type": "text", "text": "hi"}]))])

    request = ChatRequest.parse(body)

    assert request.conversation.text == "hi"
    assert json.loads(request.body_for("m")) == {"messages": [{"role": "user", "content": [{"type": "text", "text": "hi"}]}],
                                                 "model": "m"}  # fmt: skip


def test_messages_may_come_from_an_iterator_and_are_still_there_to_be_carried():
    request = ChatRequest.parse({"messages": (message for message in [{"role": "user", "content": "hi"}])})

    assert json.loads(request.body_for("m"))["messages"] == [{"role": "user", "content": "hi"}]


def test_kinds_of_strings_are_read_as_the_strings_that_they_are():
    class Name(str):
        __slots__ = ()

        def __str__(self) -> str:
            return "something else"

    class Role(enum.StrEnum):
        USER = "user"

    request = ChatRequest.from_messages([{"role": Role.USER, "content": Name("hi")}])

    assert json.loads(request.body_for("m"))["messages"] == [{"role": "user", "content": "hi"}]


def test_a_text_alone_is_one_message_of_the_user():
    request = ChatRequest.from_messages("Grüße 😀", model="chat", stream=True)

    assert request.conversation.messages == (Message("user", ("Grüße 😀",)),)
    assert (request.model, request.stream) == ("chat", True)


def test_without_a_model_the_request_asks_for_a_decision():
    assert ChatRequest.parse(user("hi")).model == "auto"
    assert not ChatRequest.parse({**user("hi"), "stream": None}).stream


# What is needed


@pytest.mark.parametrize(
    ("body", "features"),
    [
        (user("hi"), {"text"}),
        (user([{"type": "image_url", "image_url": {"url": "x"}}]), {"text", "image"}),
        (user([{"type": "input_image"}, {"type": "image"}]), {"text", "image"}),
        (user([{"type": "input_audio"}, {"type": "video_url"}, {"type": "file"}]), {"text", "audio", "video", "file"}),
        (user([{"type": "input_video"}, {"type": "input_file"}]), {"text", "video", "file"}),
        (user([{"type": "hologram"}, {"type": "IMAGE_URL"}]), {"text"}),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}, {"role": "assistant", "content": "A cat."},
                       {"role": "user", "content": "Thanks!"}]}, {"text", "image"}),
        ({"messages": [{"role": "tool", "content": [{"type": "image_url"}]}]}, {"text", "image", "tools"}),
        ({"messages": [{"role": "function", "name": "f", "content": "1"}]}, {"text", "tools"}),
        ({"messages": [{"role": "assistant", "tool_calls": [{}]}]}, {"text", "tools"}),
        ({"messages": [{"role": "assistant", "function_call": {"name": "f"}}]}, {"text", "tools"}),
        ({"messages": [{"role": "assistant", "tool_calls": []}]}, {"text"}),
        ({**user("hi"), "tools": [{"type": "function", "function": {"name": "f"}}]}, {"text", "tools"}),
        ({**user("hi"), "tools": [{"type": "web_search"}]}, {"text", "tools"}),
        ({**user("hi"), "tools": []}, {"text"}),
        ({**user("hi"), "functions": [{"name": "f"}]}, {"text", "tools"}),
        ({**user("hi"), "response_format": {"type": "json_schema"}}, {"text", "json_schema"}),
        ({**user("hi"), "response_format": {"type": "json_object"}}, {"text"}),
    ],
)  # fmt: skip
def test_features_come_from_the_whole_conversation(body, features):
    assert ChatRequest.parse(body).needs.features == features


def test_names_of_tools_in_every_form_are_known():
    request = ChatRequest.parse({
        **user("hi"), "tools": [{"function": {"name": "a"}}, {"name": "b"}, {"function": {"name": 5}}, {}],
        "functions": [{"name": "c"}],
    })  # fmt: skip

    assert request.conversation.tools == ("a", "b", "5", "", "c")


def test_tokens_count_texts_images_and_the_answer():
    plain = ChatRequest.parse(user("word" * 100)).needs.tokens

    assert 100 <= plain <= 110
    assert ChatRequest.parse({**user("word" * 100), "max_tokens": 50}).needs.tokens == plain + 50
    assert ChatRequest.parse({**user("word" * 100), "max_tokens": 50, "max_completion_tokens": 60}).needs.tokens == plain + 60
    assert ChatRequest.parse({**user("word" * 100), "max_tokens": -50}).needs.tokens == plain
    assert ChatRequest.parse(user([{"type": "text", "text": "word" * 100}, {"type": "image_url"}])).needs.tokens == (
        plain + IMAGE_TOKENS
    )


@pytest.mark.parametrize(
    "more",
    [
        {"tools": [{"function": {"name": "f", "description": "word" * 1000}}]},
        {"functions": [{"name": "f", "description": "word" * 1000}]},
        {"functions": [{"name": "f", "parameters": {"x": "word" * 1000}}]},
        {"messages": [{"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "word" * 1000}}]}]},
        {"messages": [{"role": "assistant", "function_call": {"name": "f", "arguments": "word" * 1000}}]},
    ],
)
def test_tokens_count_tools_and_their_calls(more):
    assert 1000 <= ChatRequest.parse({**user("hi"), **more}).needs.tokens < 1100


def test_a_bound_on_the_answer_too_large_for_any_model_still_is_a_number():
    assert ChatRequest.parse({**user("hi"), "max_tokens": 10**30}).needs.tokens > 2**30


@pytest.mark.parametrize(
    ("text", "tokens"), [("", 0), ("a", 1), ("word", 1), ("words", 2), ("é", 1), ("画像", 2), ("\ud800", 1)]
)
def test_tokens_of_a_text_are_estimated_by_script(text, tokens):
    assert estimate_tokens(text) == tokens


def test_needs_without_a_word_are_text():
    assert Needs() == Needs(frozenset({"text"}), 0)


def test_metadata_are_texts_and_what_is_none_reads_as_in_json():
    request = ChatRequest.parse({**user("hi"), "metadata": {"a": "1", "b": True, "c": 1.5, "d": None, "e": {"f": ["é"]}}})

    assert request.conversation.metadata == {"a": "1", "b": "true", "c": "1.5", "d": "null", "e": '{"f":["é"]}'}


def test_image_bytes_are_neither_decoded_nor_copied():
    image = "data:image/png;base64," + "iVBORw0K" * 1_250_000
    body = user([{"type": "text", "text": "What is this?"}, {"type": "image_url", "image_url": {"url": image}}])
    source = encoded(body)
    ChatRequest.parse(user("warm up"))

    for given_source in (source, body):
        tracemalloc.start()
        try:
            request = ChatRequest.parse(given_source)
            assert request.conversation.digest
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()

        assert request.conversation.images == 1
        assert peak < 100_000


# Conversations


def test_the_latest_turn_of_the_user_counts_whatever_follows_it():
    conversation = ChatRequest.from_messages(
        [
            {"role": "user", "content": "first"},
            {"role": "assistant", "content": "answer"},
            {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "image_url"}, {"type": "text", "text": "b"}]},
            {"role": "tool", "content": "5"},
        ]
    ).conversation

    assert conversation.text == "a\nb"
    assert conversation.latest_user.images == conversation.images == 1


def test_a_conversation_without_a_user_has_no_text():
    conversation = ChatRequest.from_messages([{"role": "system", "content": "Be kind."}]).conversation

    assert (conversation.latest_user, conversation.text) == (None, "")


@pytest.mark.parametrize(
    ("content", "texts"),
    [("", ()), (None, ()), ([], ()), ([{"type": "text", "text": ""}], ()), ([{"type": "refusal", "refusal": "No."}], ("No.",))],
)
def test_empty_texts_are_no_texts(content, texts):
    assert ChatRequest.parse(user(content)).conversation.messages[0].texts == texts


def view(conversation):
    return [(m.role, m.texts, m.media, m.calls_tools, m.in_parts) for m in conversation.messages], conversation.tools


tricky = st.sampled_from(["", "a", "aa", "|", "|1|a", "\n", "user|", "user||00|1|a\n", "é", "\ud800"])
small_messages = st.builds(
    Message,
    st.sampled_from(["user", "tool"]),
    st.lists(tricky, max_size=2).map(tuple),
    st.lists(st.sampled_from(["image", "audio"]), max_size=2).map(tuple),
    st.booleans(),
    st.booleans(),
)
small_conversations = st.builds(
    Conversation,
    st.lists(small_messages, max_size=2).map(tuple),
    st.lists(st.sampled_from(["a", "a', 'b"]), max_size=2).map(tuple),
)


@given(small_conversations, small_conversations)
@settings(max_examples=300)
def test_digests_are_equal_exactly_for_conversations_that_look_the_same(one, two):
    assert (one.digest == two.digest) == (view(one) == view(two))


@given(bodies)
def test_a_digest_depends_on_nothing_that_is_not_seen(body):
    quiet = {key: body[key] for key in ("messages", "tools", "functions") if key in body}
    loud = {**quiet, "temperature": 1, "model": "x", "stream": True, "metadata": {"a": "b"}}

    assert ChatRequest.parse(quiet).conversation.digest == ChatRequest.parse(loud).conversation.digest


TURN = {"role": "user", "content": [{"type": "text", "text": "ab"}, {"type": "image_url", "image_url": {"url": "x"}}]}


@pytest.mark.parametrize(
    "other",
    [
        {**TURN, "role": "assistant"},
        {**TURN, "content": [{"type": "text", "text": "ac"}, {"type": "image_url"}]},
        {**TURN, "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}, {"type": "image_url"}]},
        {**TURN, "content": [{"type": "text", "text": "ab"}]},
        {**TURN, "content": [{"type": "text", "text": "ab"}, {"type": "image_url"}, {"type": "image_url"}]},
        {**TURN, "content": [{"type": "text", "text": "ab"}, {"type": "file"}]},
        {**TURN, "content": "ab"},
        {**TURN, "tool_calls": [{"id": "1"}]},
    ],
)
def test_a_change_that_can_be_seen_changes_the_digest(other):
    assert ChatRequest.from_messages([TURN]).conversation.digest != ChatRequest.from_messages([other]).conversation.digest


@pytest.mark.parametrize(
    "other",
    [
        {**TURN, "name": "Ann"},
        {**TURN, "content": [{"type": "text", "text": "ab"}, {"type": "image_url", "image_url": {"url": "y"}}]},
        {**TURN, "content": [{"type": "text", "text": "ab", "cache_control": {}}, {"type": "hologram"}, {"type": "image"}]},
    ],
)
def test_a_change_that_cannot_be_seen_keeps_the_digest(other):
    assert ChatRequest.from_messages([TURN]).conversation.digest == ChatRequest.from_messages([other]).conversation.digest


def test_half_a_surrogate_pair_has_a_digest_too() -> None:
    one, same, other = (Conversation((Message("user", (f"a{half}",)),)) for half in ("\ud800", "\ud800", "\ud801"))
    assert one.digest == same.digest != other.digest
    assert len(one.digest) == 16
