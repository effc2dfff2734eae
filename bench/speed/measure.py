"""Measuring: every gateway in turn, several short rounds, so that what disturbs the machine disturbs all alike."""

from __future__ import annotations

import http.client
import itertools
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from pathlib import Path

from bench.speed import load
from bench.speed.canned import upstream
from bench.speed.cases import Body, Case
from bench.speed.load import Load, Target
from bench.speed.peers import PEERS, Peer
from bench.speed.processes import Running, cores, free_port, running

DIRECT = "direct"
"""The client at the upstream, nothing between: what latency is compared with."""

CONNECTIONS = 16
"""Where goals about CPU time are read."""

STARTING = 90.0
"""Seconds that a gateway gets to answer its first request; each kind of request after it gets a tenth of that."""


@dataclass(frozen=True, slots=True)
class Subject:
    """One line of the results: a gateway (None: none), and how it is asked."""

    name: str
    peer: Peer | None
    model: str = "bench"
    fresh: bool = False


def subjects(names: Sequence[str]) -> list[Subject]:
    """The direct line, then each gateway; fingerpost thrice: a backend named, `auto` with new and with known conversations."""
    found = [Subject(DIRECT, None)]
    for name in names:
        found.append(Subject(name, PEERS[name], PEERS[name].model))
        if name == "fingerpost":
            found.append(Subject("fingerpost-auto", PEERS[name], "auto", fresh=True))
            found.append(Subject("fingerpost-cached", PEERS[name], "auto"))
    return found


@dataclass(frozen=True, slots=True)
class Cell:
    """A subject's figures in one case, medians over the rounds, and the CPU time of each round; or why there are none."""

    subject: str
    case: str
    connections: int
    cpu_us: float = 0.0
    rps: float = 0.0
    p50_ms: float = 0.0
    p99_ms: float = 0.0
    added_p50_ms: float = 0.0
    added_p99_ms: float = 0.0
    requests: int = 0
    rounds_cpu_us: tuple[float, ...] = ()
    void: str = ""

    @property
    def rps_per_core(self) -> float:
        """Requests a second if it had a core to itself."""
        return 1e6 / self.cpu_us if self.cpu_us else 0.0


@dataclass(frozen=True, slots=True)
class Memory:
    """Resident memory of a gateway's processes after its first answers and after all rounds, in MB."""

    subject: str
    upstream: str
    before_mb: float
    after_mb: float


@dataclass(frozen=True, slots=True)
class Plan:
    """What is measured; `connections` limits those of the cases; `plain`: no nginx and wrk; `alone`: the classifier, too."""

    peers: tuple[str, ...]
    cases: tuple[Case, ...]
    folder: Path
    rounds: int = 5
    seconds: float = 2.0
    connections: tuple[int, ...] = (1, 16, 256)
    plain: bool = False
    alone: bool = False
    say: Callable[[str], None] = print


@dataclass(slots=True)
class Findings:
    """What a run has found; `decisions_us` is the CPU time that the classifier alone takes for a new small conversation."""

    cells: list[Cell] = field(default_factory=list)
    memory: list[Memory] = field(default_factory=list)
    decisions_us: list[float] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Sample:
    """One round of one cell."""

    load: Load
    cpu: float


Key = tuple[str, str, int]


def measure(plan: Plan) -> Iterator[Findings]:
    """Measures all cases, those of one upstream at a time; gives what is found so far after each."""
    findings = Findings()
    for kind in dict.fromkeys(case.upstream for case in plan.cases):
        with ExitStack() as stack:
            _Bench(plan, kind, stack).run(findings)
        yield findings


def enter_peer(stack: ExitStack, peer: Peer, folder: Path, upstream_port: int) -> Running:
    """Writes a gateway's files, and starts it on the server's core until the stack is left."""
    port, own = free_port(), folder / f"{peer.name}-{upstream_port}"
    own.mkdir(parents=True, exist_ok=True)
    for name, text in peer.files(port, upstream_port).items():
        (own / name).write_text(text, encoding="utf-8")
    return stack.enter_context(running(peer.command(port, upstream_port, own), port, own / "output.log", cores()[0]))


def decision_us() -> float:
    """The CPU time of the classifier alone, on the server's core, where every server waits meanwhile."""
    process = subprocess.Popen([sys.executable, "-m", "bench.speed.decision"], stdout=subprocess.PIPE, text=True)
    os.sched_setaffinity(process.pid, cores()[0])
    return float(process.communicate()[0])


def verify(
    server: Running, case: Case, body: Body, headers: Mapping[str, str], *, exact: bool, within: float = STARTING
) -> str:
    """Why it does not give the right answer to this request within a while; empty when it does."""
    why, end = "", time.perf_counter() + within
    while time.perf_counter() < end:
        if server.process.poll() is not None:
            return f"it has ended: {server.last_words()}"
        try:
            status, got = _ask(server.port, body, headers)
        except (OSError, http.client.HTTPException) as error:
            why = f"{type(error).__name__}: {error}"
        else:
            if status == 200:
                return "" if case.is_answered_by(got, exact=exact) else f"it answers something else: {got[:200]!r}"
            why = f"it answers {status}: {got[:200]!r}"
            if status in (400, 404, 413, 422):
                return why
        time.sleep(0.1)
    return why


def _ask(port: int, body: Body, headers: Mapping[str, str]) -> tuple[int, bytes]:
    content = body.before + body.number(0) + body.after
    with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=30)) as client:
        client.request("POST", "/v1/chat/completions", content, {"content-type": "application/json", **headers})
        with client.getresponse() as answer:
            return answer.status, answer.read()


