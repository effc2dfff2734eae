"""Several processes behind one port: a real parent in this process, real workers in theirs."""

from __future__ import annotations

import asyncio
import http.client
import json
import os
import signal
import socket
import ssl
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import ExitStack, asynccontextmanager, closing
from pathlib import Path
from typing import Any

import pytest
import trustme

from fingerpost.errors import ConfigError
from fingerpost.observers.totals import total
from fingerpost.server.files import ConfigFile
from fingerpost.server.sockets import bind
from fingerpost.server.workers import Workers, serve_together
from fingerpost.testing import FakeBackend, FakeReply

CHAT = "/v1/chat/completions"
HI = {"model": "auto", "messages": [{"role": "user", "content": "hi"}]}
STREAM = {**HI, "stream": True}


def text(url: str, *, route: str = "chat", more: str = "", classifier: str = "") -> str:
    return f"""
backends: [{{name: b0, model: m, url: "{url}", accepts: [text, image]}}]
routes: [{{name: {route}, description: Small talk., backends: [b0]}}, {{name: other, backends: [b0]}}]
classifier: {classifier or f"{{use: fixed, route: {route}}}"}
server: {{port: 0, workers: 2, admin: {{port: 0}}{more}}}
"""


class Together:
    """Workers behind a port, and a plain client for them; all of it blocks and belongs into a thread."""

    def __init__(self, workers: Workers, ports: list[int], until: Callable[..., None]) -> None:
        self.workers = workers
        self.port, self.admin = ports
        self.until = until
        self.tls: ssl.SSLContext | None = None

    @property
    def pids(self) -> list[int]:
        return [one.process.pid for one in self.workers._running.values() if one.ready_at is not None]

    def connect(self, port: int) -> http.client.HTTPConnection:
        if self.tls:
            return http.client.HTTPSConnection("127.0.0.1", port, timeout=30, context=self.tls)
        return http.client.HTTPConnection("127.0.0.1", port, timeout=30)

    def ask(self, method: str, path: str, body: Any = None, port: int | None = None) -> tuple[int, dict[str, str], bytes]:
        with closing(self.connect(port or self.port)) as client:
            client.request(method, path, body and json.dumps(body), {})
            with client.getresponse() as answer:
                return answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read()

    def metrics(self) -> dict[str, float]:
        lines = self.ask("GET", "/metrics", port=self.admin)[2].decode().split("\n")
        return {line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in lines if line and line[0] != "#"}

    def answered(self) -> float:
        return sum(value for series, value in self.metrics().items() if series.startswith("fingerpost_requests_total"))

    def models(self) -> bytes:
        return self.ask("GET", "/v1/models")[2]

    def kill_one(self) -> None:
        """Kills a worker and waits until another one has its place."""
        victim = self.pids[0]
        os.kill(victim, signal.SIGKILL)
        self.until(lambda: len(self.pids) == 2 and victim not in self.pids)


Start = Callable[..., Any]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "fingerpost.yaml"


@pytest.fixture
def plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], str]:
    """What writes a classifier that does something as it is built, and returns how it is named in a configuration."""

    def write(does: str) -> str:
        (tmp_path / "mine.py").write_text(f"""
import os, sys, time
from fingerpost.classifiers.fixed import Fixed

def build():
    {does}
    return Fixed("other", 1.0)
""", encoding="utf-8")  # fmt: skip
        monkeypatch.syspath_prepend(tmp_path)
        return "{use: 'mine:build'}"

    return write


