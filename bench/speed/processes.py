"""Server processes: started on one core, asked what they have used, and stopped. Linux only, by way of /proc."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path

TICKS = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True)
class Stat:
    """A line of /proc/PID/stat: who it is, whose child, and its CPU time in seconds (see proc_pid_stat(5))."""

    pid: int
    parent: int
    seconds: float

    @classmethod
    def parse(cls, line: str) -> Stat:
        """Reads a line; the name in parentheses may itself hold spaces and parentheses."""
        pid, rest = line.split(" (", 1)
        fields = rest.rsplit(")", 1)[1].split()
        return cls(int(pid), int(fields[1]), (int(fields[11]) + int(fields[12])) / TICKS)


def family(pid: int, everyone: Mapping[int, int]) -> list[int]:
    """A process and all that came from it; `everyone` says the parent of each process."""
    found = [pid]
    for member in found:
        found += [child for child, parent in everyone.items() if parent == member]
    return found


def _everyone() -> dict[int, int]:
    parents = {}
    for file in Path("/proc").glob("[0-9]*/stat"):
        try:
            stat = Stat.parse(file.read_text())
        except OSError:  # it has ended meanwhile
            continue
        parents[stat.pid] = stat.parent
    return parents


def cpu_seconds(pids: Sequence[int]) -> float:
    """User and system time of these processes; one that has ended counts nothing.

    Read from each process's CPU clock, which counts nanoseconds where /proc/PID/stat counts ticks of 10 ms; the clock's
    number is made as clock_getcpuclockid(3) makes it.
    """
    used = 0.0
    for pid in pids:
        with suppress(OSError):
            used += time.clock_gettime((~pid << 3) | 2)
    return used


def rss_mb(pids: Sequence[int]) -> float:
    """Resident memory of these processes, in MB (10^6 bytes); one that has ended has none."""
    pages = 0
    for pid in pids:
        with suppress(OSError):
            pages += int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


@dataclass(frozen=True, slots=True)
class Running:
    """A server process and where it listens."""

    process: subprocess.Popen[bytes]
    port: int
    log: Path

    @property
    def pids(self) -> list[int]:
        """The process and its descendants."""
        return family(self.process.pid, _everyone())

    def cpu_seconds(self) -> float:
        """The CPU time that they have used."""
        return cpu_seconds(self.pids)

    def rss_mb(self) -> float:
        """The memory that they have, in MB."""
        return rss_mb(self.pids)

    def last_words(self) -> str:
        """The end of what it wrote."""
        return self.log.read_text(errors="replace")[-600:].strip()


@contextmanager
def running(command: Sequence[str], port: int, log: Path, cores: set[int]) -> Iterator[Running]:
    """Starts a process on these cores, its output in a file, and stops it and its descendants at the end."""
    with log.open("wb") as out:
        process = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL)
    os.sched_setaffinity(process.pid, cores)  # what it starts from now on, threads too, inherits it
    server = Running(process, port, log)
    try:
        yield server
    finally:
        members = server.pids
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        for pid in members[1:]:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def free_port() -> int:
    """A loopback port that nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


@cache
def cores() -> tuple[set[int], set[int]]:
    """The core of the server that is measured, and that of everything else; the same one where there is only one.

    Kept from the first call, since this process itself is then put on the second one.
    """
    mine = sorted(os.sched_getaffinity(0))
    return {mine[0]}, set(mine[1:2] or mine)
