"""Several processes behind one port: the parent, which serves nothing itself and keeps its workers running.

The parent checks the configuration once, binds the port (and that of the administrators) and starts workers, each a new
interpreter that runs `fingerpost.server.worker`: nothing is forked, so no library meets threads or locks of another process.

Each worker has a listening socket of its own on the one port (SO_REUSEPORT), and Linux spreads connections over them evenly;
from one socket for all, whoever wakes first would take most of them, and keep them. The parent holds all of these sockets open,
and every worker inherits all. So nothing is lost that waits in the queue of a worker which dies, leaves or has yet to come: the
others take from its socket until it is there (`Listen`). Nobody listens before all are ready. Where the system does not spread
connections, all share one socket.

Parent and worker talk over a pair of sockets (`fingerpost.server.talk`), which needs no file and no port and which nobody else
reaches. A worker whose parent is gone stops. Metrics meet here: the worker that is asked for them asks the parent, which asks
the others and adds up. What a dead worker has counted stays in the sums, so that a counter never goes down.

A worker that dies is replaced, with the configuration that the others serve (`Took`), whatever the file says by then: at once,
then after longer and longer pauses. One that dies young too many times in a row ends the whole. One that cannot start, such as
while the certificate is being replaced, is tried again for as long as others serve.

Workers report every second (`Counted`). For one that is silent the others take new connections until it speaks again; one that
stays silent hangs, and is killed. Nobody is hurried at the start, while a model loads and nobody waits for its connections.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import sys
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from functools import partial
from itertools import chain

import msgspec

from fingerpost.config.shape import Config
from fingerpost.observers.totals import lasting, total
from fingerpost.server.auth import check_exposure, find_unshared
from fingerpost.server.files import ConfigFile, build_tls, tell
from fingerpost.server.serve import could_not_start, on_signals, say
from fingerpost.server.sockets import Sockets, bind, refuse_taken
from fingerpost.server.talk import EVERY, Begin, Count, Counted, Gather, Leaving, Line, Listen, Ready, Reload, Sum, Took
from fingerpost.server.upkeep import FIXED

YOUNG = 10.0
"""Seconds: a worker that dies sooner after it was ready has died young."""

PAUSES = (0.0, 0.5, 1.0, 2.0, 4.0)
"""Seconds before a worker that has died young, or could not start, so many times in a row is replaced."""

LATE = 3
"""Reports that a worker owes when others take its new connections, until its next one."""

HUNG = 30
"""Reports that a worker owes when it is killed. Reloads and large bodies hold an event loop up for much less, even on a machine
that is short of processors; a wrong guess breaks requests, a late one only keeps those waiting that the worker has."""

PATIENCE = 2.0
"""Seconds that a worker has to say its metrics; those that it said last, a second ago or so, count where it is late."""

FINISHED = (0, -signal.SIGINT, -signal.SIGTERM)
"""Exit codes of workers that did what they were told: one that had not begun to serve knows no other answer to a signal."""

BACKLOG = 2048

_START = """
import json, signal, sys
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGHUP])
sys.path[:] = json.loads(sys.argv[1])
from fingerpost.server.worker import main
sys.exit(main())
"""


def serve_together(file: ConfigFile, config: Config) -> int:
    """Serves with `server.workers` processes until SIGTERM or Ctrl-C; 0, or the exit code of what could not be.

    Raises:
        ConfigError: as for a single process.
    """
    check_exposure(config)
    if config.server.tls is not None:
        build_tls(config.server.tls)
    tell(find_unshared(config))
    server = config.server
    wanted = [("server", server.host, server.port, server.workers)]
    if server.admin is not None and server.admin.port is not None:
        wanted.append(("server.admin", server.admin.host, server.admin.port, 1))
    bound: list[list[Sockets]] = []
    with ExitStack() as opened:
        for what, host, port, copies in wanted:
            try:
                bound.append(bind(opened, host, port, copies))
            except OSError as error:
                print(f"{what}: cannot listen on {host}:{port}: {error.strerror or error}", file=sys.stderr)
                return could_not_start(config)
        return asyncio.run(Workers(file, config, bound[0], bound[1][0] if len(bound) > 1 else ()).run())


@dataclass(frozen=True, slots=True)
class _End:
    """How a worker ended, with the exit code that subprocess gives, and how many seconds it was ready; None: never."""

    how: str
    code: int
    lived: float | None = None

    @property
    def young(self) -> bool:
        """Whether that speaks against starting another; 0 is the code of one that somebody told to stop."""
        return self.lived is not None and self.lived < YOUNG and self.code != 0


class _Worker:
    """A running worker: its process, the line to it, and what it has said of itself."""

    def __init__(self, process: asyncio.subprocess.Process, line: Line) -> None:
        self.process = process
        self.line = line
        self.ready_at: float | None = None
        self.leaving = False
        self.silent = 0
        self.metrics = ""
        self.asked: dict[int, asyncio.Future[None]] = {}

    @property
    def there(self) -> bool:
        """Whether it takes connections, as far as is known."""
        return self.ready_at is not None and not self.leaving and self.silent < LATE

    def signal(self, number: int) -> None:
        """Sends it. Not by `Process.send_signal`, which takes the exit code of one that has just ended from the event loop."""
        if self.process.returncode is None:
            with suppress(ProcessLookupError):
                os.kill(self.process.pid, number)


class Workers:
    """Keeps `server.workers` workers running behind bound sockets.

    One that dies young once more than there are `pauses` ends all; one that is silent for `hung` reports is killed.
    """

    def __init__(
        self,
        file: ConfigFile,
        config: Config,
        main: Sequence[Sockets],
        admin: Sockets = (),
        pauses: Sequence[float] = PAUSES,
        patience: float = PATIENCE,
        hung: int = HUNG,
    ) -> None:
        self._file = file
        self._config = config
        self._pauses = pauses
        self._patience = patience
        self._hung = hung
        self._main = main
        self._admin = admin
        self._running: dict[int, _Worker] = {}
        self._first, self._stopping = asyncio.Event(), asyncio.Event()
        self._open = self._reload_due = False
        self._code = 0
        self._gone = ""
        self._replaced = self._asked = 0

    async def run(self) -> int:
        """Serves until a signal asks to stop; 0, or 1 or more when it could not go on."""
        interrupt, end = (partial(self._stop, number) for number in (signal.SIGINT, signal.SIGTERM))
        with on_signals({signal.SIGINT: interrupt, signal.SIGTERM: end, signal.SIGHUP: self._reload}):
            async with asyncio.TaskGroup() as group:
                for number in range(1, self._config.server.workers + 1):
                    group.create_task(self._keep(number, group))
        return self._code

    async def _keep(self, number: int, group: asyncio.TaskGroup) -> None:
        """Keeps one worker running. The first of all starts alone: what is wrong at the start is told once."""
        died = failed = 0
        if number > 1:
            await self._first.wait()
        while not self._stopping.is_set():
            end = await self._live(number, group)
            if self._stopping.is_set():
                self._code = self._code or (0 if end.code in FINISHED else 1)
                return
            if not self._open:
                return self._give_up(f"worker {number} could not start ({end.how})", end.code)
            if end.lived is None:
                failed += 1
                told = f"worker {number} could not start ({end.how}); it is tried again"
                if failed > len(self._pauses) and not any(one.ready_at is not None for one in self._running.values()):
                    return self._give_up(f"worker {number} could not start ({end.how}), and no other one serves", 1)
            else:
                died, failed = died + 1 if end.young else 0, 0
                told = f"worker {number} ended ({end.how}); it is replaced"
                if died > len(self._pauses):
                    why = f"worker {number} died {died} times in a row soon after its start (last: {end.how})"
                    return self._give_up(why, 1)
            pause = self._pauses[min(max(died + failed - 1, 0), len(self._pauses) - 1)]
            print(f"{told}{f' in {pause:g} s' if pause else ''}", file=sys.stderr)
            with suppress(TimeoutError):
                await asyncio.wait_for(self._stopping.wait(), pause)

    async def _live(self, number: int, group: asyncio.TaskGroup) -> _End:
        """The end of a worker, which begins and serves meanwhile."""
        try:
            worker = await self._start(number)
        except OSError as error:  # no memory, or no room for another process or file
            return _End(str(error.strerror or error), 1)
        hearing = group.create_task(self._listen(worker, group))
        watching = group.create_task(self._watch(number, worker))
        code = await worker.process.wait()
        watching.cancel()
        worker.line.hear_out()
        await hearing
        del self._running[number]
        self._spread()
        how = f"signal {-code}" if code < 0 else f"exit code {code}"
        now = asyncio.get_running_loop().time()
        return _End(how, code, None if worker.ready_at is None else now - worker.ready_at)

    async def _start(self, number: int) -> _Worker:
        ours, theirs = socket.socketpair()
        main = [[one.fileno() for one in copy] for copy in self._main]
        admin = [one.fileno() for one in self._admin]
        with theirs:
            line = theirs.fileno()
            process = await asyncio.create_subprocess_exec(
                sys.executable, "-c", _START, json.dumps(sys.path), "fingerpost worker", str(number),
                stdin=asyncio.subprocess.PIPE,
                pass_fds=[line, *admin, *chain.from_iterable(main)],
                start_new_session=True,  # a terminal's Ctrl-C comes to the parent alone, which passes it on
            )  # fmt: skip
        worker = self._running[number] = _Worker(process, await Line.over(ours))
        text, looks = self._file.text or "", self._file.looks
        fixed = self._config.server.model_dump(include=set(FIXED))
        begin = Begin(str(self._file.path), dict(self._file.instead), fixed, text, looks, number, line, main, admin)
        assert process.stdin is not None
        process.stdin.write(msgspec.json.encode(begin))
        process.stdin.close()
        if self._reload_due:
            worker.line.say(Reload())
        if self._stopping.is_set():
            worker.signal(signal.SIGTERM)
        return worker

    async def _watch(self, number: int, worker: _Worker) -> None:
        """Has the others serve for a worker that is silent, and kills one that stays so.

        Reports that are due are counted, not the time: while all processes stand still, as on a suspended machine, none is.
        """
        while worker.silent < self._hung or not (worker.ready_at is not None or self._stopping.is_set()):
            await asyncio.sleep(EVERY)
            worker.silent += 1
            if worker.silent == LATE:
                self._spread()
        worker.signal(signal.SIGKILL)  # one that hangs knows no other signal
        print(f"worker {number} hangs: it has said nothing for {worker.silent * EVERY:g} s; it is killed", file=sys.stderr)

    async def _listen(self, worker: _Worker, group: asyncio.TaskGroup) -> None:
        """Takes what a worker says, until it has ended."""
        async for said in worker.line:
            late, worker.silent = worker.silent >= LATE, 0
            if late:
                self._spread()
            match said:
                case Ready():
                    worker.ready_at = asyncio.get_running_loop().time()
                    self._replaced += self._open
                    self._first.set()
                    self._spread()
                case Leaving():
                    worker.leaving = True
                    self._spread()
                case Took(text, looks):
                    self._file.text, self._file.looks, self._reload_due = text, looks, False
                case Counted(metrics, asked):
                    worker.metrics = metrics
                    if (waiting := worker.asked.pop(asked, None)) is not None and not waiting.done():
                        waiting.set_result(None)
                case Gather(metrics, asked):
                    worker.metrics = metrics
                    group.create_task(self._sum(worker, asked))
        await worker.line.close()
        for waiting in worker.asked.values():
            waiting.cancel()
        if worker.metrics:
            self._gone, worker.metrics = total([self._gone, lasting(worker.metrics)]), ""

    def _there(self) -> dict[int, _Worker]:
        return {number: one for number, one in self._running.items() if one.there}

    def _spread(self) -> None:
        """Tells each worker which sockets to take connections from: its own, and those of workers that are not there.

        At the start all have to be there first.
        """
        there = self._there()
        if self._stopping.is_set() or not (self._open or len(there) == self._config.server.workers):
            return
        if not self._open:
            try:
                self._listen_everywhere()
            except OSError as error:  # another process has taken the port in the same moment
                return self._give_up(f"cannot listen: {error.strerror}", could_not_start(self._config))
        alone = [number for number in range(1, self._config.server.workers + 1) if number not in there]
        for number, worker in there.items():
            worker.line.say(Listen([number, *alone]))
        if not self._open:
            self._open = True
            for what, bound in (("fingerpost listens", self._main[0]), ("its administrators' port", self._admin)):
                if bound:
                    say(what, bound[0], secure=self._config.server.tls is not None)

    def _listen_everywhere(self) -> None:
        for one in (*self._main[0], *self._admin):
            refuse_taken(one.family, one.getsockname())
        for one in (*chain.from_iterable(self._main), *self._admin):
            one.listen(BACKLOG)

    async def _sum(self, asking: _Worker, number: int) -> None:
        """Tells a worker the metrics of all of them."""
        others = [one for one in self._running.values() if one is not asking and one.ready_at is not None]
        self._asked = asked = self._asked + 1
        waiting = [asyncio.get_running_loop().create_future() for _ in others]
        for one, future in zip(others, waiting, strict=True):
            one.asked[asked] = future
            one.line.say(Count(asked))
        if waiting:
            await asyncio.wait(waiting, timeout=self._patience)
        for one in others:
            one.asked.pop(asked, None)
        own = (
            "# HELP fingerpost_workers Workers that serve.\n# TYPE fingerpost_workers gauge\n"
            f"fingerpost_workers {len(self._there())}\n"
            "# HELP fingerpost_worker_replacements_total Workers that took the place of one that had ended.\n"
            "# TYPE fingerpost_worker_replacements_total counter\n"
            f"fingerpost_worker_replacements_total {self._replaced}\n"
        )
        asking.line.say(Sum(total([self._gone, *(one.metrics for one in self._running.values()), own]), number))

    def _give_up(self, why: str, code: int) -> None:
        print(f"{why}; fingerpost stops", file=sys.stderr, flush=True)
        self._code = code if code > 0 else 1
        self._stop(signal.SIGTERM)

    def _stop(self, number: int) -> None:
        """Passes a signal on to the workers, which finish as a single process does; a second Ctrl-C cuts."""
        self._stopping.set()
        self._first.set()
        for one in (*chain.from_iterable(self._main), *self._admin):
            one.close()
        for worker in self._running.values():
            worker.signal(number if worker.ready_at is not None else signal.SIGTERM)

    def _reload(self) -> None:
        self._reload_due = True  # for workers that begin before another one has said what it took
        for worker in self._running.values():
            worker.line.say(Reload())