@pytest.fixture
def together(path: Path, eventually: Callable[..., None], capfd: pytest.CaptureFixture[str]) -> Start:
    """What starts workers, in `async with`, that serve what a text says."""

    @asynccontextmanager
    async def start(
        content: str, meanwhile: Callable[[Workers], None] = lambda _: None, **options: Any
    ) -> AsyncIterator[Together]:
        await asyncio.to_thread(path.write_text, content, encoding="utf-8")
        file = ConfigFile(path, {})
        config = file.read().config
        with ExitStack() as opened:
            main, [admin] = (bind(opened, "127.0.0.1", 0, copies) for copies in (2, 1))
            workers = Workers(file, config, main, admin, **options)
            one = Together(workers, [bound[0].getsockname()[1] for bound in (main[0], admin)], eventually)
            running = asyncio.ensure_future(workers.run())
            try:
                await asyncio.to_thread(meanwhile, workers)
                await asyncio.to_thread(eventually, lambda: workers._open or running.done())
                yield one
            finally:
                workers._stop(signal.SIGTERM)
                one.code = await running

    return start


async def test_both_serve_one_port_their_metrics_add_up_and_one_that_is_told_to_stop_is_replaced(
    together: Start, fake: FakeBackend, capfd: Any
) -> None:
    async with together(text(fake.url)) as one:

        def use() -> None:
            before: set[str] = set()
            for _ in range(40):
                before.add(one.ask("POST", CHAT, HI)[1]["x-fingerpost-request-id"][:22])
            assert len(before) == 2
            workers: set[int] = set()

            def both_have_answered() -> bool:
                assert one.answered() == 40
                workers.add(json.loads(one.ask("GET", "/readyz", port=one.admin)[2])["worker"])
                return workers == {1, 2}

            one.until(both_have_answered)  # the administrators' port is one socket: whoever wakes first takes what comes
            metrics = one.metrics()
            assert metrics["fingerpost_workers"] == 2
            assert metrics["fingerpost_worker_replacements_total"] == 0
            assert metrics['fingerpost_attempts_total{backend="b0",status="200"}'] == 40
            assert metrics['fingerpost_decision_seconds_bucket{cached="false",le="+Inf",source="fixed"}'] == 2
            assert one.ask("GET", "/metrics")[0] == 403

        def tell_one_to_stop() -> None:
            victim = one.pids[1]
            os.kill(victim, signal.SIGTERM)
            one.until(lambda: len(one.pids) == 2 and victim not in one.pids)
            assert one.answered() == 40

        await asyncio.to_thread(use)
        assert len(set(one.pids)) == 2
        await asyncio.to_thread(tell_one_to_stop)
    assert one.code == 0
    assert capfd.readouterr().err.splitlines() == [
        f"fingerpost listens on http://127.0.0.1:{one.port}",
        f"its administrators' port on http://127.0.0.1:{one.admin}",
        "worker 2 ended (exit code 0); it is replaced",
    ]


async def test_one_that_does_not_answer_is_in_the_metrics_with_what_it_said_last(together: Start, fake: FakeBackend) -> None:
    async with together(text(fake.url), patience=0.1) as one:

        def use() -> None:
            for _ in range(10):
                assert one.ask("POST", CHAT, HI)[0] == 200
            said = one.workers._running
            one.until(lambda: '200"} 10.0' in total([said[number].metrics for number in said]))
            os.kill(one.pids[0], signal.SIGSTOP)
            try:
                assert one.answered() == 10
            finally:
                os.kill(one.pids[0], signal.SIGCONT)

        await asyncio.to_thread(use)


async def test_the_others_serve_for_one_that_is_silent_until_it_speaks_again(
    together: Start, fake: FakeBackend, capfd: Any
) -> None:
    async with together(text(fake.url)) as one:

        def use() -> None:
            victim = one.pids[0]
            os.kill(victim, signal.SIGSTOP)
            try:
                for _ in range(12):
                    assert one.ask("POST", CHAT, HI)[0] == 200
                one.until(lambda: one.metrics()["fingerpost_workers"] == 1)
            finally:
                os.kill(victim, signal.SIGCONT)
            one.until(lambda: one.metrics()["fingerpost_workers"] == 2)
            assert victim in one.pids

        await asyncio.to_thread(use)
    assert one.code == 0
    assert "hangs" not in capfd.readouterr().err


