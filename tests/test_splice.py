from __future__ import annotations

import json
import tracemalloc

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fingerpost import splice as splicing
from fingerpost.errors import InvalidRequest
from fingerpost.hollow import check_values
from fingerpost.splice import MAX_FIELDS, Member, check_utf8, read_fields, replace, splice


def locate(source: bytes) -> dict[str, Member]:
    return splicing.locate(read_fields(source))


spaces = st.text(" \t\n\r", max_size=2)
names = (
    st.sampled_from(["model", "fingerpost", "messages", "a", "", 'q"', "\\", "é", "😀", "mode", "models", ",", "}", ":"])
    | st.text()
)
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=3),
    max_leaves=6,
)


@st.composite
def written(draw, value):
    """JSON text for a value, with any white space between its tokens and any choice of escapes."""
    if isinstance(value, dict):
        return draw(written_members(list(value.items())))
    if isinstance(value, list):
        items = ",".join(draw(spaces) + draw(written(item)) + draw(spaces) for item in value)
        return "[" + (items or draw(spaces)) + "]"
    return json.dumps(value, ensure_ascii=draw(st.booleans()))


@st.composite
def written_members(draw, members):
    def one(name, value):
        key = json.dumps(name, ensure_ascii=draw(st.booleans()))
        if draw(st.booleans()):
            key = '"' + "".join(f"\\u{ord(c):04x}" if ord(c) < 0x10000 else c for c in name) + '"'
        return draw(spaces) + key + draw(spaces) + ":" + draw(spaces) + draw(written(value)) + draw(spaces)

    return "{" + (",".join(one(name, value) for name, value in members) or draw(spaces)) + "}"


def pairs_of(source: bytes) -> list:
    """The slow reference: all fields of the outermost object, in order, with what is there twice."""
    return list(json.loads(source, object_pairs_hook=lambda pairs: pairs))


def reference(source: bytes, changes: dict) -> list:
    """The fields after the changes, new ones last; values as nested lists of pairs."""
    kept = [(name, changes.get(name, value)) for name, value in pairs_of(source) if changes.get(name, 0) is not None]
    here = {name for name, _ in pairs_of(source)}
    return kept + [(name, value) for name, value in changes.items() if name not in here and value is not None]


@given(st.lists(st.tuples(names, values), min_size=1, max_size=6), st.text(), st.data())
@settings(max_examples=200)
def test_changes_are_those_of_a_slow_reference_and_all_else_stays_byte_for_byte(members, model, data):
    source = (data.draw(spaces) + data.draw(written_members([*members, ("messages*", [])])) + data.draw(spaces)).encode()
    changes = {"model": model, "fingerpost": None}
    read = pairs_of(source)
    if len({name for name, _ in read}) < len(read):
        with pytest.raises(InvalidRequest) as raised:
            locate(source)
        assert raised.value.code == "duplicate_key"
        assert [name for name, _ in read].count(raised.value.param) > 1 or len(raised.value.param) > 100
        return

    found = locate(source)
    sent = splice(source, found, {"model": msgspec.json.encode(model), "fingerpost": None})

    if "model" in found:
        alone = {"model": msgspec.json.encode(model)}
        assert replace(source, read_fields(source), "model", alone["model"]) == splice(source, found, alone)
    assert [name for name, _ in read] == list(found)
    assert pairs_of(sent) == reference(source, changes)
    after = locate(sent)
    for name in found.keys() - changes.keys():
        one, two = found[name], after[name]
        assert source[one.start : one.end] == sent[two.start : two.end]


@pytest.mark.parametrize(
    ("source", "sent"),
    [
        (b'{"model":"a","x":1}', b'{"model":"m","x":1}'),
        (b'{"x":1}', b'{"x":1,"model":"m"}'),
        (b' { "x" : 1 } ', b' { "x" : 1,"model":"m" } '),
        (b'{"fingerpost":{"model":"no"}, "x":{"model":"inner"}}', b'{"x":{"model":"inner"},"model":"m"}'),
        (b'{"x":1 , "fingerpost": {}}', b'{"x":1,"model":"m"}'),
        (b'{"x":1,"f\\u0069ngerpost":{},"\\u006dodel":2}', b'{"x":1,"\\u006dodel":"m"}'),
        (b'{"model":1,"fingerpost":{}}', b'{"model":"m"}'),
        (b'{"fingerpost":{},"model":1}', b'{"model":"m"}'),
        (b'{"Model":1,"model ":2}', b'{"Model":1,"model ":2,"model":"m"}'),
        (b'{"x":"\\"model\\":\\"no\\"","model":"a"}', b'{"x":"\\"model\\":\\"no\\"","model":"m"}'),
    ],
)
def test_only_the_fields_of_the_outermost_object_are_changed(source, sent):
    assert splice(source, locate(source), {"model": b'"m"', "fingerpost": None}) == sent


