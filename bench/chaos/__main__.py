"""Sends many requests through a serving process while everything around it breaks; exits with 1 if any went wrong.

Every request carries a nonce that its answer must carry; half of them are streamed. Once a second a backend dies, hangs, fails,
limits or returns (one at least is always well), and the configuration is rewritten and reloaded.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp

from fingerpost.testing import FakeBackend, FakeReply, Received

BACKENDS = 4
LATEST = 30.0
"""Seconds after which a request that has not ended is lost."""


@dataclass
class Tally:
    """How the requests ended: counts by kind, request ids as the clients saw them, and what must not be."""

    ends: Counter[str] = field(default_factory=Counter)
    ids: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    latest: float = 0.0


def answer_for(nonce: str) -> str:
    return f"{nonce} " + " ".join(f"word{number}-{nonce}" for number in range(6))


def nonce_of(request: Received) -> str:
    return str(request.json["messages"][-1]["content"])


class Backend:
    """A fake that is well, or ill in one of several ways."""

    def __init__(self) -> None:
        self.fake = FakeBackend(self.reply)
        self.illness = ""

    def reply(self, request: Received) -> FakeReply:
        text = answer_for(nonce_of(request))
        self.fake.requests.clear()  # thousands of them would only fill the memory
        match self.illness:
            case "hanging":
                return FakeReply(hang=True)
            case "failing":
                return FakeReply(status=random.choice([500, 502, 503]))
            case "limited":
                return FakeReply(status=429, headers={"retry-after": "1"})
            case "cutting":
                return FakeReply(text, cut_after=random.randrange(4))
            case "slow":
                return FakeReply(text, delay=0.2, pause=0.02)
        return FakeReply(text, pause=0.001)

    def fall(self, illness: str) -> None:
        self.illness = illness
        if illness == "dead":
            self.fake.stop()

    def recover(self) -> None:
        if self.illness == "dead":
            self.fake.__enter__()
        self.illness = ""


ILLNESSES = ("dead", "hanging", "failing", "limited", "cutting", "slow")


def config(backends: list[Backend], version: int) -> str:
    """A configuration whose order of backends and whose settings change with every version."""
    names = [f"b{index}" for index in range(len(backends))]
    turned = names[version % len(names) :] + names[: version % len(names)]
    return json.dumps({
        "backends": [
            {"name": name, "model": "m", "url": backend.fake.url, "timeouts": {"connect": 1, "read": 2},
             "breaker": {"pause": 0.3, "longest": 1}, "concurrency": 300 if name == "b0" else 300 + version % 2}
            for name, backend in zip(names, backends, strict=True)
        ],
        "routes": [{"name": "other", "backends": turned}],
        "classifier": {"use": "fixed", "route": "other"},
        "server": {"port": 0, "retries": 2, "deadline": 20, "drain": 25, "hedge": 1.0},
    })  # fmt: skip


@contextmanager
def serving(file: Path, log: Path) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    """The process and its port; ended in order when the block is left."""
    said = file.with_suffix(".said")
    with log.open("wb") as out, said.open("wb") as err:
        process = subprocess.Popen([sys.executable, "-m", "fingerpost", "serve", str(file)], stdout=out, stderr=err)
    try:
        found, end = None, time.perf_counter() + 60
        while found is None and time.perf_counter() < end and process.poll() is None:
            time.sleep(0.05)
            found = re.search(r"listens on http://127\.0\.0\.1:(\d+)", said.read_text())
        if found is None:
            raise SystemExit(f"the gateway did not start:\n{said.read_text()}")
        yield process, int(found[1])
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            process.kill()


async def ask(session: aiohttp.ClientSession, url: str, nonce: str, stream: bool, tally: Tally) -> None:
    """Sends one request and tallies how it ended."""
    body = {"model": "auto", "messages": [{"role": "user", "content": nonce}], "stream": stream}
    start, content, broken = time.perf_counter(), b"", False
    try:
        async with asyncio.timeout(LATEST), session.post(url, json=body) as answer:
            tally.ids[answer.headers.get("x-fingerpost-request-id", "none")] += 1
            try:
                async for chunk in answer.content.iter_any():
                    content += chunk
            except aiohttp.ClientPayloadError:
                broken = True
            end = judge(answer.status, content, nonce, stream=stream, broken=broken)
    except (TimeoutError, aiohttp.ClientError, OSError) as error:
        end = f"lost ({type(error).__name__})"
    tally.latest = max(tally.latest, time.perf_counter() - start)
    tally.ends[end.partition(":")[0]] += 1
    if not end.startswith(("answer", "error", "broken transfer")):
        tally.wrong.append(f"{nonce}: {end}")


def judge(status: int, content: bytes, nonce: str, *, stream: bool, broken: bool) -> str:
    """How a request ended: an answer, an error, a broken transfer (of a reply that had begun), or what is wrong with it."""
    text = content.decode(errors="replace")
    strangers = {found for found in re.findall(r"n\d+x[0-9a-f]+", text) if found != nonce}
    if strangers:
        return f"wrong bytes: {strangers}"
    if status != 200:
        fits = status in (429, 502, 503, 504) and not broken and set(json.loads(content)["error"]) == {
            "message", "type", "param", "code"
        }  # fmt: skip
        return f"error {status}" if fits else f"no error: {status} {text}"
    if not stream:
        if broken:
            return "broken transfer"
        said = json.loads(content)["choices"][0]["message"]["content"]
        return "answer, whole" if said == answer_for(nonce) else f"wrong answer: {text}"
    if broken:
        return f"broken stream: {text}"
    events = [event.removeprefix("data: ") for event in text.split("\n\n") if event]
    if events[-1] != "[DONE]":
        return "error event" if '"error"' in events[-1] and json.loads(events[-1])["error"]["code"] else f"short stream: {text}"
    said = "".join(json.loads(event)["choices"][0]["delta"].get("content", "") for event in events[:-1])
    return "answer, streamed" if said == answer_for(nonce) else f"wrong stream: {text}"


async def trouble(backends: list[Backend], process: subprocess.Popen[bytes], file: Path, every: float) -> None:
    """Makes a backend ill or well, and reloads, once in a while, until it is cancelled; then all are well again."""
    try:
        for version in itertools.count(1):
            await asyncio.sleep(every)
            other = file.with_suffix(".new")
            other.write_text(config(backends, version))
            os.replace(other, file)
            process.send_signal(signal.SIGHUP)
            ill = [backend for backend in backends if backend.illness]
            if ill and (len(ill) == len(backends) - 1 or random.random() < 0.5):
                await asyncio.to_thread(random.choice(ill).recover)
            else:
                well = [backend for backend in backends if not backend.illness]
                await asyncio.to_thread(random.choice(well).fall, random.choice(ILLNESSES))
    finally:
        for backend in backends:
            backend.recover()


async def load(port: int, requests: int, in_flight: int, tally: Tally) -> bytes:
    """Sends the requests, so many at a time; returns the gateway's metrics at the end."""
    url = f"http://127.0.0.1:{port}"
    numbers = iter(range(requests))
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:

        async def work() -> None:
            for number in numbers:
                nonce = f"n{number}x{random.getrandbits(48):x}"
                await ask(session, f"{url}/v1/chat/completions", nonce, number % 2 == 1, tally)

        async with asyncio.TaskGroup() as group:
            for _ in range(in_flight):
                group.create_task(work())
        async with session.get(f"{url}/metrics") as answer:
            return await answer.read()


