import os
import sys
import time
from pathlib import Path

import pytest
from bench.speed.processes import TICKS, Stat, cores, cpu_seconds, family, free_port, rss_mb, running

LINE = "4711 (a (b) c) S 12 4711 4711 0 -1 4194304 1 0 0 0 250 50 7 7 20 0 1 0 5 1 2"

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


def test_a_stat_line_is_read_whatever_the_name_holds() -> None:
    assert Stat.parse(LINE) == Stat(4711, 12, 300 / TICKS)


def test_the_kernels_own_line_is_read() -> None:
    with open("/proc/self/stat") as file:
        assert Stat.parse(file.read()).pid == os.getpid()


def test_a_family_is_everyone_that_came_from_it() -> None:
    assert sorted(family(2, {1: 0, 2: 1, 3: 2, 4: 3, 5: 1, 6: 2})) == [2, 3, 4, 6]


def test_cpu_time_and_memory_are_those_of_the_process() -> None:
    start, mine = time.process_time(), cpu_seconds([os.getpid()])
    sum(range(200_000))
    assert cpu_seconds([os.getpid()]) - mine <= time.process_time() - start + 0.05
    assert cpu_seconds([os.getpid()]) > mine
    assert 1 < rss_mb([os.getpid()]) < 100_000
    assert cpu_seconds([2**22 + 1]) == rss_mb([2**22 + 1]) == 0


def test_a_process_runs_on_its_core_and_is_stopped_with_its_children(tmp_path: Path, eventually) -> None:
    code = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'print(7, flush=True); import time; time.sleep(60)'])"
    with running([sys.executable, "-c", code], free_port(), tmp_path / "log", cores()[0]) as server:
        while "7" not in server.last_words():
            assert server.process.poll() is None
            time.sleep(0.02)
        members = server.pids
        assert os.sched_getaffinity(members[1]) == cores()[0]
    assert len(members) == 2
    eventually(lambda: not is_alive(members[1]))


def is_alive(pid: int) -> bool:
    """Whether it runs; one that waits for its parent to hear of its end does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(") ", 1)[1][0] not in "ZX"
    except FileNotFoundError:
        return False