@pytest.mark.parametrize(
    ("source", "sent"),
    [
        (b'{"model":"a"}', b'{"model":"m"}'),
        (b'{"model":"a","x":{"model":"inner"}}', b'{"model":"m","x":{"model":"inner"}}'),
        (b'{"x":"\\"model\\":\\"no\\"","model":"a"}', b'{"x":"\\"model\\":\\"no\\"","model":"m"}'),
        (b'{"":[],"model":null,"x":"\xc3\xa4"}', b'{"":[],"model":"m","x":"\xc3\xa4"}'),
        (b' {"x":1, "mod\\u0065l" : "a" }', b' {"x":1, "mod\\u0065l" : "m" }'),
    ],
)
def test_one_field_is_replaced_where_it_stands(source, sent):
    assert replace(source, read_fields(source), "model", b'"m"') == sent
    with pytest.raises(KeyError):
        replace(source, read_fields(source), "absent", b"1")


@pytest.mark.parametrize("source", [b'{"model": "a"}', b' {"model":"a"}', b'{"\\u006dodel":"a"}', b'{"m\xc3\xb6del":"a"}'])
def test_fields_are_counted_only_where_nothing_else_is_there(source):
    assert read_fields(source).members is not None
    assert read_fields(msgspec.json.encode(msgspec.json.decode(source)).replace("ö".encode(), b"o")).members is None


@pytest.mark.parametrize(
    ("source", "key"),
    [
        (b'{"a":1,"a":1}', "a"),
        (b'{"a":1,"b":2,"a":3}', "a"),
        (b'{"a":1,"a":1,"b":1}', "a"),
        (b'{"a":1,"a":1,"b":2}', "a"),
        (b'{"a":12,"a":1}', "a"),
        (b'{"a":1,"b":1,"b":1,"a":1}', "b"),
        (b'{"":1,"":2}', ""),
        (b'{"\\u0061":1,"a":1}', "a"),
        (b'{"%b":1,"%b":1}' % (b"x" * 300, b"x" * 300), "x" * 100 + "…"),
    ],
)
def test_a_key_that_is_there_twice_is_named(source, key):
    with pytest.raises(InvalidRequest) as raised:
        locate(source)

    assert (raised.value.code, raised.value.param) == ("duplicate_key", key)


def test_an_empty_object_has_no_fields():
    assert locate(b" {} ") == {}


@pytest.mark.parametrize("source", [b"", b"[]", b"{", b'{"a":1', b'{"a"}', b'{"a":1} x'])
def test_what_is_no_object_is_refused_as_msgspec_refuses_it(source):
    with pytest.raises(msgspec.MsgspecError):
        locate(source)


def test_a_large_body_is_copied_once():
    source = b'{"model": "auto", "image": "' + b"A" * 10_000_000 + b'", "fingerpost": {}}'
    tracemalloc.start()
    try:
        sent = splice(source, locate(source), {"model": b'"m"', "fingerpost": None})
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()

    assert len(sent) == len(source) - 6 - len(', "fingerpost": {}') + 3
    assert peak < 10_100_000


@given(st.binary(max_size=8), st.integers(65_520, 65_540))
@settings(max_examples=200)
def test_utf8_is_checked_across_the_borders_of_the_pieces(tail, length):
    source = b"\xc3\xa9" + b"x" * length + tail
    try:
        source.decode()
    except UnicodeDecodeError:
        with pytest.raises(UnicodeDecodeError):
            check_utf8(source)
    else:
        check_utf8(source)
        check_utf8(b"plain")


def count_of(value) -> int:
    """The commas and opening brackets that JSON text for a value needs."""
    inner = list(value.values()) if isinstance(value, dict) else value if isinstance(value, list) else None
    return 0 if inner is None else 1 + max(len(inner) - 1, 0) + sum(map(count_of, inner))


@given(values, st.data())
@settings(max_examples=300)
def test_values_are_counted_whatever_stands_in_texts(value, data):
    source = data.draw(written([value, ',[{"\\', '\\"', {"\\\\,": "{"}])).encode()
    count = count_of([value, "", "", {"": ""}])

    check_values(source, count)
    with pytest.raises(InvalidRequest) as raised:
        check_values(source, count - 1)
    assert (raised.value.status, raised.value.code) == (400, "too_many_values")


@pytest.mark.parametrize("source", [b"[" + b",".join([b'""'] * 500) + b"]", b"[" * 500, b"[" + b",".join([b"{}"] * 250) + b"]"])
def test_few_bytes_for_each_value_are_counted_too(source):
    check_values(source, 500)
    with pytest.raises(InvalidRequest):
        check_values(source, 499)


def test_more_fields_than_any_request_has_are_refused():
    def source(count):
        return ("{" + ",".join(f'"{number}":1' for number in range(count)) + "}").encode()

    assert len(locate(source(MAX_FIELDS))) == MAX_FIELDS
    with pytest.raises(InvalidRequest, match=str(MAX_FIELDS)):
        locate(source(MAX_FIELDS + 1))
