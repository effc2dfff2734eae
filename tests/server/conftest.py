"""What the tests of the server share: a connection as a request sees it, without a socket."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
import trustme

from fingerpost.server.request import Request


class Wire(asyncio.Transport):
    """Keeps what is written to it."""

    def __init__(self) -> None:
        super().__init__()
        self.written = b""
        self.writes = 0
        self.end = ""

    def write(self, data: Any) -> None:
        self.written += bytes(data)
        self.writes += 1

    def is_closing(self) -> bool:
        return self.end != ""

    def close(self) -> None:
        self.end = "closed"

    def abort(self) -> None:
        self.end = "aborted"


class Line:
    """Stands where a connection is; `bring` lets more of a body come in."""

    def __init__(self) -> None:
        self.transport: Any = Wire()
        self.is_full = False
        self.waits = 0
        self.overs: list[Request] = []

    def wanted(self, request: Request) -> None:
        """Notes nothing: what comes is brought."""

    async def drained(self) -> None:
        self.waits += 1

    def over(self, request: Request) -> None:
        self.overs.append(request)

    def bring(self, request: Request, data: bytes, *, whole: bool = False) -> None:
        if data:
            request.parts.append(data)
            request.size += len(data)
        request.whole = whole
        request.arrived()

    @property
    def head(self) -> bytes:
        return self.transport.written.partition(b"\r\n\r\n")[0]

    @property
    def body(self) -> bytes:
        return self.transport.written.partition(b"\r\n\r\n")[2]

    @property
    def status(self) -> int:
        return int(self.head[9:12])

    @property
    def json(self) -> Any:
        return json.loads(self.body)


@pytest.fixture
def new_line() -> type[Line]:
    return Line


@pytest.fixture(scope="session")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
def tls(authority: trustme.CA, tmp_path: Path) -> dict[str, str]:
    leaf = authority.issue_cert("localhost", "127.0.0.1")
    cert, key = tmp_path / "tls.crt", tmp_path / "tls.key"
    for number, blob in enumerate(leaf.cert_chain_pems):
        blob.write_to_path(cert, append=number > 0)
    leaf.private_key_pem.write_to_path(key)
    return {"cert": str(cert), "key": str(key)}
