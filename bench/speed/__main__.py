"""Measures and writes results.json, report.md and cpu.svg: `python -m bench.speed --out build/speed`."""

from __future__ import annotations

import argparse
import json
import os
import resource
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from bench.speed import lifetime, report
from bench.speed.canned import nginx
from bench.speed.cases import CASES
from bench.speed.goals import check
from bench.speed.load import has_wrk
from bench.speed.machine import describe
from bench.speed.measure import Findings, Plan, fresh_folder, measure
from bench.speed.peers import PEERS
from bench.speed.processes import cores


def main() -> int:
    """Runs what the options ask for; 1 when there is nothing to run with."""
    options = _parse().parse_args()
    if not (nginx() and has_wrk()) and not options.plain:
        say("nginx or wrk is missing: scripts/bench-speed installs them; --plain does without, for trying things out")
        return 1
    peers = [name for name in options.peers if not (why := PEERS[name].missing()) or say(why)]
    folder, machine = fresh_folder(options.out), describe(peers)
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))  # a thousand streams are three thousand sockets
    os.sched_setaffinity(0, cores()[1])  # the load, and whatever else is started here without a core of its own
    extras = _extras(options, folder)
    findings = Findings()
    for findings in measure(_plan(options, peers, folder)):
        _write(options, machine, findings, extras)  # so that a run which is broken off has told what it found
    print(_write(options, machine, findings, extras))
    return 0


def say(line: str) -> None:
    """Tells how it goes, on standard error."""
    print(line, file=sys.stderr, flush=True)


def _write(options: argparse.Namespace, machine: dict[str, str], findings: Findings, extras: dict[str, Any]) -> str:
    """Writes all files; the report."""
    goals = check(findings, extras)
    results = {"machine": machine, "options": vars(options) | {"out": str(options.out)}, **asdict(findings), **extras}
    results["goals"] = [asdict(goal) | {"reached": goal.reached} for goal in goals]
    text = report.about(machine, goals, findings.cells, findings.memory)
    (options.out / "results.json").write_text(json.dumps(results, indent=1) + "\n")
    (options.out / "report.md").write_text(text)
    (options.out / "cpu.svg").write_text(report.drawing(findings.cells))
    return text


def _plan(options: argparse.Namespace, peers: list[str], folder: Path) -> Plan:
    cases = tuple(CASES[name] for name in options.cases)
    plan = Plan(tuple(peers), cases, folder, plain=options.plain, alone=options.ready, say=say)
    if options.quick:
        return replace(plan, rounds=2, seconds=1.0, connections=(16,))
    return replace(plan, rounds=options.rounds, seconds=options.seconds, connections=options.connections)


def _extras(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """What is measured of fingerpost alone."""
    found: dict[str, Any] = {}
    if options.ready:
        found["ready_s"] = lifetime.spread(lifetime.ready_seconds(folder))
        say(f"ready: {found['ready_s']}")
    if options.streams:
        found["streams"] = lifetime.streams(folder, options.streams)
        say(f"streams: {found['streams']}")
    if options.soak:
        found["soak"] = lifetime.soak(folder, options.soak, say, plain=options.plain)
    return found


def _parse() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m bench.speed", description=__doc__)
    parser.add_argument("--peers", nargs="*", default=list(PEERS), choices=list(PEERS), help="which gateways (all)")
    parser.add_argument("--cases", nargs="*", default=list(CASES), choices=list(CASES), help="which cases (all)")
    parser.add_argument("--connections", nargs="*", type=int, default=[1, 16, 256], help="of those of a case (%(default)s)")
    parser.add_argument("--rounds", type=int, default=5, help="medians are over these (%(default)s)")
    parser.add_argument("--seconds", type=float, default=2.0, help="of a cell in a round (%(default)s)")
    parser.add_argument("--quick", action="store_true", help="two rounds of a second, at 16 connections")
    parser.add_argument(
        "--ready", action=argparse.BooleanOptionalAction, default=True, help="time to ready, and the classifier"
    )
    parser.add_argument("--streams", type=int, nargs="?", const=1000, default=0, metavar="N", help="N streams at once (1000)")
    parser.add_argument("--soak", type=int, nargs="?", const=500_000, default=0, metavar="N", help="N requests (500000)")
    parser.add_argument("--plain", action="store_true", help="without nginx and wrk")
    parser.add_argument("--out", type=Path, default=Path("build/speed"), metavar="DIR", help="where to write (%(default)s)")
    return parser


if __name__ == "__main__":
    sys.exit(main())