async def test_one_that_hangs_is_killed_and_replaced_while_requests_go_on(
    together: Start, fake: FakeBackend, capfd: Any
) -> None:
    async with together(text(fake.url), hung=6) as one:
        done, broken = [], []
        enough = threading.Event()

        def load() -> None:
            while not enough.is_set():
                try:
                    done.append(one.ask("POST", CHAT, HI)[0])
                except (http.client.HTTPException, OSError) as error:
                    broken.append(error)

        def stop_one_and_look() -> None:
            clients = [threading.Thread(target=load) for _ in range(4)]
            for client in clients:
                client.start()
            one.until(lambda: len(done) > 20)
            victim = one.pids[0]
            os.kill(victim, signal.SIGSTOP)
            one.until(lambda: len(one.pids) == 2 and victim not in one.pids)
            enough.set()
            for client in clients:
                client.join(30)
            assert [one.ask("POST", CHAT, HI)[0] for _ in range(20)] == [200] * 20

        await asyncio.to_thread(stop_one_and_look)
    told = capfd.readouterr().err
    assert set(done) == {200}
    assert len(broken) <= 4
    assert one.code == 0
    assert "worker 1 hangs: it has said nothing for 6 s; it is killed\nworker 1 ended (signal 9); it is replaced\n" in told


async def test_one_that_hangs_does_not_keep_the_others_from_stopping(together: Start, fake: FakeBackend, capfd: Any) -> None:
    async with together(text(fake.url), hung=4) as one:
        os.kill(one.pids[0], signal.SIGSTOP)
    assert one.code == 1
    assert "worker 1 hangs" in capfd.readouterr().err


async def test_a_thread_that_never_ends_does_not_hold_up_the_end(
    together: Start, plugin: Callable[[str], str], fake: FakeBackend, capfd: Any
) -> None:
    use = plugin("__import__('threading').Thread(target=time.sleep, args=(300,)).start()")
    async with together(text(fake.url, classifier=use)) as one:
        assert (await asyncio.to_thread(one.ask, "POST", CHAT, HI))[0] == 200
    assert one.code == 0
    assert '"outcome":"completed"' in capfd.readouterr().out


async def test_nobody_takes_a_long_start_for_a_hang(
    together: Start, plugin: Callable[[str], str], fake: FakeBackend, path: Path, capfd: Any
) -> None:
    slow = path.with_name("slow")
    use = plugin(f"if os.path.exists({str(slow)!r}): time.sleep(6)")
    async with together(text(fake.url, classifier=use), hung=5) as one:
        slow.touch()
        await asyncio.to_thread(one.kill_one)
    assert one.code == 0
    assert "hangs" not in capfd.readouterr().err


async def test_the_death_of_one_that_has_forked_is_seen(
    together: Start, plugin: Callable[[str], str], fake: FakeBackend, path: Path
) -> None:
    over = path.with_name("over")
    use = plugin(f"""if os.fork() == 0:
        end = time.monotonic() + 120
        while time.monotonic() < end and not os.path.exists({str(over)!r}): time.sleep(0.1)
        os._exit(0)""")
    try:
        async with together(text(fake.url, classifier=use)) as one:
            await asyncio.to_thread(one.kill_one)
    finally:
        over.touch()
    assert one.code == 0


async def test_a_program_that_a_plugin_started_does_not_hold_the_port(
    together: Start, plugin: Callable[[str], str], fake: FakeBackend, path: Path
) -> None:
    pids = path.with_name("pids")
    use = plugin(f"""pid = os.spawnv(os.P_NOWAIT, sys.executable, [sys.executable, "-c", "import time; time.sleep(120)"])
    with open({str(pids)!r}, "a") as file: print(pid, file=file)""")
    try:
        async with together(text(fake.url, classifier=use)) as one:
            assert await asyncio.to_thread(one.models)
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", one.port))
    finally:
        for pid in pids.read_text().split():
            os.kill(int(pid), signal.SIGKILL)
    assert one.code == 0


