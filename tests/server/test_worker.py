"""One worker, in this process; the test speaks for its parent."""

from __future__ import annotations

import asyncio
import http.client
import signal
import socket
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import Any

import pytest

from fingerpost.assemble import build_world
from fingerpost.observers.totals import total
from fingerpost.server.files import ConfigFile
from fingerpost.server.serve import build_server
from fingerpost.server.talk import Begin, Count, Counted, Gather, Leaving, Line, Listen, Ready, Reload, Said, Sum, Took
from fingerpost.server.upkeep import Upkeep
from fingerpost.server.worker import Worker

TEXT = """
backends: [{name: b0, model: m, url: "http://127.0.0.1:9/v1", accepts: [text, image]}]
routes: [{name: other, backends: [b0]}]
classifier: {use: fixed, route: other}
server: {reload: false}
"""


class Parent:
    """The other end of a worker's line: what it heard, and where the worker listens once it may."""

    def __init__(self, line: Line, ports: list[int]) -> None:
        self.line = line
        self.port, self.port_of_another = ports
        self.server: Worker

    async def admit(self) -> None:
        self.line.say(Listen([1]))
        async with asyncio.timeout(20):
            while not self.server.listening:  # noqa: ASYNC110
                await asyncio.sleep(0.01)

    async def hear(self, kind: type[Any]) -> Any:
        async with asyncio.timeout(20):
            async for said in self.line:
                if isinstance(said, kind):
                    return said
        return None

    async def get(self, path: str, port: int | None = None) -> tuple[int, str]:
        def ask() -> tuple[int, str]:
            with closing(http.client.HTTPConnection("127.0.0.1", port or self.port, timeout=30)) as client:
                client.request("GET", path)
                with client.getresponse() as answer:
                    return answer.status, answer.read().decode()

        return await asyncio.to_thread(ask)


Employ = Callable[..., Any]


@pytest.fixture
def employ(tmp_path: Path) -> Employ:
    """What starts a worker, in `async with`, and yields who speaks for its parent."""

    @asynccontextmanager
    async def start() -> AsyncIterator[Parent]:
        path = tmp_path / "fingerpost.yaml"
        await asyncio.to_thread(path.write_text, TEXT, encoding="utf-8")
        ours, theirs = socket.socketpair()
        bound = [socket.socket() for _ in range(2)]
        for one in bound:
            one.bind(("127.0.0.1", 0))
        parent = Parent(await Line.over(ours), [one.getsockname()[1] for one in bound])
        begin = Begin(str(path), {}, {}, TEXT, (None,), 7, theirs.detach(), [[one.detach()] for one in bound], [])
        file = ConfigFile(path, begin.instead, begin.text, begin.looks)
        world = build_world(file.parse(begin.text).config, [])
        upkeep = Upkeep(world, file.path, file.rebuild, seen=begin.looks)
        parent.server = build_server(world, upkeep, Worker)
        working = asyncio.ensure_future(parent.server.work(begin, upkeep, file))
        try:
            assert await parent.hear(Ready) == Ready()
            yield parent
        finally:
            await parent.line.close()
            await asyncio.wait_for(working, 20)

    return start


async def test_it_listens_only_when_it_may_and_stops_when_its_parent_is_gone(employ: Employ) -> None:
    async with employ() as parent:
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", parent.port))
        await parent.admit()
        assert (await parent.get("/health"))[0] == 200
        assert '"worker":7' in (await parent.get("/readyz"))[1]
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", parent.port))


async def test_it_takes_connections_for_one_that_is_not_there_as_long_as_it_is_told(employ: Employ) -> None:
    async with employ() as parent:
        await parent.admit()
        for numbers in [1, 2], [1], [1, 2]:
            parent.line.say(Listen(numbers))
            parent.line.say(Count(1))
            while (await parent.hear(Counted)).asked != 1:
                pass
            assert parent.server._taking.keys() == {0, *numbers}
            assert len(parent.server.servers) == len(numbers)
        for port in parent.port, parent.port_of_another:
            assert (await parent.get("/health", port))[0] == 200


async def test_one_that_leaves_says_so_and_takes_nothing_more(employ: Employ) -> None:
    async with employ() as parent:
        await parent.admit()
        parent.server.handle_exit(signal.SIGTERM, None)
        parent.line.say(Listen([1, 2]))
        assert await parent.hear(Leaving) == Leaving()
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", parent.port_of_another))


