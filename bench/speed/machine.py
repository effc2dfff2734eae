"""What it ran on."""

from __future__ import annotations

import os
import platform
import subprocess
from collections.abc import Sequence
from pathlib import Path

from bench.speed.canned import nginx
from bench.speed.load import has_wrk
from bench.speed.peers import PEERS


def describe(peers: Sequence[str]) -> dict[str, str]:
    """The processor, the system and all versions."""
    listed = Path("/proc/cpuinfo").read_text().splitlines()
    model = next((line.split(":", 1)[1].strip() for line in listed if line.startswith("model name")), platform.processor())
    about = {
        "CPU": model,
        "cores": f"{os.cpu_count()}, {len(os.sched_getaffinity(0))} of them to use",
        "kernel": platform.release(),
        "Python": platform.python_version(),
        "load average": " ".join(f"{value:.2f}" for value in os.getloadavg()),
    }
    program = nginx()
    if program:
        about["nginx"] = _told(program).split("/")[-1]
    if has_wrk():
        about["wrk"] = _told("wrk").split(" [")[0].removeprefix("wrk ")
    return about | {name: PEERS[name].version() for name in peers}


def _told(program: str) -> str:
    """What it says of its version, on whichever stream; wrk exits with 1 then."""
    ran = subprocess.run([program, "-v"], capture_output=True, text=True, check=False)
    return (ran.stdout + ran.stderr).strip()
