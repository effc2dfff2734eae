"""fingerpost over time: how soon it is ready, whether its memory grows, and a thousand streams at once."""

from __future__ import annotations

import http.client
import statistics
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing
from dataclasses import replace
from pathlib import Path

import numpy as np
from bench.speed.canned import upstream
from bench.speed.cases import CASES
from bench.speed.load import Target, run_own
from bench.speed.measure import enter_peer, verify
from bench.speed.peers import PEERS, fingerpost_config
from bench.speed.processes import Running, cores

SAMPLE = 10_000
"""Requests between two looks at the memory."""

FINGERPOST = PEERS["fingerpost"]


def ready_seconds(folder: Path, times: int = 5) -> list[float]:
    """Seconds from the start of a process until /readyz answers 200, several times."""
    found = []
    for _ in range(times):
        with ExitStack() as stack:
            start = time.perf_counter()
            server = enter_peer(stack, FINGERPOST, folder, 9)  # no request is sent, so nobody need listen there
            while not _is_ready(server):
                if server.process.poll() is not None:
                    raise RuntimeError(f"fingerpost has ended: {server.last_words()}")
                time.sleep(0.002)
            found.append(time.perf_counter() - start)
    return found


def _is_ready(server: Running) -> bool:
    try:
        with closing(http.client.HTTPConnection("127.0.0.1", server.port, timeout=10)) as client:
            client.request("GET", "/readyz")
            return client.getresponse().status == 200
    except OSError:
        return False


def soak(folder: Path, requests: int, say: Callable[[str], None], *, plain: bool = False) -> dict[str, object]:
    """Memory over many requests to a backend by name; one in 50 is a new conversation for `auto`, one a known one.

    The cache of verdicts is small: it is full, as it is after a day, when the first fifth is over, which does not count.
    """
    peer = replace(FINGERPOST, files=lambda port, up: {"fingerpost.yaml": fingerpost_config(port, up, cache=requests // 250)})
    with ExitStack() as stack:
        up = stack.enter_context(upstream("small", folder, cores()[1], plain=plain))
        server = enter_peer(stack, peer, folder, up.port)
        case = CASES["small"]
        pinned, auto = (Target(server.port, case.body(model), reply=case.reply) for model in ("bench", "auto"))
        why = verify(server, case, pinned.body, {}, exact=True)
        if why:
            raise RuntimeError(f"fingerpost: {why}")
        seen, errors, step = [(0, server.rss_mb())], 0, min(SAMPLE, max(1, requests // 10))
        for done in range(step, requests + 1, step):
            parts = ((pinned, step * 48 // 50), (replace(auto, fresh=True), step // 50), (auto, step // 50))
            errors += sum(run_own(target, 16, 3600, done, count=count).errors for target, count in parts)
            seen.append((done, server.rss_mb()))
            say(f"soak: {done} requests, {seen[-1][1]:.1f} MB")
    return {"requests": seen[-1][0], "errors": errors, "mb_per_100k": slope(seen), "rss_mb": seen}


def slope(seen: Sequence[tuple[int, float]]) -> float:
    """MB per 100,000 requests by least squares, the first fifth left out."""
    kept = [(count, size) for count, size in seen if count >= seen[-1][0] / 5]
    counts, sizes = np.array(kept, float).T
    return float(np.polyfit(counts / 1e5, sizes, 1)[0])


def streams(folder: Path, count: int) -> dict[str, object]:
    """This many streams at once, each compared byte for byte."""
    with ExitStack() as stack:
        up = stack.enter_context(upstream("stream", folder, cores()[1]))
        server = enter_peer(stack, FINGERPOST, folder, up.port)
        case = CASES["stream"]
        target = Target(server.port, case.body("bench"), reply=case.reply)
        why = verify(server, case, target.body, {}, exact=True)
        if why:
            raise RuntimeError(f"fingerpost: {why}")
        before = server.rss_mb()
        found = run_own(target, count, 3600, count=count)
        after = server.rss_mb()
    right = found.requests - found.errors
    return {
        "asked": count,
        "right": right,
        "errors": found.errors,
        "seconds": found.seconds,
        "before_mb": before,
        "after_mb": after,
    }


def spread(times: Sequence[float]) -> dict[str, float]:
    """The quickest and the median."""
    return {"min": min(times), "median": statistics.median(times)}