async def test_a_signal_while_it_waits_for_the_others_ends_it_before_it_listens(employ: Employ) -> None:
    async with employ() as parent:
        parent.server.handle_exit(signal.SIGTERM, None)
        assert isinstance(await parent.hear(Counted), Counted)
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", parent.port))
    assert parent.server.servers == []


async def test_it_says_its_metrics_by_itself_and_when_asked_and_answers_with_those_of_all(employ: Employ) -> None:
    async with employ() as parent:
        await parent.admit()
        by_itself: Counted = await parent.hear(Counted)
        assert by_itself.asked == 0
        parent.line.say(Count(3))
        asked: Counted = await parent.hear(Counted)
        while asked.asked == 0:
            asked = await parent.hear(Counted)
        assert asked.asked == 3
        assert "fingerpost_in_flight 0.0" in asked.metrics
        asking = asyncio.ensure_future(parent.get("/metrics"))
        gather: Gather = await parent.hear(Gather)
        parent.line.say(Sum("for somebody who waits no longer", gather.asked + 1))
        parent.line.say(Sum(total([gather.metrics, gather.metrics]), gather.asked))
        assert (await asking)[1] == total([gather.metrics, gather.metrics])


async def test_it_reports_again_and_again_though_nothing_has_changed_for_that_shows_that_it_lives(employ: Employ) -> None:
    async with employ() as parent:
        await parent.admit()
        reports = [await parent.hear(Counted) for _ in range(3)]
        assert [one.asked for one in reports] == [0, 0, 0]
        assert reports[1] == reports[2]


async def test_sums_that_come_as_nobody_waits_for_them_any_more_harm_nobody(employ: Employ) -> None:
    async with employ() as parent:
        await parent.admit()
        parent.server.patience = 0.2
        asking = asyncio.ensure_future(parent.get("/metrics"))
        gather: Gather = await parent.hear(Gather)
        parent.line.say(Sum(gather.metrics, gather.asked))
        time.sleep(0.5)  # noqa: ASYNC251  (so that the worker, in this very loop, finds its time over and the sums there at once)
        assert (await asking)[0] == 500
        assert (await parent.get("/health"))[0] == 200


async def test_without_an_answer_it_has_no_metrics_rather_than_its_own_alone(employ: Employ) -> None:
    async with employ() as parent:
        await parent.admit()
        parent.server.patience = 0.1
        status, content = await parent.get("/metrics")
        assert (status, "not to be had" in content) == (500, True)


async def test_it_reloads_when_it_is_told_and_says_what_it_took(employ: Employ, tmp_path: Path) -> None:
    async with employ() as parent:
        changed = TEXT.replace("other", "talk").replace("{use: fixed, route: talk}", "{use: fixed, route: other}")
        changed = changed.replace("routes: [", "routes: [{name: other, backends: [b0]}, ")
        await asyncio.to_thread((tmp_path / "fingerpost.yaml").write_text, changed, encoding="utf-8")
        await parent.admit()
        parent.line.say(Reload())
        took: Took = await parent.hear(Took)
        assert took.text == changed
        assert took.looks[0] is not None
        assert '"talk"' in (await parent.get("/v1/models"))[1]


async def test_a_line_that_is_cut_off_is_not_read_and_one_who_is_gone_hears_nothing() -> None:
    ours, theirs = socket.socketpair()
    theirs.sendall(b'{"type":"Ready"}\n{"type":"Co')
    theirs.close()
    line = await Line.over(ours)
    heard: list[Said] = [said async for said in line]
    await line.close()
    line.say(Ready())
    assert heard == [Ready()]


async def test_a_line_waits_for_one_who_does_not_listen_and_for_nobody_who_is_gone() -> None:
    ours, theirs = socket.socketpair()
    line = await Line.over(ours)
    await asyncio.wait_for(line.sent(), 20)
    line.say(Counted("x" * 10_000_000))
    sending = asyncio.ensure_future(line.sent())
    await asyncio.sleep(0.1)
    assert not sending.done()
    theirs.close()
    await asyncio.wait_for(sending, 20)
    await line.close()


async def test_what_was_said_is_heard_out_where_the_other_end_stays_open() -> None:
    ours, theirs = socket.socketpair()
    with theirs:
        theirs.sendall(b'{"type":"Ready"}\n' * 3)
        line = await Line.over(ours)
        line.hear_out()
        assert [said async for said in line] == [Ready()] * 3
        await line.close()
        line.hear_out()
