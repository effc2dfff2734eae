from __future__ import annotations

import pytest

from fingerpost.routes import Backend
from fingerpost.upstreams import openai
from fingerpost.upstreams.http1 import Http1Upstream
from fingerpost.upstreams.library import LibraryUpstream
from fingerpost.upstreams.openai import own_headers, parse_url, tls_context


@pytest.mark.parametrize(
    ("url", "host", "port", "authority", "path"),
    [
        ("http://localhost", "localhost", 80, "localhost", ""),
        ("https://API.example/v1/", "api.example", 443, "api.example", "/v1"),
        ("https://api.example:443/v1", "api.example", 443, "api.example", "/v1"),
        ("http://api.example:443/v1", "api.example", 443, "api.example:443", "/v1"),
        ("http://[::1]:8000/v1", "::1", 8000, "[::1]:8000", "/v1"),
        ("http://[fe80::1%eth0]/v1", "fe80::1%eth0", 80, "[fe80::1]", "/v1"),
        ("https://käse.example/ä b%20c", "xn--kse-qla.example", 443, "xn--kse-qla.example", "/%C3%A4%20b%20c"),
    ],
)
def test_a_base_url_leads_somewhere(url: str, host: str, port: int, authority: str, path: str) -> None:
    address = parse_url(url)
    assert (address.host, address.port, address.authority, address.path) == (host, port, authority, path)
    assert address.url("/x", "a&b") == f"{url.partition(':')[0]}://{authority}{path}/x?api-version=a%26b"
    assert address.target("/x", None) == f"{path}/x"


@pytest.mark.parametrize(
    "url",
    ["", "localhost:8000", "gopher://localhost/v1", "http:///v1", "http://[::1/v1", "http://a:port/v1", "http://a:99999/v1",
     "http://a/v1?x=1", "http://a/v1#x", "http://user:pass@a/v1", "http://user@a/v1", "http://:pass@a/v1", "http://a b/v1",
     "http://a{b}/v1", "http://" + "ä" * 70 + "/v1"],
)  # fmt: skip
def test_a_url_that_leads_nowhere_or_holds_a_password_is_refused_by_either_client(url: str) -> None:
    with pytest.raises(ValueError) as raised:  # noqa: PT011  (which of the many is not important)
        parse_url(url)
    assert "pass@" not in str(raised.value)
    for kind in (Http1Upstream, LibraryUpstream):
        with pytest.raises(ValueError):  # noqa: PT011
            kind(Backend("small", "m", url))


def test_our_own_headers_are_the_content_type_those_configured_and_the_key() -> None:
    backend = Backend("small", "m", "http://a", "k", headers={"X-Team": "a", "Content-Type": "text/x"})
    assert own_headers(backend) == {"content-type": "text/x", "x-team": "a", "authorization": "Bearer k"}
    assert own_headers(Backend("small", "m", "http://a", "k", "api-key")) == {
        "content-type": "application/json",
        "api-key": "k",
    }


@pytest.mark.parametrize("content", [None, b"", b"no certificate"])
def test_a_file_without_certificates_vouches_for_nobody(tmp_path, content: bytes | None) -> None:
    path = tmp_path / "ca.pem"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(OSError):  # noqa: PT011
        tls_context(str(path))


def test_every_failure_names_the_backend() -> None:
    words = [openai.unsendable, openai.connected_late, openai.answered_late, openai.broken, openai.not_http]
    texts = [error("small").message for error in words] + [openai.unreachable("small", OSError("secret")).message]
    assert all(text.startswith("small: ") for text in texts)
    assert len(set(texts)) == len(texts)
    assert "secret" not in texts[-1]
