"""Several processes behind one port: the parent, which serves nothing itself and keeps its workers running.

The parent checks the configuration once, binds the port (and that of the administrators) and starts workers, each a new
interpreter that runs `fingerpost.server.worker`: nothing is forked, so no library meets threads or locks of another process.
All workers take connections from the one socket that they inherit. The parent keeps it open too. So connections that come
while a worker dies wait in the kernel's queue for one of the others, which with a socket for each worker (SO_REUSEPORT) they
would not; and an idle worker takes the next connection before a busy one does. Nobody listens before all are ready.

Parent and worker talk over a pair of sockets (`fingerpost.server.talk`), which needs no file and no port and which nobody else
reaches. A worker whose parent is gone stops. Metrics meet here: the worker that is asked for them asks the parent, which asks
the others and adds up. What a dead worker has counted stays in the sums, so that a counter never goes down.

A worker that dies is replaced, with the configuration that the others serve (`Took`), whatever the file says by then: at once,
then after longer and longer pauses. One that dies young too many times in a row ends the whole.
"""

from __future__ import annotations

import asyncio
import json
import signal
import socket
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import partial

import msgspec

from fingerpost.config.shape import Config
from fingerpost.errors import Problem
from fingerpost.observers.totals import lasting, total
from fingerpost.server.auth import check_exposure
from fingerpost.server.files import ConfigFile, build_tls, tell
from fingerpost.server.serve import could_not_start, say
from fingerpost.server.talk import Begin, Count, Counted, Gather, Go, Line, Ready, Reload, Sum, Took

YOUNG = 10.0
"""Seconds: a worker that dies sooner after it was ready has died young."""

PAUSES = (0.0, 0.5, 1.0, 2.0, 4.0)
"""Seconds before a worker that has died young so many times in a row is replaced; after the last of them nobody tries again."""

PATIENCE = 2.0
"""Seconds that a worker has to say its metrics; those that it said last, a second ago or so, count where it is late."""

FINISHED = (0, -signal.SIGINT, -signal.SIGTERM)
"""Exit codes of workers that did what they were told: one that had not begun to serve knows no other answer to a signal."""

BACKLOG = 2048

_START = "import json, sys; sys.path[:] = json.loads(sys.argv[1]); from fingerpost.server.worker import main; sys.exit(main())"


def serve_together(file: ConfigFile, config: Config) -> int:
    """Serves with `server.workers` processes until SIGTERM or Ctrl-C; 0, or the exit code of what could not be.

    Raises:
        ConfigError: as for a single process.
    """
    check_exposure(config)
    if config.server.tls is not None:
        build_tls(config.server.tls)
    tell(find_unshared(config))
    server, bound = config.server, []
    wanted = [("server", server.host, server.port)]
    if server.admin is not None and server.admin.port is not None:
        wanted.append(("server.admin", server.admin.host, server.admin.port))
    with ExitStack() as opened:
        for what, host, port in wanted:
            try:
                bound.append(bind(opened, host, port))
            except OSError as error:
                print(f"{what}: cannot listen on {host}:{port}: {error.strerror or error}", file=sys.stderr)
                return could_not_start(config)
        return asyncio.run(Workers(file, config, bound[0], bound[1] if len(bound) > 1 else ()).run())


def find_unshared(config: Config) -> list[Problem]:
    """A warning where workers would each count for themselves what clients may use."""
    limited = any(key.requests_per_minute or key.tokens_per_minute or key.budget for key in config.keys)
    if config.server.workers < 2 or not limited or config.limits.redis is not None:
        return []
    what = f"each of {config.server.workers} workers counts the limits of keys by itself: clients may use so many times as much"
    return [Problem("server.workers", what, "Set limits.redis, where all count together", warning=True)]


def bind(opened: ExitStack, host: str, port: int) -> list[socket.socket]:
    """A socket for every address of a host, all on one port; none of them listens yet."""
    found = socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    bound: list[socket.socket] = []
    for family, kind, protocol, _, address in dict.fromkeys(found):
        bound.append(opened.enter_context(socket.socket(family, kind, protocol)))
        bound[-1].setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            bound[-1].setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        bound[-1].bind((address[0], bound[0].getsockname()[1] if len(bound) > 1 else port, *address[2:]))
    return bound


@dataclass(frozen=True, slots=True)
class _End:
    """How a worker ended, with the exit code that subprocess gives; `young` where that speaks against starting another."""

    how: str
    code: int
    young: bool


class _Worker:
    """A running worker: its process, the line to it, and what it has said of itself."""

    def __init__(self, process: asyncio.subprocess.Process, line: Line) -> None:
        self.process = process
        self.line = line
        self.ready_at: float | None = None
        self.metrics = ""
        self.asked: dict[int, asyncio.Future[None]] = {}

    def signal(self, number: int) -> None:
        with suppress(ProcessLookupError):
            self.process.send_signal(number)


