"""Reading replies that are cut anywhere, without a socket."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fingerpost.routes import Backend
from fingerpost.upstreams.openai import parse_url
from fingerpost.upstreams.wire import HEADS_LEARNT, MAX_FIELDS, MAX_HEAD, Incoming, NotHttp, ReplyParser, RequestWriter

names = st.text("abcXYZ-09", min_size=1, max_size=8).map(lambda name: f"x-{name}")
texts = st.text('abc ;,="é', max_size=12).map(str.strip)
fields = st.lists(st.tuples(names, texts), max_size=5)
bodies = st.binary(max_size=60)


@st.composite
def replies(draw: st.DrawFn) -> tuple[bytes, int, list[tuple[bytes, bytes]], bytes, bool]:
    """The bytes of a valid reply, with its status, headers and body, and whether only the end of the connection ends it."""
    status, content = draw(st.sampled_from([200, 201, 400, 429, 500, 503])), draw(bodies)
    headers = [(name.encode(), value.encode("latin-1")) for name, value in draw(fields)]
    framing = draw(st.sampled_from(["length", "chunked", "end"]))
    interim = draw(st.sampled_from([b"", b"HTTP/1.1 100 Continue\r\n\r\n", b"HTTP/1.1 103 E\r\nlink: x\r\n\r\n"]))
    if framing == "length":
        headers.append((b"Content-Length", b"%d" % len(content)))
        body = content
    elif framing == "chunked":
        headers.append((b"Transfer-Encoding", b"chunked"))
        sizes = draw(st.lists(st.integers(1, 20), max_size=5))
        body, left = b"", content
        for size in [*sizes, len(content)]:
            piece, left = left[:size], left[size:]
            extension = draw(st.sampled_from([b"", b";a=b"]))
            body += b"%x%b\r\n%b\r\n" % (len(piece), extension, piece) if piece else b""
        body += draw(st.sampled_from([b"0\r\n\r\n", b"0\r\nx-trailer: 1\r\n\r\n"]))
    else:
        body = content
    head = b"HTTP/1.1 %d Reason\r\n" % status + b"".join(b"%b: %b\r\n" % pair for pair in headers) + b"\r\n"
    lowered = tuple((name.lower(), value) for name, value in headers if name != b"Content-Length")
    length = len(content) if framing == "length" else None
    return interim + head + body, status, (lowered, length), content, framing == "end"


def cut(raw: bytes, places: list[int]) -> list[bytes]:
    edges = [0, *sorted(place % (len(raw) + 1) for place in places), len(raw)]
    return [raw[one:two] for one, two in pairwise(edges) if one < two]


@given(st.lists(replies(), min_size=1, max_size=3), st.lists(st.integers(0, 10_000), max_size=8), st.booleans())
@settings(max_examples=400)
def test_any_reply_cut_anywhere_is_read_alike(given_replies: list, places: list[int], bytewise: bool) -> None:
    parser = ReplyParser()
    for raw, status, told, content, to_the_end in given_replies:
        incoming = Incoming()
        parser.expect(incoming)
        for piece in [raw[i : i + 1] for i in range(len(raw))] if bytewise else cut(raw, places):
            assert not incoming.complete
            parser.feed(piece)
        assert incoming.complete != to_the_end
        assert to_the_end == (not incoming.reusable)
        if to_the_end:
            assert parser.end()
        found = incoming.status, (incoming.headers, incoming.length), b"".join(incoming.parts)
        assert found == (status, told, content)
        if to_the_end:
            return


@given(replies(), st.binary(max_size=4), st.integers(0, 400), st.integers(0, 4), st.lists(st.integers(0, 10_000), max_size=4))
@settings(max_examples=800)
def test_a_damaged_reply_is_read_or_refused_the_same_however_it_is_cut(
    reply: tuple, new: bytes, place: int, gone: int, places: list[int]
) -> None:
    raw = reply[0][:place] + new + reply[0][place + gone :]

    def read(pieces: list[bytes]) -> tuple | None:
        parser, incoming = ReplyParser(), Incoming()
        parser.expect(incoming)
        try:
            for piece in pieces:
                if not incoming.complete:
                    parser.feed(piece)
        except NotHttp:
            return None
        complete = parser.end()
        return incoming.status, tuple(incoming.headers), b"".join(incoming.parts) if complete else None, complete

    whole = read([raw])
    assert read(cut(raw, places)) == whole
    assert read([raw[i : i + 1] for i in range(len(raw))]) == whole


@pytest.mark.parametrize(
    ("surplus", "reusable"), [(b"", True), (b"x", False), (b"HTTP/1.1 200 OK\r\ncontent-length: 1\r\n\r\nx", False)]
)
def test_what_follows_a_reply_belongs_to_no_reply(surplus: bytes, reusable: bool) -> None:
    parser, incoming = ReplyParser(), Incoming()
    parser.expect(incoming)
    parser.feed(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok" + surplus)
    assert (incoming.complete, incoming.reusable, incoming.parts) == (True, reusable, [b"ok"])


@pytest.mark.parametrize("trailer", [b"transfer-encoding: x", b"Transfer-Encoding: chunked"])
def test_a_trailer_about_the_coding_spoils_the_connection(trailer: bytes) -> None:
    parser, incoming = ReplyParser(), Incoming()
    parser.expect(incoming)
    parser.feed(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n%b\r\n\r\n" % trailer)
    assert (incoming.complete, incoming.reusable, incoming.parts) == (True, False, [b"ok"])
    assert [name for name, _ in incoming.headers] == [b"transfer-encoding"]


def head_of(fields: int, size: int) -> bytes:
    return (
        b"HTTP/1.1 200 OK\r\n"
        + b"".join(b"a%d: %b\r\n" % (i, b"x" * size) for i in range(fields))
        + b"content-length: 0\r\n\r\n"
    )


@pytest.mark.parametrize(
    ("head", "valid"),
    [
        (head_of(MAX_FIELDS, 1), True),
        (head_of(MAX_FIELDS + 1, 1), False),
        (head_of(1, MAX_HEAD - 100), True),
        (head_of(1, MAX_HEAD), False),
        (head_of(100, MAX_HEAD // 90), False),
    ],
)
def test_a_head_has_bounds(head: bytes, valid: bool) -> None:
    for pieces in ([head], [head[i : i + 1000] for i in range(0, len(head), 1000)]):
        parser, incoming = ReplyParser(), Incoming()
        parser.expect(incoming)
        try:
            for piece in pieces:
                parser.feed(piece)
        except NotHttp:
            assert not valid
        else:
            assert valid
            assert incoming.complete


def test_the_head_of_a_request_is_written_once_for_all() -> None:
    backend = Backend("small", "m", "https://a.example/v1", "k", headers={"X-Team": "t"})
    writer = RequestWriter(backend, parse_url(backend.url))
    assert writer.head("/chat/completions", ((b"accept", b"*/*"), (b"x-team", b"theirs")), 5) == (
        b"POST /v1/chat/completions HTTP/1.1\r\nhost: a.example\r\ncontent-type: application/json\r\nx-team: t\r\n"
        b"authorization: Bearer k\r\naccept: */*\r\ncontent-length: 5\r\n\r\n"
    )
    assert len({writer.head(f"/{number}", (), 0) for number in range(40)}) == 40


@pytest.mark.parametrize("headers", [{"x\r\ny": "1"}, {"x": "1\r\ny: 2"}, {"x": "1\0"}, {"ü你": "1"}])
def test_headers_of_a_backend_that_cannot_be_sent_are_an_error_at_once(headers: dict[str, str]) -> None:
    backend = Backend("small", "m", "http://a", headers=headers)
    with pytest.raises(ValueError):  # noqa: PT011
        RequestWriter(backend, parse_url(backend.url))


def read_again(parser: ReplyParser, data: bytes) -> Incoming:
    incoming = Incoming()
    parser.expect(incoming)
    parser.feed(data)
    return incoming


def reply_of(body: bytes, date: bytes = b"1", length: bytes | None = None) -> bytes:
    stated = b"%d" % len(body) if length is None else length
    return b"HTTP/1.1 200 OK\r\nDate: %b\r\nContent-Length: %b\r\nX-A: b\r\n\r\n%b" % (date, stated, body)


@pytest.mark.parametrize(
    "after",
    [
        reply_of(b"ok"),
        reply_of(b"longer than the one before"),
        reply_of(b"ok", date=b"2"),
        reply_of(b"ok", length=b"002"),
        reply_of(b"o", length=b"2"),
        reply_of(b"okay", length=b"2"),
        reply_of(b"ok").replace(b"200", b"201"),
        reply_of(b""),
        b"HTTP/1.1 204 No Content\r\n\r\n",
    ],
)
def test_a_reply_with_a_head_that_comes_again_is_read_as_by_a_new_parser(after: bytes) -> None:
    parser = ReplyParser()
    for body in (b"one", b"two", b"three"):
        assert read_again(parser, reply_of(body)).parts == [body]
    found, new = read_again(parser, after), read_again(ReplyParser(), after)
    for one in (found, new):
        one.headers = tuple((name, value.lstrip(b"0")) for name, value in one.headers)
    assert all(getattr(found, field) == getattr(new, field) for field in found.__struct_fields__)


def test_heads_that_never_come_again_are_not_kept_for_long() -> None:
    parser = ReplyParser()
    for date in range(HEADS_LEARNT + 1):
        read_again(parser, reply_of(b"ok", date=b"%d" % date))
    assert parser._known is not None
    assert parser._known.body(reply_of(b"ok", date=b"%d" % (HEADS_LEARNT - 1))) == b"ok"
