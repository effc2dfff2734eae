"""Prints the time of decisions against the deadline of a slow router model: `python -m bench.race` (about two minutes).

The model is a fake whose answers take log-normal time, one in a hundred for ever; the embedded classifier is the real one,
the conversations and routes are a written set that it was not trained on. One row for each deadline and way of asking.
"""

from __future__ import annotations

import argparse
import asyncio
import math
import random
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from fingerpost.chat import ChatRequest
from fingerpost.classifiers import Classifier
from fingerpost.classifiers.arch import MODEL, Arch
from fingerpost.classifiers.chain import Chain, Link
from fingerpost.classifiers.embedded import Embedded
from fingerpost.router import Router
from fingerpost.routes import OTHER, Backend, Route, RouteTable
from fingerpost.testing import FakeBackend, FakeReply, Received
from fingerpost.train.data import read_lines
from fingerpost.upstreams.http1 import Http1Upstream

DEADLINES = (0.05, 0.1, 0.25, 0.5, 1.0)
WAYS = ("model alone", "in turn", "race")
THRESHOLD = 0.7


def main() -> None:
    """Measures and prints the table."""
    parser = argparse.ArgumentParser(prog="python -m bench.race", description=__doc__)
    parser.add_argument("--written", type=Path, default=Path("train/data"), metavar="DIR", help="written sets (%(default)s)")
    parser.add_argument("--set", default="general_hub", help="the set to decide (%(default)s)")
    parser.add_argument("--requests", type=int, default=300, metavar="N", help="decisions for each row (%(default)s)")
    parser.add_argument("--at-once", type=int, default=4, metavar="N", help="decisions in flight (%(default)s)")
    parser.add_argument("--median", type=float, default=0.08, help="seconds that half of the answers take (%(default)s)")
    parser.add_argument("--spread", type=float, default=0.8, help="sigma of their logarithm (%(default)s)")
    options = parser.parse_args()
    table, requests = _load(options.written, options.set, options.requests)
    print(f"answers of the model: median {options.median * 1e3:.0f} ms, p99 {_p99(options) * 1e3:.0f} ms, 1% never")
    print(f"{len(requests)} decisions each, {options.at_once} at once, threshold {THRESHOLD}\n")
    print("| deadline | asked | p50 ms | p99 ms | longest ms | by the model | by `embedded` | `other` for want of a verdict |")
    print("|---|---|---|---|---|---|---|---|")
    for deadline in DEADLINES:
        for way in WAYS:
            rng = random.Random(0)
            with FakeBackend(lambda request, rng=rng: _slow(request, rng, options)) as fake:
                print(asyncio.run(_row(fake, way, deadline, table, requests, options.at_once)), flush=True)


def _load(folder: Path, name: str, count: int) -> tuple[RouteTable, list[ChatRequest]]:
    found = next(row for row in read_lines(folder / "route_sets.jsonl") if row["set"] == name)
    routes = [Route(**route["wordings"][0]) for route in found["routes"]]
    rows = [row["messages"] for row in read_lines(folder / "conversations.jsonl") if row["set"] == name]
    requests = [ChatRequest.from_messages(rows[number % len(rows)]) for number in range(count)]
    return RouteTable((*routes, Route(OTHER))), requests


def _p99(options: argparse.Namespace) -> float:
    return options.median * math.exp(2.326 * options.spread)


def _slow(request: Received, rng: random.Random, options: argparse.Namespace) -> FakeReply:
    delay = rng.lognormvariate(math.log(options.median), options.spread)
    return FakeReply(request.json["structured_outputs"]["choice"][0], delay=delay, hang=rng.random() < 0.01)


def _asked(way: str, arch: Arch, embedded: Embedded) -> Classifier:
    if way == "model alone":
        return arch
    return Chain([Link(embedded, THRESHOLD), Link(arch)], race=way == "race")


async def _row(
    fake: FakeBackend, way: str, deadline: float, table: RouteTable, requests: Sequence[ChatRequest], at_once: int
) -> str:
    backend = Backend("arch", MODEL, fake.url)
    arch, embedded = Arch(backend, Http1Upstream(backend), deadline=deadline), Embedded()
    router = Router(table, _asked(way, arch, embedded), cache_size=0)
    await router.prepare()
    await embedded.prepare(table)
    left = list(requests)
    took: list[float] = []
    sources: Counter[str] = Counter()

    async def work() -> None:
        while left:
            request = left.pop()
            start = time.perf_counter()
            decision = await router.decide(request)
            took.append((time.perf_counter() - start) * 1e3)
            sources[decision.source if decision.verdict else "none"] += 1

    async with asyncio.TaskGroup() as group:
        for _ in range(at_once):
            group.create_task(work())
    await arch.aclose()
    await embedded.aclose()
    took.sort()
    shares = [f"{sources[source] / len(took):.0%}" for source in ("arch", "embedded", "none")]
    figures = [f"{took[int(len(took) * share)]:.1f}" for share in (0.5, 0.99)]
    return f"| {' | '.join([f'{deadline:g} s', way, *figures, f'{took[-1]:.1f}', *shares])} |"


if __name__ == "__main__":
    main()
