"""nginx speaking HTTP/2 in a backend's place, with a FakeBackend behind it: over TLS, and without."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import socket
import subprocess
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import trustme

from fingerpost.errors import UpstreamError
from fingerpost.routes import Backend
from fingerpost.testing import FakeBackend, FakeReply
from fingerpost.upstreams import Call, Reply
from fingerpost.upstreams.http2 import Http2Upstream

Until = Callable[[Callable[[], object]], None]
WORDS = "A whole answer from behind a real server."
BODY = json.dumps({"model": "m", "messages": [{"role": "user", "content": "hi"}]}).encode()
STREAM = json.dumps({"model": "m", "messages": [{"role": "user", "content": "hi"}], "stream": True}).encode()

NGINX = """
daemon off; worker_processes 1; pid {folder}/pid; error_log {folder}/error.log;
events {{ worker_connections 512; }}
http {{
  log_format wire "$server_protocol $connection $status"; access_log {folder}/wire.log wire;
  client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy;
  fastcgi_temp_path {folder}/f; uwsgi_temp_path {folder}/u; scgi_temp_path {folder}/s;
  client_max_body_size 20m; client_body_buffer_size 20m; keepalive_requests {requests};
  server {{
    listen 127.0.0.1:{port} {kind};
    ssl_certificate {folder}/cert.pem; ssl_certificate_key {folder}/cert.pem;
    location /v1/ {{ proxy_pass http://127.0.0.1:{behind}/v1/; proxy_http_version 1.1; proxy_buffering off; }}
  }}
}}
"""


@dataclass
class Front:
    """A running nginx: where it is, who vouches for it, and what it logged."""

    url: str
    ca: str | None
    process: subprocess.Popen[bytes]
    log: Path

    def upstream(self) -> Http2Upstream:
        return Http2Upstream(Backend("small", "m", self.url, ca=self.ca))

    def wire(self) -> list[tuple[str, str]]:
        """Protocol and connection of each request that is over."""
        return [(line.split()[0], line.split()[1]) for line in self.log.read_text().splitlines()]


@pytest.fixture(params=["ssl http2", "http2"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def requests() -> int:
    """Requests after which nginx says goodbye to a connection."""
    return 1000


@pytest.fixture
def front(kind: str, requests: int, tmp_path: Path, fake: FakeBackend, eventually: Until) -> Iterator[Front]:
    nginx = shutil.which("nginx", path=f"{os.getenv('PATH')}:/usr/sbin")
    if not nginx:
        assert not os.getenv("CI"), "nginx is missing"
        pytest.skip("nginx is not installed; scripts/setup-servers gets it")
    authority = trustme.CA()
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    authority.issue_cert("localhost").private_key_and_cert_chain_pem.write_to_path(tmp_path / "cert.pem")
    with closing(socket.create_server(("127.0.0.1", 0))) as free:
        port = int(free.getsockname()[1])
    file = tmp_path / "nginx.conf"
    file.write_text(NGINX.format(folder=tmp_path, port=port, kind=kind, behind=fake.port, requests=requests))
    fake.default = FakeReply(WORDS)
    process = subprocess.Popen([nginx, "-p", tmp_path, "-c", file, "-e", tmp_path / "error.log"], stderr=subprocess.DEVNULL)

    def listens() -> bool:
        with closing(socket.socket()) as probe:
            return probe.connect_ex(("127.0.0.1", port)) == 0

    try:
        eventually(listens)
        secure = kind.startswith("ssl")
        url = f"https://localhost:{port}/v1" if secure else f"http://127.0.0.1:{port}/v1"
        yield Front(url, str(tmp_path / "ca.pem") if secure else None, process, tmp_path / "wire.log")
    finally:
        process.terminate()
        process.wait(20)


async def send(upstream: Http2Upstream, body: bytes = BODY) -> Reply:
    return await upstream.send(Call(upstream.backend, body))


async def ask(upstream: Http2Upstream, body: bytes = BODY) -> Any:
    reply = await send(upstream, body)
    content = await reply.read(1 << 30)
    assert reply.status == 200, content
    return json.loads(content)["choices"][0]["message"]["content"]


async def test_fifty_requests_at_once_over_one_connection(front: Front, fake: FakeBackend, eventually: Until) -> None:
    fake.default = FakeReply(WORDS, delay=0.2)
    upstream = front.upstream()
    assert await asyncio.gather(*[ask(upstream) for _ in range(50)]) == [WORDS] * 50
    await upstream.aclose()
    await asyncio.to_thread(eventually, lambda: len(front.wire()) == 50)
    assert len(set(front.wire())) == 1
    assert front.wire()[0][0] == "HTTP/2.0"


async def test_events_arrive_one_by_one(front: Front, fake: FakeBackend) -> None:
    fake.default = FakeReply(WORDS, pause=0.05)
    upstream = front.upstream()
    reply = await send(upstream, STREAM)
    chunks = [chunk async for chunk in reply.chunks]
    reply.close()
    await upstream.aclose()
    assert len(chunks) >= 4
    assert b"".join(chunks).endswith(b"data: [DONE]\n\n")
    assert reply.header(b"content-type") == b"text/event-stream"


async def test_a_client_that_leaves_stops_the_backend_and_harms_no_other(
    front: Front, fake: FakeBackend, eventually: Until
) -> None:
    fake.default = FakeReply(WORDS, pause=0.1)
    upstream = front.upstream()
    other = await send(upstream, STREAM)
    reply = await send(upstream, STREAM)
    await anext(reply.chunks)
    reply.close()
    await asyncio.to_thread(eventually, lambda: fake.abandoned == 1)
    fake.default = FakeReply(hang=True)
    call = asyncio.ensure_future(send(upstream))
    await asyncio.to_thread(eventually, lambda: len(fake.requests) == 3)
    call.cancel()
    await asyncio.to_thread(eventually, lambda: fake.abandoned == 2)
    assert (await other.read(1 << 20)).endswith(b"data: [DONE]\n\n")
    await upstream.aclose()
    await asyncio.gather(call, return_exceptions=True)
    assert len({connection for _, connection in front.wire()}) == 1


async def test_a_body_of_ten_megabytes(front: Front, fake: FakeBackend) -> None:
    body = json.dumps({"model": "m", "messages": [{"role": "user", "content": "x" * 10_000_000}]}).encode()
    upstream = front.upstream()
    assert await asyncio.gather(ask(upstream, body), ask(upstream), ask(upstream, body)) == [WORDS] * 3
    await upstream.aclose()
    assert sorted(len(request.body) for request in fake.requests) == sorted([len(body), len(BODY), len(body)])


@pytest.mark.parametrize("requests", [20])
async def test_goodbyes_after_every_few_requests_fail_none(front: Front, requests: int) -> None:
    upstream = front.upstream()
    for _ in range(5):
        assert await asyncio.gather(*[ask(upstream) for _ in range(12)]) == [WORDS] * 12
    await upstream.aclose()
    assert len({connection for _, connection in front.wire()}) >= 60 / requests


async def test_a_reply_that_breaks_behind_the_server_is_no_complete_reply(front: Front, fake: FakeBackend) -> None:
    fake.script(FakeReply(WORDS, pause=0.02, cut_after=3))
    upstream = front.upstream()
    reply = await send(upstream, STREAM)
    with pytest.raises(UpstreamError, match="the connection broke"):
        await reply.read(1 << 20)
    assert await ask(upstream) == WORDS
    await asyncio.to_thread(fake.stop)
    reply = await send(upstream)
    reply.close()
    await upstream.aclose()
    assert reply.status == 502
    assert len({connection for _, connection in front.wire()}) == 1


async def test_a_server_that_goes_away_breaks_replies_and_then_refuses(front: Front, fake: FakeBackend) -> None:
    fake.default = FakeReply(WORDS, pause=0.2)
    upstream = front.upstream()
    reply = await send(upstream, STREAM)
    await anext(reply.chunks)
    front.process.terminate()
    front.process.wait(20)
    with pytest.raises(UpstreamError, match="the connection broke"):
        await reply.read(1 << 20)
    with pytest.raises(UpstreamError, match=r"cannot connect \(ConnectionRefusedError\)"):
        await send(upstream)
    await upstream.aclose()


def test_the_whole_gateway_before_such_a_backend(front: Front, fake: FakeBackend, serving: Callable[..., Any]) -> None:
    backend = {"name": "b0", "model": "m", "url": front.url, "transport": "http2", **({"ca": front.ca} if front.ca else {})}
    routes = [{"name": "chat", "description": "Chat.", "backends": ["b0"]}, {"name": "other", "backends": ["b0"]}]
    door = serving(backends=[backend], routes=routes)
    question = {"model": "chat", "messages": [{"role": "user", "content": "hi"}]}
    for _ in range(3):
        status, headers, answer = door.request("POST", "/v1/chat/completions", question)
        assert (status, json.loads(answer)["choices"][0]["message"]["content"]) == (200, WORDS)
        assert headers["x-fingerpost-backend"] == "b0"
        assert not [name for name in headers if name.startswith(":")]
    status, _, answer = door.request("POST", "/v1/chat/completions", {**question, "stream": True})
    assert (status, answer.endswith(b"data: [DONE]\n\n")) == (200, True)
    assert [told.outcome for told in door.told(4)] == ["completed"] * 4
    assert {protocol for protocol, _ in front.wire()} == {"HTTP/2.0"}
    assert len({connection for _, connection in front.wire()}) == 1
