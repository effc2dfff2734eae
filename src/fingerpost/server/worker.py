"""One of several processes that share a port; `fingerpost.server.workers` starts it and says how they work together."""

from __future__ import annotations

import asyncio
import io
import itertools
import os
import signal
import socket
import sys
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import Any

import msgspec
import uvicorn

from fingerpost.assemble import build_world
from fingerpost.config.shape import ServerConfig
from fingerpost.errors import FingerpostError
from fingerpost.observers.lines import WholeLines
from fingerpost.observers.log import JsonLog
from fingerpost.server.files import ConfigFile
from fingerpost.server.serve import Server, build_server, settle
from fingerpost.server.talk import EVERY, Begin, Count, Counted, Gather, Leaving, Line, Listen, Ready, Reload, Sum, Took
from fingerpost.server.upkeep import Upkeep, keep_fixed

PATIENCE = 5.0
"""Seconds that the parent has to add up the metrics of all."""


class Worker(Server):
    """A server that takes connections from sockets which it has inherited, as its parent says."""

    patience = PATIENCE

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._may_begin = asyncio.Event()
        self._line: Line
        self._sockets: dict[int, list[socket.socket]] = {}
        self._taking: dict[int, list[asyncio.Server]] = {}
        self._numbers = itertools.count(1)
        self._sums: dict[int, asyncio.Future[str]] = {}

    async def work(self, begin: Begin, upkeep: Upkeep, file: ConfigFile) -> None:
        """Serves until a signal asks to stop, or the parent is gone."""
        self._line = await Line.over(socket.socket(fileno=begin.line))
        for number, inherited in enumerate((begin.admin, *begin.main)):
            self._sockets[number] = [socket.socket(fileno=one) for one in inherited]
        upkeep.number, upkeep.summed = begin.number, self._summed
        upkeep.taken = lambda: self._line.say(Took(file.text or "", file.looks))
        async with asyncio.TaskGroup() as group:
            talking = [group.create_task(self._listen(upkeep)), group.create_task(self._report(upkeep))]
            try:
                await self.serve()
            finally:
                for task in talking:
                    task.cancel()
                self._line.say(Counted(upkeep.world.report().decode()))
                await self._line.close()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Gets ready and says so; takes connections when all others are ready too, unless it is to stop meanwhile."""
        await uvicorn.Server.startup(self, [])
        settle()
        self._line.say(Ready())
        await self._may_begin.wait()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Leaves new connections to the others and lets running requests finish."""
        self._line.say(Leaving())
        for one in itertools.chain.from_iterable(self._sockets.values()):
            one.close()
        await super().shutdown(sockets)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """A signal: stops, also where it still waits for the others."""
        super().handle_exit(sig, frame)
        self._may_begin.set()

    async def _listen(self, upkeep: Upkeep) -> None:
        """Does what the parent says; stops when there is none any more."""
        async for said in self._line:
            match said:
                case Listen(numbers):
                    await self._take_from(numbers)
                case Reload():
                    upkeep.ask()
                case Count(asked):
                    self._line.say(Counted(upkeep.world.report().decode(), asked))
                case Sum(metrics, asked):
                    if (waiting := self._sums.pop(asked, None)) is not None and not waiting.done():
                        waiting.set_result(metrics)
        self.handle_exit(signal.SIGTERM, None)

    async def _take_from(self, numbers: Sequence[int]) -> None:
        """Takes connections from the sockets of these workers alone, and those of administrators."""
        wanted = set() if self.should_exit else {0, *numbers}
        for number in wanted - self._taking.keys():
            config = self.config if number else self.admin or self.config
            # A copy, for a socket is closed with its server, and may be wanted again.
            self._taking[number] = [await self.listen(config, sock=one.dup()) for one in self._sockets[number]]
        for number in self._taking.keys() - wanted:
            for server in self._taking.pop(number):
                server.close()
                self.servers.remove(server)
        self.listening = bool(wanted)
        self._may_begin.set()

    async def _report(self, upkeep: Upkeep) -> None:
        while True:
            await asyncio.sleep(EVERY)
            self._line.say(Counted(upkeep.world.report().decode()))
            await self._line.sent()

    async def _summed(self, metrics: bytes) -> bytes:
        """The metrics of all workers, given those of this one."""
        asked = next(self._numbers)
        waiting = self._sums[asked] = asyncio.get_running_loop().create_future()
        self._line.say(Gather(metrics.decode(), asked))
        try:
            async with asyncio.timeout(self.patience):
                summed: str = await waiting
                return summed.encode()
        except TimeoutError:
            raise FingerpostError("the metrics of the other workers are not to be had; the log may say why") from None
        finally:
            self._sums.pop(asked, None)


def main() -> int:
    """Serves as what comes in on standard input says, and ends the process; returns 2 where the configuration is wrong.

    The process's exit code is 0, or 1 when it could not start.
    """
    begin = msgspec.json.decode(sys.stdin.buffer.read(), type=Begin)
    for one in (begin.line, *begin.admin, *itertools.chain.from_iterable(begin.main)):
        os.set_inheritable(one, False)  # a program that a plugin starts would hold the port when the server is gone
    file = ConfigFile(Path(begin.path), begin.instead, begin.text, begin.looks)
    try:
        output = io.TextIOWrapper(io.BufferedWriter(WholeLines(sys.stdout.fileno()), 1_000_000), encoding="utf-8")
        config = keep_fixed(file.parse(begin.text).config, ServerConfig.model_validate(begin.fixed))
        world = build_world(config, [JsonLog(output)])
        upkeep = Upkeep(world, file.path, file.rebuild, seen=begin.looks)
        server = build_server(world, upkeep, Worker)
    except FingerpostError as error:
        print(error.message, file=sys.stderr)
        return 2
    code = 0
    with asyncio.Runner(loop_factory=server.config.get_loop_factory()) as runner:
        try:
            runner.run(server.work(begin, upkeep, file))
        except SystemExit:  # uvicorn's word for a failed start; it has logged the cause
            code = 1
        sys.stdout.flush()
        os._exit(code)  # all is done: a thread of a reload, or of a plugin that blocks, would only hold up the end