class _Bench:
    """One upstream with all gateways in front of it."""

    def __init__(self, plan: Plan, kind: str, stack: ExitStack) -> None:
        self._plan, self._kind = plan, kind
        self._numbers = itertools.count(0, 1_000_000)
        self._greeted: set[str] = set()
        self._upstream = stack.enter_context(upstream(kind, plan.folder, cores()[1], plain=plan.plain))
        peers = [PEERS[name] for name in plan.peers]
        self._servers = {peer.name: enter_peer(stack, peer, plan.folder, self._upstream.port) for peer in peers}

    def run(self, findings: Findings) -> None:
        """Adds what is found with this upstream."""
        void: dict[tuple[str, str], str] = {}
        samples: dict[Key, list[Sample]] = {}
        cases = [case for case in self._plan.cases if case.upstream == self._kind]
        for subject, case in itertools.product(subjects(self._plan.peers), cases):
            void[subject.name, case.name] = self._prepare(subject, case)
        before = {name: server.rss_mb() for name, server in self._servers.items() if server.process.poll() is None}
        for round_, (case, connections, subject) in itertools.product(range(self._plan.rounds), self._steps(cases)):
            if not void[subject.name, case.name]:
                sample = self._sample(subject, case, connections)
                if sample.load.errors or not sample.load.requests:
                    why = f"{sample.load.errors} errors in {sample.load.requests} requests at {connections} connections"
                    void[subject.name, case.name] = why
                    self._plan.say(f"{subject.name}, {case.title}: {why}")
                samples.setdefault((subject.name, case.name, connections), []).append(sample)
                self._plan.say(_line(round_, subject, case, connections, sample))
                if self._plan.alone and subject.fresh and (case.name, connections) == ("small", CONNECTIONS):
                    findings.decisions_us.append(decision_us())
        for name, size in before.items():
            findings.memory.append(Memory(name, self._kind, size, self._servers[name].rss_mb()))
        for case, connections, subject in self._steps(cases):
            why = void[subject.name, case.name]
            findings.cells.append(summary((subject.name, case.name, connections), samples, why))

    def _steps(self, cases: Sequence[Case]) -> Iterator[tuple[Case, int, Subject]]:
        for case in cases:
            for connections in case.connections:
                if connections in self._plan.connections:
                    for subject in subjects(self._plan.peers):
                        yield case, connections, subject

    def _target(self, subject: Subject, case: Case) -> Target:
        if subject.peer is None:
            return Target(self._upstream.port, case.body(subject.model), reply=case.reply)
        port = self._servers[subject.peer.name].port
        headers = subject.peer.headers(self._upstream.port)
        reply = case.reply if subject.peer.exact else None
        return Target(port, case.body(subject.model), headers, subject.fresh, reply)

    def _prepare(self, subject: Subject, case: Case) -> str:
        """Warms it up; why it cannot be measured, or nothing."""
        target, exact = self._target(subject, case), subject.peer is None or subject.peer.exact
        server = self._upstream if subject.peer is None else self._servers[subject.peer.name]
        name = subject.peer.name if subject.peer else DIRECT
        within = STARTING / 10 if name in self._greeted else STARTING
        self._greeted.add(name)
        why = verify(server, case, target.body, target.headers, exact=exact, within=within)
        if why and subject.peer is None:
            raise RuntimeError(f"the upstream for {case.title}: {why}")
        if why:
            self._plan.say(f"{subject.name}, {case.title}: {why}")
            return why
        load.run_own(target, 4, min(0.5, self._plan.seconds), next(self._numbers))
        return ""

    def _sample(self, subject: Subject, case: Case, connections: int) -> Sample:
        target, first = self._target(subject, case), next(self._numbers)
        server = self._servers[subject.peer.name] if subject.peer else None
        start = server.cpu_seconds() if server else 0.0
        if case.short and not (subject.peer and subject.peer.slow) and not self._plan.plain:
            found = load.run_wrk(target, connections, self._plan.seconds, first, self._plan.folder)
        else:
            found = load.run_own(target, connections, self._plan.seconds, first)
        return Sample(found, server.cpu_seconds() - start if server else 0.0)


def summary(key: Key, samples: Mapping[Key, Sequence[Sample]], why: str) -> Cell:
    """The medians of a cell's rounds; added latency is compared with the direct line round by round."""
    mine, direct = samples.get(key, ()), samples.get((DIRECT, *key[1:]), ())
    if why or not mine:
        return Cell(*key, void=why or "not measured")
    pairs = list(zip(mine, direct, strict=False))
    cpu = tuple(sample.cpu / sample.load.requests * 1e6 for sample in mine)
    return Cell(
        *key,
        cpu_us=statistics.median(cpu),
        rps=statistics.median(sample.load.requests / sample.load.seconds for sample in mine),
        p50_ms=statistics.median(sample.load.p50 for sample in mine) * 1e3,
        p99_ms=statistics.median(sample.load.p99 for sample in mine) * 1e3,
        added_p50_ms=statistics.median([one.load.p50 - other.load.p50 for one, other in pairs] or [0.0]) * 1e3,
        added_p99_ms=statistics.median([one.load.p99 - other.load.p99 for one, other in pairs] or [0.0]) * 1e3,
        requests=sum(sample.load.requests for sample in mine),
        rounds_cpu_us=cpu,
    )


def _line(round_: int, subject: Subject, case: Case, connections: int, sample: Sample) -> str:
    each = sample.cpu / max(sample.load.requests, 1) * 1e6
    rate = sample.load.requests / sample.load.seconds
    return f"round {round_ + 1}: {case.name} x{connections} {subject.name}: {each:.0f} us CPU, {rate:.0f} requests/s"


def fresh_folder(out: Path) -> Path:
    """An empty folder for configurations, logs and sockets of a run."""
    folder = out.resolve() / "run"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder
