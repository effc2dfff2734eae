"""The ledger in a real Redis that goes away and comes back."""

from __future__ import annotations

import asyncio
import json
import logging
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from fingerpost.clients import Client, Limits, Standing
from fingerpost.clients.keys import hash_of, new_key
from fingerpost.clients.shared import PAUSE, Shared
from fingerpost.errors import FingerpostError
from fingerpost.testing import FakeBackend, FakeReply

CHAT = "/v1/chat/completions"
HI = {"model": "auto", "messages": [{"role": "user", "content": "hi"}]}
KEY = new_key()
TEAM = Client("team", limits=Limits(requests=3, tokens=1000, usd=2.0))


class RedisServer:
    """A redis-server on a loopback port, which keeps nothing on disk."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        with closing(socket.create_server(("127.0.0.1", 0))) as free:
            self.port = free.getsockname()[1]
        self.start()

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    def start(self) -> None:
        command = ["redis-server", "--port", str(self.port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"]
        self.running = subprocess.Popen([*command, "--dir", str(self.folder)], stdout=subprocess.DEVNULL)
        for _ in range(1000):
            with closing(socket.socket()) as probe:
                if probe.connect_ex(("127.0.0.1", self.port)) == 0:
                    return
            time.sleep(0.01)

    def kill(self) -> None:
        self.running.kill()
        self.running.wait()


@pytest.fixture
def redis(tmp_path: Path) -> Iterator[RedisServer]:
    if shutil.which("redis-server") is None:
        pytest.fail("these tests need redis-server; scripts/test installs it where it can (Debian: redis-server)")
    server = RedisServer(tmp_path)
    yield server
    server.kill()


class Clock:
    def __init__(self) -> None:
        self.at = time.perf_counter()

    def __call__(self) -> float:
        return self.at


def standing(found: Standing | None) -> tuple[Any, int, int]:
    assert found is not None
    return found.refused, int(found.left["requests"]), int(found.left["tokens"])


async def test_two_processes_count_together(redis: RedisServer) -> None:
    one, two = Shared(redis.url, timeout=5), Shared(redis.url, timeout=5)
    assert standing(await one.take(TEAM, 400)) == (None, 2, 600)
    assert standing(await two.take(TEAM, 500)) == (None, 1, 100)
    refused = await one.take(TEAM, 200)
    assert standing(refused) == ("tokens", 1, 100)
    assert refused is not None
    assert refused.retry_after == pytest.approx(6.0, abs=2.0)
    assert standing(await one.take(TEAM, 1)) == (None, 0, 99)
    assert standing(await two.take(TEAM, 1)) == ("requests", 0, 99)
    assert standing(await two.take(Client("other", limits=TEAM.limits), 1)) == (None, 2, 999)
    await one.aclose()
    await two.aclose()


async def test_what_is_settled_is_seen_by_all_and_a_spent_budget_refuses(redis: RedisServer) -> None:
    one, two = Shared(redis.url, timeout=5), Shared(redis.url, timeout=5)
    await one.take(TEAM, 900)
    one.settle(TEAM, -800, 1.5)
    await one.flush()
    assert standing(await two.take(TEAM, 100)) == (None, 1, 800)
    two.settle(TEAM, 0, 0.5)
    await two.aclose()  # brings what is owed
    spent = await one.take(TEAM, 1)
    assert spent is not None
    assert spent.refused == "budget"
    assert 0 < (spent.retry_after or 0) <= 31 * 86400
    await one.aclose()


async def test_giving_back_more_than_was_taken_gives_no_credit(redis: RedisServer) -> None:
    ledger = Shared(redis.url, timeout=5)
    ledger.settle(TEAM, -5000, 0)
    assert standing(await ledger.take(TEAM, 1000)) == (None, 2, 0)
    await ledger.aclose()


async def test_nothing_stays_in_redis_but_names_and_numbers_that_expire(redis: RedisServer) -> None:
    ledger = Shared(redis.url, timeout=5)
    await ledger.take(TEAM, 10)
    ledger.settle(TEAM, 0, 0.25)
    await ledger.flush()
    keys = {key.decode() async for key in ledger._redis.scan_iter()}
    assert {key.rpartition(":")[0] for key in keys} == {"fingerpost:{team}"}
    assert len(keys) == 3
    for key in keys:
        float(await ledger._redis.get(key))
        assert await ledger._redis.ttl(key) > 0
    await ledger.aclose()


@pytest.mark.parametrize("when_down", ["local", "allow", "refuse"])
async def test_without_redis_requests_go_on_as_configured_and_it_learns_what_it_missed(
    redis: RedisServer, when_down: Any, caplog: pytest.LogCaptureFixture
) -> None:
    clock = Clock()
    ledger = Shared(redis.url, when_down, timeout=2, clock=clock)
    assert standing(await ledger.take(TEAM, 0)) == (None, 2, 1000)
    ledger.settle(TEAM, 0, 0.5)
    await ledger.flush()
    redis.kill()
    with caplog.at_level(logging.WARNING, "fingerpost.clients"):
        if when_down == "refuse":
            for _ in range(2):
                with pytest.raises(FingerpostError) as refused:
                    await ledger.take(TEAM, 0)
                assert (refused.value.status, refused.value.code) == (503, "limits_unavailable")
        elif when_down == "allow":
            assert [await ledger.take(TEAM, 0) for _ in range(5)] == [None] * 5
        else:
            taken = [await ledger.take(TEAM, 0) for _ in range(4)]
            assert [one and one.refused for one in taken] == [None, None, None, "requests"]
        ledger.settle(TEAM, 0, 0.75)
        await ledger.flush()
        redis.start()
        clock.at += PAUSE
        assert standing(await ledger.take(TEAM, 0))[0] is None
        await ledger.flush()
    assert [record.message.split(" (")[0] for record in caplog.records] == [
        "Redis does not count limits", "Redis counts limits again",
    ]  # fmt: skip
    # The one that was killed has forgotten; what was settled meanwhile is there all the same.
    found = [float(await ledger._redis.get(key)) async for key in ledger._redis.scan_iter("*-*")]
    assert found == [0.75]
    await ledger.aclose()


async def test_while_it_is_down_a_budget_goes_on_from_what_was_last_known(redis: RedisServer) -> None:
    ledger = Shared(redis.url, timeout=2, clock=Clock())
    await ledger.take(TEAM, 0)
    ledger.settle(TEAM, 0, 1.5)
    await ledger.flush()
    await ledger.take(TEAM, 0)
    redis.kill()
    ledger.settle(TEAM, 0, 0.5)
    await ledger.flush()
    refused = await ledger.take(TEAM, 0)
    assert refused is not None
    assert refused.refused == "budget"
    await ledger.aclose()


async def test_a_redis_that_does_not_answer_is_asked_once_a_second_at_most() -> None:
    asked = []

    async def swallow(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked.append(await reader.read(100))
        await reader.read()
        writer.close()

    silent = await asyncio.start_server(swallow, "127.0.0.1", 0)
    clock = Clock()
    ledger = Shared(f"redis://127.0.0.1:{silent.sockets[0].getsockname()[1]}/0", "allow", clock=clock)
    assert [await ledger.take(TEAM, 0) for _ in range(50)] == [None] * 50
    clock.at += PAUSE
    assert await ledger.take(TEAM, 0) is None
    assert len(asked) == 2
    await ledger.aclose()
    silent.close()


async def test_a_request_that_is_cancelled_loses_nothing_that_is_owed() -> None:
    started = asyncio.Event()

    async def swallow(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        started.set()
        while await reader.read(100):
            pass
        writer.close()

    silent = await asyncio.start_server(swallow, "127.0.0.1", 0)
    ledger = Shared(f"redis://127.0.0.1:{silent.sockets[0].getsockname()[1]}/0", "allow", timeout=1)
    ledger.settle(TEAM, 0, 0.5)
    flushing = asyncio.ensure_future(ledger.flush())
    await started.wait()
    flushing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await flushing
    assert [owed.usd for owed in ledger._owed.values()] == [0.5]
    await ledger._redis.aclose()
    silent.close()


# The server with it


@pytest.mark.parametrize(("when_down", "statuses"), [
    ("local", [200, 200, 429]), ("allow", [200, 200, 200]), ("refuse", [503, 503, 503]),
])  # fmt: skip
def test_a_server_serves_on_while_redis_is_away_and_knows_every_client(
    redis: RedisServer, serving: Callable[..., Any], fake: FakeBackend, when_down: str, statuses: list[int]
) -> None:
    keys = [{"name": "team", "hash": hash_of(KEY), "requests_per_minute": 2, "budget": {"usd": 1}}]
    door = serving(keys=keys, limits={"redis": redis.url, "when_down": when_down, "timeout": 2})
    headers = {"authorization": f"Bearer {KEY}"}
    fake.default = FakeReply("word")
    assert [door.request("POST", CHAT, HI, headers)[0] for _ in range(3)] == [200, 200, 429]
    redis.kill()
    assert [door.request("POST", CHAT, HI, headers)[0] for _ in range(3)] == statuses
    status, _, content = door.request("POST", CHAT, HI, {"authorization": "Bearer fp-x"})
    assert (status, json.loads(content)["error"]["code"]) == (401, "invalid_api_key")
    assert door.request("GET", "/readyz")[0] == 200
    redis.start()
    time.sleep(PAUSE + 0.1)
    assert [door.request("POST", CHAT, HI, headers)[0] for _ in range(3)] == [200, 200, 429]
