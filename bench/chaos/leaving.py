"""How soon a backend is let go of after a client has left, waiting or in mid-stream: `python -m bench.chaos.leaving`."""

from __future__ import annotations

import argparse
import json
import socket
import sys
import tempfile
import time
from contextlib import ExitStack, closing
from pathlib import Path

from bench.chaos.__main__ import Backend, config, serving

from fingerpost.testing import FakeReply

GOAL = 0.1


def leave(port: int, backend: Backend, *, stream: bool) -> float:
    """Seconds from the client's leaving until the backend has seen the end of its connection."""
    backend.fake.default = FakeReply("word " * 1000, pause=0.05) if stream else FakeReply(hang=True)
    gone, asked = backend.fake.abandoned, len(backend.fake.requests)
    body = json.dumps({"model": "auto", "messages": [{"role": "user", "content": "hi"}], "stream": stream}).encode()
    with closing(socket.create_connection(("127.0.0.1", port), timeout=30)) as client:
        client.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n" % len(body) + body)
        if stream:
            client.recv(65536)
        while len(backend.fake.requests) == asked:
            time.sleep(0.0005)
    start = time.perf_counter()
    while backend.fake.abandoned == gone:
        time.sleep(0.0005)
        if time.perf_counter() - start > 30:
            raise SystemExit("the backend was never let go of")
    return time.perf_counter() - start


def main() -> int:
    """Prints percentiles; returns 1 where the slowest took longer than the goal."""
    parser = argparse.ArgumentParser(prog="python -m bench.chaos.leaving", description=__doc__)
    parser.add_argument("--times", type=int, default=200)
    times, worst = parser.parse_args().times, 0.0
    with ExitStack() as stack:
        backend = Backend()
        stack.enter_context(backend.fake)
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        file = folder / "leaving.json"
        file.write_text(config([backend], 0))
        _, port = stack.enter_context(serving(file, folder / "log"))
        for stream in (False, True):
            took = sorted(leave(port, backend, stream=stream) for _ in range(times))
            worst = max(worst, took[-1])
            middle, late = took[len(took) // 2], took[len(took) * 99 // 100]
            kind = "in mid-stream" if stream else "waiting"
            print(f"{kind:14} p50 {middle * 1e3:6.1f} ms   p99 {late * 1e3:6.1f} ms   slowest {took[-1] * 1e3:6.1f} ms")
    return int(worst > GOAL)


if __name__ == "__main__":
    sys.exit(main())
