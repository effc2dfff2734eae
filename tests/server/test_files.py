"""Files that a serving process follows: a renewed certificate, a changed bundle of authorities, a configuration file."""

from __future__ import annotations

import asyncio
import http.client
import json
import re
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import trustme

from fingerpost import config
from fingerpost.assemble import World, build_world
from fingerpost.server.files import ConfigFile, Watch
from fingerpost.server.serve import build_server
from fingerpost.server.upkeep import Upkeep
from fingerpost.testing import FakeBackend, FakeReply

Until = Callable[[Callable[[], object]], None]
CHAT = "/v1/chat/completions"
STREAM = {"model": "auto", "messages": [{"role": "user", "content": "hi"}], "stream": True}


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


class Secure:
    """A server that speaks TLS with the pair in `cert` and `key`, and follows its files."""

    def __init__(self, folder: Path, authority: trustme.CA, url: str, serving: type[Any], until: Until, more: str = "") -> None:
        self.cert, self.key, self.until = folder / "tls.crt", folder / "tls.key", until
        self.authority = authority
        self.renew()
        file = folder / "fingerpost.yaml"
        file.write_text(f"""
backends: [{{name: b0, model: m, url: "{url}", accepts: [text, image]}}]
routes: [{{name: other, backends: [b0]}}]
classifier: {{use: fixed, route: other}}
server: {{port: 0, tls: {{cert: {self.cert}, key: {self.key}}}{more}}}
""", encoding="utf-8")  # fmt: skip

        def build(before: World | None = None) -> World:
            return build_world(config.load(file, {}).config, [], before)

        self.upkeep = Upkeep(build(), file, build, every=0.02)
        server = build_server(self.upkeep.world, self.upkeep)
        thread = threading.Thread(target=server.run, name="serving", daemon=True)
        thread.start()
        until(lambda: server.listening)
        self.door = serving(server, thread, [], None)
        self.context = ssl.create_default_context()
        authority.configure_trust(self.context)

    def renew(self, *, key: bool = True) -> None:
        """Writes another pair into the files, or its certificate alone, as somebody does who is still at it."""
        self.leaf = self.authority.issue_cert("localhost", "127.0.0.1")
        self.cert.write_bytes(b"".join(blob.bytes() for blob in self.leaf.cert_chain_pems))
        if key:
            self.key.write_bytes(self.leaf.private_key_pem.bytes())

    def served(self, name: str | None = "localhost") -> bytes:
        """The certificate that a new connection gets, with a server name in its greeting or without one."""
        context = self.context
        if name is None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            context.check_hostname = False
            self.authority.configure_trust(context)
        with closing(
            context.wrap_socket(socket.create_connection(("127.0.0.1", self.door.port)), server_hostname=name)
        ) as client:
            return client.getpeercert(binary_form=True) or b""

    @property
    def written(self) -> bytes:
        return ssl.PEM_cert_to_DER_cert(self.leaf.cert_chain_pems[0].bytes().decode())

    def ask(self, method: str, path: str, body: Any = None) -> tuple[int, bytes]:
        with closing(http.client.HTTPSConnection("127.0.0.1", self.door.port, timeout=30, context=self.context)) as client:
            client.request(method, path, body and json.dumps(body))
            with client.getresponse() as answer:
                return answer.status, answer.read()

    def metric(self, name: str) -> float:
        found = re.search(rf"^{re.escape(name)} (\S+)$", self.ask("GET", "/metrics")[1].decode(), re.MULTILINE)
        return float(found[1]) if found else 0.0

    def readyz(self) -> dict[str, Any]:
        return dict(json.loads(self.ask("GET", "/readyz")[1]))


@pytest.fixture
def secure(
    tmp_path: Path, authority: trustme.CA, fake: FakeBackend, serving: Any, eventually: Until
) -> Iterator[Callable[..., Secure]]:
    running: list[Secure] = []
    kind = type(serving())

    def start(**options: Any) -> Secure:
        running.append(Secure(tmp_path, authority, fake.url, kind, eventually, **options))
        return running[-1]

    yield start
    for one in running:
        one.door.stop()


def test_a_renewed_certificate_is_served_to_new_connections_and_cuts_none(
    secure: Callable[..., Secure], fake: FakeBackend, capsys: pytest.CaptureFixture[str]
) -> None:
    fake.default = FakeReply("one two three four five six", pause=0.1)
    one = secure()
    first, answers = one.written, []
    assert (one.served(), one.served(None)) == (first, first)
    kept = http.client.HTTPSConnection("127.0.0.1", one.door.port, timeout=30, context=one.context)
    kept.request("GET", "/health")
    kept.getresponse().read()
    streaming = threading.Thread(target=lambda: answers.append(one.ask("POST", CHAT, STREAM)))
    streaming.start()
    one.until(lambda: fake.requests)
    one.renew()
    one.until(lambda: one.served() == one.written)
    assert one.served(None) == one.written != first
    kept.request("GET", "/health")
    assert kept.getresponse().status == 200
    kept.close()
    streaming.join()
    assert answers[0][0] == 200
    assert answers[0][1].endswith(b"data: [DONE]\n\n")
    assert one.metric('fingerpost_certificate_reload_total{result="ok"}') == 1
    assert one.metric("fingerpost_config_reload_total") == 0
    assert one.readyz()["certificate"] == "ok"
    assert capsys.readouterr().err.count("fingerpost serves a renewed certificate\n") == 1