class Workers:
    """Keeps `server.workers` workers running behind bound sockets; after so many `pauses` in a row it gives up."""

    def __init__(
        self,
        file: ConfigFile,
        config: Config,
        main: Sequence[socket.socket],
        admin: Sequence[socket.socket] = (),
        pauses: Sequence[float] = PAUSES,
    ) -> None:
        self._file = file
        self._config = config
        self._pauses = pauses
        self._sockets = {"fingerpost listens": main, "its administrators' port": admin}
        self._running: dict[int, _Worker] = {}
        self._first, self._stopping = asyncio.Event(), asyncio.Event()
        self._open = False
        self._code = 0
        self._gone = ""
        self._replaced = self._asked = 0

    async def run(self) -> int:
        """Serves until a signal asks to stop; 0, or 1 or more when it could not go on."""
        with self._signals():
            async with asyncio.TaskGroup() as group:
                for number in range(1, self._config.server.workers + 1):
                    group.create_task(self._keep(number, group))
        return self._code

    async def _keep(self, number: int, group: asyncio.TaskGroup) -> None:
        """Keeps one worker running. The first of all starts alone: what is wrong at the start is told once."""
        young = 0
        if number > 1:
            await self._first.wait()
        while not self._stopping.is_set():
            end = await self._live(number, group)
            if self._stopping.is_set():
                self._code = self._code or (0 if end.code in FINISHED else 1)
                return
            young = young + 1 if end.young else 0
            if not self._open:
                return self._give_up(f"worker {number} could not start ({end.how})", end.code)
            if young > len(self._pauses):
                return self._give_up(f"worker {number} died {young} times in a row soon after its start (last: {end.how})", 1)
            pause = self._pauses[max(young - 1, 0)]
            print(f"worker {number} ended ({end.how}); it is replaced{f' in {pause:g} s' if pause else ''}", file=sys.stderr)
            self._replaced += 1
            with suppress(TimeoutError):
                await asyncio.wait_for(self._stopping.wait(), pause)

    async def _live(self, number: int, group: asyncio.TaskGroup) -> _End:
        """The end of a worker, which begins and serves meanwhile."""
        try:
            worker = await self._start(number)
        except OSError as error:  # no memory, or no room for another process or file
            return _End(str(error.strerror or error), 1, young=True)
        await self._listen(worker, group)
        code = await worker.process.wait()
        del self._running[number]
        how = f"signal {-code}" if code < 0 else f"exit code {code}"
        if worker.ready_at is None:
            return _End(how, code, young=True)
        lived = asyncio.get_running_loop().time() - worker.ready_at
        return _End(how, code, young=lived < YOUNG and code != 0)  # 0: somebody told that one to stop

    async def _start(self, number: int) -> _Worker:
        ours, theirs = socket.socketpair()
        sockets = [[one.fileno() for one in bound] for bound in self._sockets.values()]
        with theirs:
            line = theirs.fileno()
            process = await asyncio.create_subprocess_exec(
                sys.executable, "-c", _START, json.dumps(sys.path), "fingerpost worker", str(number),
                stdin=asyncio.subprocess.PIPE,
                pass_fds=[line, *sockets[0], *sockets[1]],
                start_new_session=True,  # a terminal's Ctrl-C comes to the parent alone, which passes it on
            )  # fmt: skip
        worker = self._running[number] = _Worker(process, await Line.over(ours))
        text, looks = self._file.text or "", self._file.looks
        begin = Begin(str(self._file.path), dict(self._file.instead), text, looks, number, line, *sockets)
        assert process.stdin is not None
        process.stdin.write(msgspec.json.encode(begin))
        process.stdin.close()
        if self._stopping.is_set():
            worker.signal(signal.SIGTERM)
        return worker

    async def _listen(self, worker: _Worker, group: asyncio.TaskGroup) -> None:
        """Takes what a worker says, until it has ended."""
        async for said in worker.line:
            match said:
                case Ready():
                    worker.ready_at = asyncio.get_running_loop().time()
                    self._first.set()
                    self._admit(worker)
                case Took(text, looks):
                    self._file.text, self._file.looks = text, looks
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

    def _admit(self, worker: _Worker) -> None:
        """Lets a worker that is ready take connections: at the start when all are, later at once."""
        ready = [one for one in self._running.values() if one.ready_at is not None]
        if self._open:
            worker.line.say(Go())
        elif len(ready) == self._config.server.workers and not self._stopping.is_set():
            try:
                for bound in self._sockets.values():
                    for each in bound:
                        each.listen(BACKLOG)
            except OSError as error:  # another process has bound the port in the same moment
                return self._give_up(f"cannot listen: {error.strerror}", could_not_start(self._config))
            self._open = True
            for one in ready:
                one.line.say(Go())
            for what, bound in self._sockets.items():
                if bound:
                    say(what, bound[0], secure=self._config.server.tls is not None)

    async def _sum(self, asking: _Worker, number: int) -> None:
        """Tells a worker the metrics of all of them."""
        others = [one for one in self._running.values() if one is not asking and one.ready_at is not None]
        self._asked += 1
        waiting = [asyncio.get_running_loop().create_future() for _ in others]
        for one, future in zip(others, waiting, strict=True):
            one.asked[self._asked] = future
            one.line.say(Count(self._asked))
        if waiting:
            await asyncio.wait(waiting, timeout=PATIENCE)
        running = len([one for one in self._running.values() if one.ready_at is not None])
        own = (
            f"# HELP fingerpost_workers Workers that serve.\n# TYPE fingerpost_workers gauge\nfingerpost_workers {running}\n"
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
        for bound in self._sockets.values():
            for each in bound:
                each.close()
        for worker in self._running.values():
            worker.signal(number if worker.ready_at is not None else signal.SIGTERM)

    def _reload(self) -> None:
        for worker in self._running.values():
            worker.line.say(Reload())

    @contextmanager
    def _signals(self) -> Iterator[None]:
        loop = asyncio.get_running_loop()
        actions: dict[int, Callable[[], None]] = {
            number: partial(self._stop, number) for number in (signal.SIGINT, signal.SIGTERM)
        }
        actions[signal.SIGHUP] = self._reload
        for number, action in actions.items():
            loop.add_signal_handler(number, action)
        try:
            yield
        finally:
            for number in actions:
                loop.remove_signal_handler(number)
