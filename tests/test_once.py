from __future__ import annotations

import json

import pytest

from fingerpost.chat import ChatRequest
from fingerpost.errors import InvalidRequest
from fingerpost.once import SHORT

TOOL_CALL = '"tool_calls":[{"type":"function","id":"role","function":{"name":"content"}}]'
IMAGE = '{"type":"image_url","image_url":{"url":"data:"}}'


def body(*messages: str, **fields: object) -> bytes:
    rest = "".join(f",{json.dumps(name)}:{json.dumps(value)}" for name, value in fields.items())
    return f'{{"messages":[{",".join(messages)}]{rest}}}'.encode()


def of(content: str) -> str:
    return f'{{"role":"user","content":{content}}}'


DOUBLED = [
    ('{"role":"user","content":"a","role":"system"}', "role"),
    ('{"role":"user","content":"a","content":"b"}', "content"),
    ('{"role":"user","content":"a","content":null}', "content"),
    ('{"role":"user","content":null,"content":"a"}', "content"),
    ('{"role":"user","content":"a","content":[]}', "content"),
    ('{"role":"user","content":"a","c\\u006Fntent":"b"}', "content"),
    ('{"role":"user","\\u0063ontent":"a","content":"b"}', "content"),
    ('{"role":"user","c\\u006fntent":"a","c\\u006fntent":"b"}', "content"),
    ('{"role":"user","content":"a","refusal":null,"refusal":"b"}', "refusal"),
    (f'{{"role":"assistant",{TOOL_CALL},"tool_calls":[]}}', "tool_calls"),
    (f'{{"role":"assistant",{TOOL_CALL},"tool\\u005fcalls":[]}}', "tool_calls"),
    ('{"role":"assistant","function_call":{},"function_call":null}', "function_call"),
    (of('[{"type":"text","text":"a","text":"b"}]'), "content[0].text"),
    (of('[{"type":"text","text":"a","text":null}]'), "content[0].text"),
    (of(f'[{IMAGE},{{"type":"text","text":"a","type":"image_url"}}]'), "content[1].type"),
    (of('[{"type":"image_url","text":"a","t\\u0079pe":"text"}]'), "content[0].type"),
    (of('[{"type":"refusal","refusal":"a","refusal":"b"}]'), "content[0].refusal"),
]


@pytest.mark.parametrize("before", [(), (of('"é"'), f'{{"role":"assistant","content":null,{TOOL_CALL}}}')])
@pytest.mark.parametrize("padding", [0, 20 * SHORT])
@pytest.mark.parametrize(("message", "path"), DOUBLED)
def test_a_field_that_is_there_twice_is_refused_with_its_path(
    message: str, path: str, padding: int, before: tuple[str, ...]
) -> None:
    with pytest.raises(InvalidRequest) as raised:
        ChatRequest.parse(body(*before, message, of(json.dumps("x" * padding))))

    param = f"messages[{len(before)}].{path}"
    assert (raised.value.status, raised.value.code, raised.value.param) == (400, "duplicate_key", param)


@pytest.mark.parametrize("padding", [0, 20 * SHORT])
@pytest.mark.parametrize(
    "message",
    [
        of('"role"'),
        of('"\\"role\\": \\"content\\""'),
        of('"\\u0072ole \\u00e9"'),
        of("null"),
        of("[]"),
        of('[{"type":"text","text":"text"},{"type":"type"},{"type":"input_text","text":"a","cache_control":{"type":"x"}}]'),
        '{"role":"tool","content":[{"type":"text","text":"a"}],"tool_call_id":"tool_calls"}',
        f'{{"role":"assistant","content":[],{TOOL_CALL},"refusal":null,"function_call":null}}',
        '{"role":"assistant","tool_calls":[{"role":1,"type":2},7,{}],"content":[{"type":"text","text":""}]}',
        '{"role":"user","name":"a","name":"b","x":{"role":1,"role":2},"content":[{"type":"file","file":1,"file":2}]}',
        '{"r\\u006fle":"user"}',
    ],
)
def test_names_that_stand_elsewhere_are_no_doubles(message: str, padding: int) -> None:
    source = body(message, of('"a"'), of(json.dumps("x" * padding)))

    assert len(ChatRequest.parse(source).conversation.messages) == 3


def test_a_response_format_has_one_type() -> None:
    with pytest.raises(InvalidRequest) as raised:
        ChatRequest.parse(b'{"messages":[{"role":"user"}],"response_format":{"type":"text","type":"json_schema"}}')

    assert (raised.value.code, raised.value.param) == ("duplicate_key", "response_format.type")
    assert ChatRequest.parse(body(of('"a"'), response_format=None)).needs.features == {"text"}


@pytest.mark.parametrize("name", ["Model", "MESSAGES", "me\u017f\u017fages", "Fingerpost", "toolS"])
def test_a_field_in_other_letters_is_refused_since_servers_in_go_read_it(name: str) -> None:
    with pytest.raises(InvalidRequest) as raised:
        ChatRequest.parse(body(of('"a"'), **{name: None}))

    assert (raised.value.code, raised.value.param) == ("invalid_request", name)
    assert f"write this field as {name.casefold()}" in raised.value.message