def test_a_pair_that_does_not_fit_keeps_the_old_one_and_is_told_everywhere_until_it_does(
    secure: Callable[..., Secure], caplog: pytest.LogCaptureFixture
) -> None:
    one = secure()
    first = one.written
    one.renew(key=False)
    one.until(lambda: one.upkeep.certificate_failed)
    assert (one.served(), one.served(None)) == (first, first)
    assert one.readyz()["status"] == "ready"
    assert (one.readyz()["certificate"], one.readyz()["config"]) == ("the last reload failed; the log says why", "ok")
    assert one.metric("fingerpost_certificate_last_reload_ok") == 0
    assert one.metric('fingerpost_certificate_reload_total{result="failed"}') == 1
    assert "the certificate was not renewed, the last good one stays: server.tls.key: " in caplog.text
    assert "does not belong to" in caplog.text
    one.key.write_bytes(one.leaf.private_key_pem.bytes())
    one.until(lambda: one.served() == one.written)
    one.until(lambda: one.metric("fingerpost_certificate_last_reload_ok") == 1)


@pytest.mark.parametrize("spoil", [
    lambda one: one.cert.unlink(), lambda one: one.key.write_bytes(b""),
    lambda one: one.cert.write_bytes(one.cert.read_bytes()[:400]),
])  # fmt: skip
def test_half_a_pair_keeps_the_old_one(secure: Callable[..., Secure], spoil: Callable[[Secure], object]) -> None:
    one = secure()
    first = one.written
    spoil(one)
    one.until(lambda: one.upkeep.certificate_failed)
    assert one.served() == first
    assert one.ask("GET", "/health")[0] == 200


def test_sighup_renews_it_where_files_are_not_followed(secure: Callable[..., Secure]) -> None:
    one = secure(more=", reload: false")
    first = one.written
    one.renew()
    threading.Event().wait(0.2)
    assert one.served() == first
    one.upkeep.ask()
    one.until(lambda: one.served() == one.written)


def test_authorities_of_a_backend_are_read_again_at_a_reload(
    tmp_path: Path, authority: trustme.CA, serving: Any, eventually: Until
) -> None:
    ca, file = tmp_path / "ca.pem", tmp_path / "fingerpost.yaml"
    ca.write_bytes(trustme.CA().cert_pem.bytes())
    file.write_text(f"""
backends: [{{name: b0, model: m, url: "https://127.0.0.1:9/v1", ca: {ca}, accepts: [text, image]}}]
routes: [{{name: other, backends: [b0]}}]
classifier: {{use: fixed, route: other}}
""", encoding="utf-8")  # fmt: skip
    first = build_world(config.load(file, {}).config, [])
    same = build_world(config.load(file, {}).config, [], first)
    assert same.upstreams["b0"] is first.upstreams["b0"]
    ca.write_bytes(authority.cert_pem.bytes())
    other = build_world(config.load(file, {}).config, [], same)
    assert other.upstreams["b0"] is not first.upstreams["b0"]
    asyncio.run(first.gateway.aclose())
    asyncio.run(other.gateway.aclose())


async def test_a_file_that_is_being_written_is_read_when_it_stays_as_it_is(tmp_path: Path) -> None:
    file = tmp_path / "file"
    watch = Watch([file])
    assert not await watch.changed()
    await asyncio.to_thread(file.write_text, "one")
    assert not await watch.changed()
    await asyncio.to_thread(file.write_text, "one two")
    assert not await watch.changed()
    assert await watch.changed()
    assert not await watch.changed()
    assert await watch.changed(asked=True)
    await asyncio.to_thread(file.unlink)
    assert [await watch.changed() for _ in range(3)] == [False, True, False]


async def test_what_was_seen_before_counts(tmp_path: Path) -> None:
    file = tmp_path / "file"
    await asyncio.to_thread(file.write_text, "one")
    watch = Watch([file], (None,))
    assert [await watch.changed() for _ in range(3)] == [False, True, False]


def test_what_the_command_line_says_counts_more_than_the_file_and_the_text_is_remembered(tmp_path: Path) -> None:
    file = tmp_path / "fingerpost.yaml"
    written = "backends: [{name: b, model: m, url: 'http://localhost'}]\nroutes: [{name: other, backends: [b]}]\n"
    file.write_text(written, encoding="utf-8")
    read = ConfigFile(file, {"port": 1234, "workers": 3})
    server = read.read().config.server
    assert (server.host, server.port, server.workers) == ("127.0.0.1", 1234, 3)
    assert read.text == written
    assert read.looks[0] is not None
    assert read.parse(written.replace("localhost", "elsewhere")).config.backends[0].url == "http://elsewhere"