async def test_the_death_of_one_breaks_its_own_requests_alone_and_it_is_replaced(
    together: Start, fake: FakeBackend, capfd: Any
) -> None:
    fake.default = FakeReply("one two", pause=0.01)
    async with together(text(fake.url)) as one:
        done, broken = [], []
        enough = threading.Event()

        def load() -> None:
            while not enough.is_set():
                try:
                    status, _, content = one.ask("POST", CHAT, STREAM)
                    done.append(status == 200 and content.endswith(b"data: [DONE]\n\n"))
                except (http.client.HTTPException, OSError) as error:
                    broken.append(error)

        def kill_and_look() -> None:
            clients = [threading.Thread(target=load) for _ in range(6)]
            for client in clients:
                client.start()
            one.until(lambda: len(done) > 50)
            one.until(lambda: one.answered() > 50)
            counted = one.answered()
            one.kill_one()
            assert one.answered() >= counted
            enough.set()
            for client in clients:
                client.join(30)
            assert one.metrics()["fingerpost_worker_replacements_total"] == 1

        await asyncio.to_thread(kill_and_look)
    assert all(done)
    assert len(broken) <= 6
    assert not [error for error in broken if isinstance(error, ConnectionRefusedError)]
    assert one.code == 0
    assert "ended (signal 9); it is replaced\n" in capfd.readouterr().err


async def test_sigterm_lets_streams_finish_and_the_code_is_0(together: Start, fake: FakeBackend) -> None:
    fake.default = FakeReply("one two three four five six", pause=0.1)
    async with together(text(fake.url)) as one:
        answers: list[Any] = []

        def use() -> None:
            clients = [threading.Thread(target=lambda: answers.append(one.ask("POST", CHAT, STREAM))) for _ in range(6)]
            for client in clients:
                client.start()
            one.until(lambda: len(fake.requests) == 6)
            os.kill(os.getpid(), signal.SIGTERM)
            for client in clients:
                client.join(30)
            with pytest.raises(ConnectionRefusedError):
                socket.create_connection(("127.0.0.1", one.port))

        await asyncio.to_thread(use)
    assert one.code == 0
    assert [(status, content[-16:]) for status, _, content in answers] == [(200, b"\n\ndata: [DONE]\n\n")] * 6


async def test_a_second_ctrl_c_cuts(together: Start, fake: FakeBackend) -> None:
    fake.default = FakeReply(hang=True)
    async with together(text(fake.url)) as one:
        answers: list[int] = []

        def use() -> None:
            client = threading.Thread(target=lambda: answers.append(one.ask("POST", CHAT, HI)[0]))
            client.start()
            one.until(lambda: fake.requests)
            os.kill(os.getpid(), signal.SIGINT)
            # Two of the same signal that wait for a process are one to it.
            one.until(lambda: all(worker.leaving for worker in one.workers._running.values()))
            os.kill(os.getpid(), signal.SIGINT)
            client.join(30)

        await asyncio.to_thread(use)
    assert (one.code, answers) == (0, [503])


async def test_all_follow_the_file_and_sighup_and_a_bad_file_keeps_the_last_good_one_even_in_a_new_worker(
    together: Start, fake: FakeBackend, path: Path, capfd: Any
) -> None:
    async with together(text(fake.url)) as one:

        def reload(content: str) -> None:
            path.write_text(content, encoding="utf-8")
            os.kill(os.getpid(), signal.SIGHUP)

        def use() -> None:
            path.write_text(text(fake.url, route="talk", more=", reload: false"), encoding="utf-8")
            one.until(lambda: one.metrics().get('fingerpost_config_reload_total{result="ok"}') == 2)
            assert all(b'"talk"' in one.models() for _ in range(20))
            reload("backends: nonsense")
            one.until(lambda: one.metrics().get('fingerpost_config_reload_total{result="failed"}') == 2)
            assert one.metrics()["fingerpost_config_last_reload_ok"] == 0
            one.kill_one()
            assert all(b'"talk"' in one.models() for _ in range(20))
            reload(text(fake.url, route="chat", more=", reload: false"))
            one.until(lambda: one.metrics()["fingerpost_config_last_reload_ok"] == 1)
            assert all(b'"chat"' in one.models() for _ in range(20))

        await asyncio.to_thread(use)
    assert capfd.readouterr().err.count(f"fingerpost reloaded {path}") == 4