def breaches(tally: Tally, log: list[dict[str, Any]], metrics: str, requests: int, code: int | None) -> list[str]:
    """Everything that should not have happened."""
    told = Counter(line["request_id"] for line in log)
    winners = [sum(not attempt["error"] for attempt in line["attempts"]) for line in log]
    held = re.findall(r"^(fingerpost_(?:in_flight|backend_in_flight\S*|backend_waiting\S*)) ([1-9]\S*)$", metrics, re.MULTILINE)
    found = [
        *tally.wrong[:20],
        *(f"{count} requests ended, not {requests}" for count in [sum(tally.ends.values())] if count != requests),
        *(f"{name} was told {count} times" for name, count in told.items() if count != 1),
        *(f"{name} was not told" for name in tally.ids if name not in told),
        *(f"{name} was told, and no client has seen it" for name in told if name not in tally.ids),
        *(f"request id {name} was given {count} times" for name, count in tally.ids.items() if count != 1),
        *(f"{count} attempts answered one request" for count in winners if count > 1),
        *(f"{name} is {value} when all is over" for name, value in held),
    ]
    return found if code == 0 else [*found, f"the gateway ended with {code}"]


def run(requests: int, in_flight: int, every: float, seed: int) -> int:
    """Runs it, prints the table, and returns the exit code."""
    random.seed(seed)
    tally, backends = Tally(), [Backend() for _ in range(BACKENDS)]
    with ExitStack() as stack:
        for backend in backends:
            stack.enter_context(backend.fake)
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        file, log = folder / "chaos.json", folder / "log"
        file.write_text(config(backends, 0))
        start = time.perf_counter()
        with serving(file, log) as (process, port):

            async def both() -> bytes:
                troubling = asyncio.ensure_future(trouble(backends, process, file, every))
                try:
                    return await load(port, requests, in_flight, tally)
                finally:
                    troubling.cancel()
                    await asyncio.gather(troubling, return_exceptions=True)

            metrics = asyncio.run(both()).decode()
            elapsed = time.perf_counter() - start
        lines = [json.loads(line) for line in log.read_text().splitlines()]
    found = breaches(tally, lines, metrics, requests, process.returncode)
    print(table(tally, lines, metrics, elapsed))
    for breach in found:
        print(f"BREACH: {breach}")
    print(f"{len(found)} breaches" if found else "nothing lost, nothing doubled, no wrong bytes, every request told once")
    return 1 if found else 0


def table(tally: Tally, log: list[dict[str, Any]], metrics: str, elapsed: float) -> str:
    kinds = Counter(attempt["kind"] for line in log for attempt in line["attempts"])
    reloads = dict(re.findall(r'fingerpost_config_reload_total\{result="(\w+)"\} (\d+)', metrics))
    rows = [
        ("requests", sum(tally.ends.values())),
        *sorted(tally.ends.items()),
        *((f"attempts: {kind}", count) for kind, count in sorted(kinds.items())),
        *((f"reloads: {result}", count) for result, count in sorted(reloads.items())),
        ("exchanges told", len(log)),
        ("slowest request, s", f"{tally.latest:.2f}"),
        ("seconds", f"{elapsed:.0f}"),
    ]
    return "\n".join(f"{name:28}{value:>10}" for name, value in rows)


def main() -> int:
    """Parses the command line and runs."""
    parser = argparse.ArgumentParser(prog="python -m bench.chaos", description=__doc__)
    parser.add_argument("--requests", type=int, default=50_000)
    parser.add_argument("--in-flight", type=int, default=200)
    parser.add_argument("--every", type=float, default=1.0, help="seconds between two troubles, and between two reloads")
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    return run(arguments.requests, arguments.in_flight, arguments.every, arguments.seed)


if __name__ == "__main__":
    sys.exit(main())
