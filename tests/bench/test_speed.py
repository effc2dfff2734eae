"""A run of a few requests against a real fingerpost process, with the upstream that needs neither nginx nor wrk."""

import sys
from contextlib import ExitStack, closing
from dataclasses import replace
from http.client import HTTPConnection
from pathlib import Path

import pytest
import yaml
from bench.speed.canned import upstream
from bench.speed.cases import CASES, LARGE, SMALL, STREAM
from bench.speed.load import Target, run_own
from bench.speed.measure import Plan, fresh_folder, measure
from bench.speed.peers import PEERS, fingerpost_config
from bench.speed.processes import cores, free_port

from fingerpost.config.shape import Config

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


def ask(port: int, method: str = "POST") -> tuple[int, bytes]:
    with closing(HTTPConnection("127.0.0.1", port, timeout=30)) as client:
        client.request(method, "/v1/chat/completions", b"{}")
        with client.getresponse() as answer:
            return answer.status, answer.read()


@pytest.fixture
def serving(tmp_path: Path, eventually):
    """Starts the plain upstream of a kind, and gives its port when it answers."""
    with ExitStack() as stack:

        def start(kind: str) -> int:
            server = stack.enter_context(upstream(kind, tmp_path, cores()[1], plain=True))

            def answers() -> bool:
                try:
                    return ask(server.port, "GET")[0] == 200
                except ConnectionError:
                    return False

            eventually(answers)
            return server.port

        yield start


@pytest.mark.parametrize(("kind", "reply"), [("small", SMALL), ("large", LARGE), ("stream", STREAM)])
def test_the_plain_upstream_answers_what_the_cases_expect(serving, kind: str, reply: bytes) -> None:
    assert ask(serving(kind)) == (200, reply)


def test_the_generator_counts_replies_and_finds_wrong_ones(serving) -> None:
    target = Target(serving("small"), CASES["small"].body("m"), reply=SMALL)
    right = run_own(target, 3, 60, count=20)
    wrong = run_own(replace(target, reply=SMALL[:-1]), 1, 60, count=5)
    longer = run_own(replace(target, reply=SMALL + b"x"), 1, 60, count=5)
    unseen = run_own(replace(target, reply=None), 1, 60, count=5)
    assert [(found.requests, found.errors) for found in (right, wrong, longer, unseen)] == [(20, 0), (5, 5), (5, 5), (5, 0)]
    assert 0 < right.p50 <= right.p99 <= right.seconds


def test_the_generator_counts_what_cannot_be_asked() -> None:
    found = run_own(Target(free_port(), CASES["small"].body("m")), 2, 60, count=5)
    assert (found.requests, found.errors) == (0, 2)


def test_fingerposts_configuration_is_the_default_one_with_one_backend() -> None:
    config = Config.model_validate(yaml.safe_load(fingerpost_config(1234, 5678, cache=7)))
    assert [backend.name for backend in config.backends] == ["bench"]
    assert len(config.routes) == 6
    assert config.server.port == 1234
    assert config.server.cache == 7
    assert config.classifier.use == "embedded"


def test_a_missing_gateway_is_said_with_what_to_do(tmp_path: Path) -> None:
    gone = replace(PEERS["envoy"], program=tmp_path / "envoy")
    assert "envoy is not installed" in gone.missing()
    assert "scripts/bench-speed" in gone.missing()
    assert PEERS["fingerpost"].missing() == ""


def test_a_small_run_measures_fingerpost_in_all_three_ways(tmp_path: Path) -> None:
    said: list[str] = []
    cases = (replace(CASES["small"], connections=(2,)),)
    *_, found = measure(Plan(("fingerpost",), cases, fresh_folder(tmp_path), 1, 0.2, (2,), plain=True, say=said.append))
    by = {cell.subject: cell for cell in found.cells}
    assert list(by) == ["direct", "fingerpost", "fingerpost-auto", "fingerpost-cached"]
    assert [cell.void for cell in found.cells] == [""] * 4
    assert by["direct"].cpu_us == 0
    assert all(by[name].cpu_us > 0 and by[name].requests > 0 for name in list(by)[1:])
    assert found.memory[0].before_mb > 20
    assert len(said) == 4
