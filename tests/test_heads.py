"""Heads that come again are known by their bytes, and by nothing less."""

from __future__ import annotations

import pytest

from fingerpost.heads import KnownHead


def request(body: bytes, length: bytes | None = None, name: bytes = b"content-length", path: bytes = b"/a") -> bytes:
    stated = b"%d" % len(body) if length is None else length
    return b"POST %b HTTP/1.1\r\nhost: x\r\n%b: %b\r\naccept: */*\r\n\r\n%b" % (path, name, stated, body)


def known(data: bytes, size: int) -> KnownHead | None:
    return KnownHead.of(data, size)


def head() -> KnownHead:
    found = known(request(b"{}"), 2)
    assert found is not None
    return found


@pytest.mark.parametrize("body", [b"{}", b"", b"x" * 100_000, b"\r\n\r\n", request(b"{}")])
def test_the_body_of_a_request_with_the_same_head_is_found_whatever_its_length(body: bytes) -> None:
    assert head().body(request(body)) == body


@pytest.mark.parametrize(
    "data",
    [
        request(b"{}", path=b"/b"),
        request(b"{}", name=b"Content-Length"),
        request(b"{}", length=b"1"),
        request(b"{}", length=b"3"),
        request(b"{}", length=b"+2"),
        request(b"{}", length=b" 2"),
        request(b"{}", length=b"2 "),
        request(b"{}", length=b"\xc2\xb2"),
        request(b"{}", length=b""),
        request(b"{}", length=b"0" * 12 + b"2"),
        request(b"{}") + request(b"{}"),
        request(b"{}") + b"\r\n",
        request(b"{}")[:-1],
        request(b"{}")[:20],
        b"\r\n" + request(b"{}"),
        b"",
    ],
)
def test_what_differs_in_any_way_or_does_not_come_whole_and_alone_is_not_known(data: bytes) -> None:
    assert head().body(data) is None


@pytest.mark.parametrize(
    ("data", "size"),
    [
        (request(b"{}") + b"\r\n", 2),
        (request(b"{}", name=b"x-length"), 2),
        (b"POST /a HTTP/1.1\r\nhost: x\r\n\r\n", 0),
        (request(b"{}") + request(b"{}"), 2),
    ],
)
def test_a_head_is_kept_only_where_nothing_else_came_with_it(data: bytes, size: int) -> None:
    assert known(data, size) is None


def test_nearly_all_lengths_are_known_and_none_for_another() -> None:
    given = head()
    found = {size: given.body(request(b"x" * size)) for size in range(1200)}

    assert [size for size, body in found.items() if body is None] == [9, 98, 99, 997, 998, 999]
    assert all(body is None or len(body) == size for size, body in found.items())
