"""The server dies in the middle of a question and comes back: requests are served all the same."""

from __future__ import annotations

import signal
import threading

import pytest

from fingerpost.classifiers.arch import MODEL

ASKED = {"model": "auto", "messages": [{"role": "user", "content": "Will it rain in Lisbon tomorrow?"}]}
ROUTES = [
    {"name": "weather", "description": "The user asks what the weather will be like somewhere.", "backends": ["b0"]},
    {"name": "other", "backends": ["b0"]},
]


def test_a_server_killed_in_mid_question_costs_the_verdict_and_not_the_request(server, serving, eventually):
    if not server.is_own:
        pytest.skip("somebody else has started this server")
    one = serving(routes=ROUTES, classifier={"use": "arch", "url": server.url, "deadline": 60}, server={"cache": 0})

    def ask() -> None:
        status, headers, _ = one.request("POST", "/v1/chat/completions", ASKED)
        answers.append((status, headers["x-fingerpost-route"]))

    answers: list[tuple[int, str]] = []
    ask()
    assert one.told()[-1].decision.source == "arch"

    server.signal(signal.SIGSTOP)  # the question arrives and is not answered
    asking = threading.Thread(target=ask)
    asking.start()
    eventually(lambda: one.world.gateway.in_flight == 1)
    server.signal(signal.SIGKILL)
    asking.join(30)
    assert answers[1] == (200, "other")
    assert "arch gave no verdict (arch: " in one.told(2)[-1].decision.reason

    ask()
    assert "arch gave no verdict (arch: " in one.told(3)[-1].decision.reason
    while "it keeps failing" not in one.told(len(answers))[-1].decision.reason:
        assert len(answers) < 10, "the circuit should have opened after five failures"
        ask()
    assert set(answers[2:]) == {(200, "other")}

    server.start()
    eventually(server.is_ready, seconds=900)
    before = len(answers)

    def answered_again() -> bool:
        ask()
        return one.told(len(answers))[-1].decision.source == "arch"

    eventually(answered_again)
    assert all(status == 200 for status, _ in answers[before:])
    assert len(one.fake.requests) == len(answers)


def test_a_stream_from_server_passes_through_with_its_usage(server, serving):
    backend = {"name": "toy", "model": MODEL, "url": server.url}
    routes = [{"name": "other", "backends": ["toy"]}]
    one = serving(backends=[backend], routes=routes, classifier={"use": "fixed", "route": "other"})
    body = {**ASKED, "stream": True, "max_tokens": 8, "stream_options": {"include_usage": True}}
    status, headers, answer = one.request("POST", "/v1/chat/completions", body)
    assert (status, headers["x-fingerpost-backend"]) == (200, "toy")
    assert answer.rstrip().endswith(b"data: [DONE]")
    assert one.told()[-1].usage.output_tokens > 0