async def test_a_new_worker_serves_as_the_others_what_a_reload_cannot_change(
    together: Start, fake: FakeBackend, path: Path, capfd: Any
) -> None:
    async with together(text(fake.url)) as one:

        def use() -> None:
            changed = text(fake.url, route="talk", more=", host: 0.0.0.0, tls: {cert: nowhere.crt, key: nowhere.key}")
            path.write_text(changed, encoding="utf-8")
            one.until(lambda: one.metrics().get('fingerpost_config_reload_total{result="ok"}') == 2)
            one.kill_one()
            assert all(b'"talk"' in one.models() for _ in range(20))

        await asyncio.to_thread(use)
    assert one.code == 0
    assert "server.tls has changed" in capfd.readouterr().err


async def test_a_reload_that_is_asked_for_while_workers_start_reaches_all(
    together: Start, plugin: Callable[[str], str], fake: FakeBackend, path: Path, eventually: Callable[..., None]
) -> None:
    slow = plugin("time.sleep(0.5)")

    def reload(workers: Workers) -> None:
        eventually(lambda: workers._running)
        path.write_text(text(fake.url, route="talk", classifier=slow, more=", reload: false"), encoding="utf-8")
        os.kill(os.getpid(), signal.SIGHUP)

    async with together(text(fake.url, classifier=slow, more=", reload: false"), meanwhile=reload) as one:

        def use() -> None:
            one.until(lambda: one.metrics().get('fingerpost_config_reload_total{result="ok"}') == 2)
            assert all(b'"talk"' in one.models() for _ in range(20))

        await asyncio.to_thread(use)


async def test_one_that_cannot_load_the_certificate_is_tried_again_until_it_can_while_the_others_serve(
    together: Start, fake: FakeBackend, path: Path, capfd: Any
) -> None:
    authority = trustme.CA()
    leaf = authority.issue_cert("127.0.0.1")
    cert, key = path.with_name("tls.crt"), path.with_name("tls.key")
    leaf.cert_chain_pems[0].write_to_path(cert)
    leaf.private_key_pem.write_to_path(key)
    context = ssl.create_default_context()
    authority.configure_trust(context)
    told: list[str] = []

    def heard(what: str) -> int:
        told.append(capfd.readouterr().err)
        return "".join(told).count(what)

    more = f", tls: {{cert: {cert}, key: {key}}}"
    async with together(text(fake.url, more=more), pauses=(0.0, 0.05)) as one:
        one.tls = context

        def use() -> None:
            good = cert.read_bytes()
            cert.unlink()
            os.kill(one.pids[0], signal.SIGKILL)
            one.until(lambda: heard("worker 1 could not start (exit code 2); it is tried again in 0.05 s") > 3)
            assert [one.ask("POST", CHAT, HI)[0] for _ in range(5)] == [200] * 5
            assert one.metrics()["fingerpost_worker_replacements_total"] == 0
            cert.write_bytes(good)
            one.until(lambda: len(one.pids) == 2)
            assert [one.ask("POST", CHAT, HI)[0] for _ in range(20)] == [200] * 20
            assert one.metrics()["fingerpost_worker_replacements_total"] == 1

        await asyncio.to_thread(use)
    assert one.code == 0
    assert heard(f"server.tls.cert: {cert} cannot be read (No such file or directory)") > 3


