"""Long texts are left out where that changes nothing of what is looked for."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fingerpost.chat import ChatRequest
from fingerpost.errors import InvalidRequest
from fingerpost.hollow import LARGE, LONG, MOST, Hollow, check_values, hollow
from fingerpost.splice import locate, read_fields

LONG_TEXT = "A" * (LONG + 1)
IMAGE = "data:image/png;base64," + "iVBORw0K" * 250_000


def body(**fields) -> bytes:
    return json.dumps(fields).encode()


def test_small_json_is_left_as_it_is():
    source = body(text=LONG_TEXT)

    assert hollow(source) == Hollow(source)


def test_long_texts_are_emptied_and_short_ones_stay():
    found = hollow(body(a="short", image=IMAGE, b=[1, "x"], more=LONG_TEXT))

    assert json.loads(found.source) == {"a": "short", "image": "", "b": [1, "x"], "more": ""}
    assert [length for _, length in found.holes] == [len(IMAGE), len(LONG_TEXT)]


def test_texts_with_escapes_are_left_and_what_follows_is_found():
    source = body(escaped='say "hi" \\' + IMAGE, image=IMAGE)

    found = hollow(source)

    assert json.loads(found.source) == {"escaped": 'say "hi" \\' + IMAGE, "image": ""}


@pytest.mark.parametrize("start", [b"x", b'"x', b'"\\', b'"\\"', b'{"a": "' + b"\\" * LARGE])
def test_what_is_no_json_does_no_harm(start):
    source = start + b"x" * LARGE

    assert hollow(source).source in (source, b'"')


def test_a_body_of_very_many_texts_is_looked_at_in_part():
    found = hollow(body(texts=["x"] * MOST, image=IMAGE))

    assert found.holes == ()


SMALL = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=12) | st.text('ab"\\,{[', max_size=40),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=6), inner, max_size=4),
    max_leaves=20,
)


@settings(max_examples=300)
@given(st.dictionaries(st.text(min_size=1, max_size=6), SMALL, min_size=1, max_size=6), st.integers(1, 20))
def test_fields_are_found_where_they_stand(fields, long):
    source = json.dumps(fields).encode()
    found = hollow(source, 0, long)

    json.loads(found.source)
    if not any(len(json.dumps(name)) - 2 >= long for name in fields):  # else a name is emptied
        assert found.located(read_fields(found.source)) == locate(read_fields(source))


def test_a_field_that_is_there_twice_beside_an_image_is_found():
    parts = '[{"type": "image_url", "image_url": {"url": "' + IMAGE + '"}}]'
    source = '{"model": "auto", "messages": [{"role": "user", "content": ' + parts + ', "role": "system"}]}'

    with pytest.raises(InvalidRequest, match="role: this key is there twice"):
        ChatRequest.parse(source.encode())


def test_the_body_goes_on_with_its_image_and_another_model():
    parts = [{"type": "image_url", "image_url": {"url": IMAGE}}, {"type": "text", "text": LONG_TEXT}]
    source = body(fingerpost={"routes": None}, messages=[{"role": "user", "content": parts}], model="auto", end=LONG_TEXT)

    request = ChatRequest.parse(source)

    assert request.conversation.images == 1
    assert request.conversation.text == LONG_TEXT
    sent = json.loads(request.body_for("other"))
    assert sent == {"messages": [{"role": "user", "content": parts}], "model": "other", "end": LONG_TEXT}


def test_values_beside_an_image_are_counted():
    check_values(body(image=IMAGE + ",[{" * LONG, values=[0] * 90), 100)

    with pytest.raises(InvalidRequest, match="more than 100 values"):
        check_values(body(image=IMAGE, values=[0] * 200), 100)


def part(key: str, value: str, kind: str = "image_url") -> dict:
    return {"type": kind, kind: {key: value}}


@pytest.mark.parametrize(
    ("content", "only"),
    [
        ([part("url", IMAGE)], True),
        ([part("url", IMAGE), {"type": "text", "text": "what is it?"}, part("file_data", IMAGE, "file")], True),
        ([{"type": "input_image", "image_url": IMAGE}], True),
        ([part("url", IMAGE), {"type": "text", "text": LONG_TEXT}], False),
        ([{"type": "text", "text": IMAGE}], False),
        ([part("data", IMAGE, "input_audio")], False),
        ([part("url", "https://host/" + LONG_TEXT), part("url", IMAGE)], False),
        (IMAGE, False),
    ],
)
def test_payloads_are_told_from_texts_which_are_read_whole(content, only):
    source = body(model="a", messages=[{"role": "user", "content": content}])
    texts = [content] if isinstance(content, str) else [p["text"] for p in content if p["type"] == "text"]

    assert hollow(source).only_payloads is only
    assert ChatRequest.parse(source).conversation.text == "\n".join(texts)


def test_a_payload_needs_a_key_before_it():
    assert not hollow(b'"' + IMAGE.encode() + b'"').only_payloads
