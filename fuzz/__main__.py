"""A campaign: `python -m fuzz [--inputs N] [--minutes M] [--keep] [TARGET...]`, for all targets in turns, on one core.

What is found goes to `.fuzz/TARGET`: inputs that reached new code, and `broken-*` for each that broke a promise.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import time
from pathlib import Path

from fuzz import corpus

TURN = 120.0
"""Seconds that a target gets before the next one has its turn."""

KEPT, KEPT_BYTES, KEPT_LENGTH = 60, 40_000, 1500
"""Inputs of one target that `--keep` writes at most, bytes of them together, and bytes of one."""


def main() -> int:
    """Runs until the time is over or the inputs are done; 1 when a promise was broken."""
    parser = argparse.ArgumentParser(prog="scripts/fuzz", description=__doc__)
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=f"of {', '.join(corpus.TARGETS)}; all unless given")
    parser.add_argument(
        "--inputs", type=int, default=0, help="stop after so many inputs of each target; 0 (default) sets no end"
    )
    parser.add_argument(
        "--minutes", type=float, default=6.0, help="stop after so many minutes, all targets together; 6 by default"
    )
    parser.add_argument("--keep", action="store_true", help="put some of the inputs that reached new code into fuzz/corpus")
    asked = parser.parse_args()
    targets = asked.targets or list(corpus.TARGETS)
    if unknown := set(targets) - set(corpus.TARGETS):
        parser.error(f"there is no target {', '.join(sorted(unknown))}")
    done, broken = _campaign(targets, asked.inputs, asked.minutes * 60)
    for target in targets:
        print(f"{target}: {done[target]:,} inputs, {broken[target]} broken promises")
        if asked.keep:
            print(f"{target}: {_keep(target)} inputs kept")
    return 1 if any(broken.values()) else 0


def _campaign(targets: list[str], inputs: int, seconds: float) -> tuple[dict[str, int], dict[str, int]]:
    """How many inputs each target has had, and how many of its turns ended with a broken promise."""
    done, broken = dict.fromkeys(targets, 0), dict.fromkeys(targets, 0)
    end = time.perf_counter() + seconds
    turn = min(TURN, seconds / len(targets))
    while (left := [t for t in targets if not inputs or done[t] < inputs]) and end - time.perf_counter() > 1:
        for target in left:
            for_now = min(turn, end - time.perf_counter())
            if for_now > 1:
                count, failure = _turn(target, inputs - done[target] if inputs else -1, for_now)
                done[target] += count
                broken[target] += bool(failure)
                print(f"{target}: {count:,} inputs in {for_now:.0f} s {failure}", flush=True)
    return done, broken


def _turn(target: str, inputs: int, seconds: float) -> tuple[int, str]:
    """The number of inputs of one run, and what was broken."""
    folder = Path(".fuzz", target)
    folder.mkdir(parents=True, exist_ok=True)
    command = [
        sys.executable,
        "-m",
        "fuzz.run",
        target,
        str(folder),
        f"-runs={inputs}",
        f"-max_total_time={max(1, round(seconds))}",
    ]
    result = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
    count = re.search(r"number_of_executed_units: (\d+)", result.stderr)
    if result.returncode == 0:
        return int(count[1]) if count else 0, ""
    (folder / "failure.txt").write_text(result.stdout[-10_000:] + result.stderr[-10_000:], encoding="utf-8")
    return int(count[1]) if count else 0, f"BROKEN, see {folder}/failure.txt and broken-*"


def _keep(target: str) -> int:
    """Writes a spread of the inputs that reached new code, short ones and long ones; what was kept before stays."""
    kept = corpus.kept(target)
    found = {file.read_bytes() for file in Path(".fuzz", target, "found").iterdir()}
    new = sorted((data for data in found - set(kept) if len(data) <= KEPT_LENGTH), key=lambda data: (len(data), data))
    wanted, room = KEPT - len(kept), KEPT_BYTES - sum(map(len, kept))
    for data in new[:: max(1, len(new) // max(wanted, 1))][: max(wanted, 0)]:
        if len(data) <= room:
            kept.append(data)
            room -= len(data)
    return corpus.keep(target, kept)


if __name__ == "__main__":
    sys.exit(main())