async def test_where_none_is_left_and_none_can_start_the_whole_ends(
    together: Start, plugin: Callable[[str], str], fake: FakeBackend, path: Path, capfd: Any
) -> None:
    broken = path.with_name("broken")
    use = plugin(f"assert not os.path.exists({str(broken)!r})")
    async with together(text(fake.url, classifier=use), pauses=(0.0, 0.05)) as one:

        def kill_all() -> None:
            broken.touch()
            for pid in one.pids:
                os.kill(pid, signal.SIGKILL)
            one.until(one.workers._stopping.is_set)

        await asyncio.to_thread(kill_all)
    assert one.code == 1
    assert "could not start (exit code 2), and no other one serves; fingerpost stops" in capfd.readouterr().err


async def test_what_is_wrong_at_the_start_is_told_once(together: Start, fake: FakeBackend, capfd: Any) -> None:
    async with together(text(fake.url, classifier="nowhere.to_be:found")) as one:
        pass
    told = capfd.readouterr().err
    assert one.code == 2
    assert told.count("nowhere.to_be:found cannot be imported") == 1
    assert "worker 1 could not start (exit code 2); fingerpost stops" in told
    assert "listens" not in told


async def test_one_that_dies_again_and_again_ends_the_whole(together: Start, fake: FakeBackend, capfd: Any) -> None:
    async with together(text(fake.url), pauses=(0.0, 0.05)) as one:

        def use() -> None:
            for _ in range(3):
                one.until(lambda: 1 in one.workers._running and one.workers._running[1].ready_at is not None)
                victim = one.workers._running[1].process.pid
                os.kill(victim, signal.SIGKILL)
                one.until(lambda dead=victim: dead not in one.pids)
            one.until(one.workers._stopping.is_set)

        await asyncio.to_thread(use)
    told = capfd.readouterr().err
    assert one.code == 1
    assert "worker 1 died 3 times in a row soon after its start (last: signal 9); fingerpost stops" in told
    assert "it is replaced in 0.05 s" in told


def test_a_taken_port_is_said_plainly_and_returns_1(path: Path, capfd: Any) -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as taken:
        port = taken.getsockname()[1]
        path.write_text(text("http://127.0.0.1:9/v1"), encoding="utf-8")
        file = ConfigFile(path, {"port": port})
        assert serve_together(file, file.read().config) == 1
        told = capfd.readouterr().err
        assert f"server: cannot listen on 127.0.0.1:{port}: Address already in use" in told
        assert f"fingerpost could not start on 127.0.0.1:{port}" in told
        path.write_text(text("http://127.0.0.1:9/v1").replace("admin: {port: 0}", f"admin: {{port: {port}}}"))
        file = ConfigFile(path, {})
        assert serve_together(file, file.read().config) == 1
    assert f"server.admin: cannot listen on 127.0.0.1:{port}" in capfd.readouterr().err


async def test_a_port_that_is_taken_meanwhile_is_said_plainly(path: Path, capfd: Any) -> None:
    file = ConfigFile(path, {}, text("http://127.0.0.1:9/v1"))
    config = file.parse(file.text).config
    with ExitStack() as opened, closing(socket.socket()) as other:
        main = bind(opened, "127.0.0.1", 0, 2)
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        other.bind(main[0][0].getsockname())
        other.listen()
        assert await Workers(file, config, main).run() == 1
    assert "cannot listen: Address already in use; fingerpost stops" in capfd.readouterr().err


def test_who_could_be_reached_by_strangers_is_refused_before_a_worker_starts(path: Path) -> None:
    path.write_text(text("http://127.0.0.1:9/v1"), encoding="utf-8")
    file = ConfigFile(path, {"host": "0.0.0.0"})
    with pytest.raises(ConfigError, match="there are no keys"):
        serve_together(file, file.read().config)


def test_a_certificate_that_cannot_be_used_is_told_before_a_worker_starts(path: Path) -> None:
    path.write_text(text("http://127.0.0.1:9/v1", more=", tls: {cert: nowhere.crt, key: nowhere.key}"), encoding="utf-8")
    file = ConfigFile(path, {})
    with pytest.raises(ConfigError, match=r"server\.tls\.cert: nowhere\.crt cannot be read"):
        serve_together(file, file.read().config)
