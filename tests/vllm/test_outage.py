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


def test_a_server_killed_in_mid_question_costs_the_verdict_and_not_the_request(vllm, serving, eventually):
    if not vllm.is_own:
        pytest.skip("somebody else has started this server")
    one = serving(routes=ROUTES, classifier={"use": "arch", "url": vllm.url, "deadline": 60}, server={"cache": 0})

    def ask() -> None:
        status, headers, _ = one.request("POST", "/v1/chat/completions", ASKED)
        answers.append((status, headers["x-fingerpost-route"]))

    answers: list[tuple[int, str]] = []
    ask()
    assert one.told()[-1].decision.source == "arch"

    vllm.signal(signal.SIGSTOP)  # the question arrives and is not answered
    asking = threading.Thread(target=ask)
    asking.start()
    eventually(lambda: one.world.gateway.in_flight == 1)
    vllm.signal(signal.SIGKILL)
    asking.join(30)
    assert answers[1] == (200, "other")
    assert "arch gave no verdict (arch: " in one.told(2)[-1].decision.reason

    ask()
    assert answers[2] == (200, "other")
    assert "arch gave no verdict (arch: " in one.told(3)[-1].decision.reason

    vllm.start()
    eventually(vllm.is_ready, seconds=900)
    ask()
    assert answers[3][0] == 200
    assert one.told(4)[-1].decision.source == "arch"
    assert len(one.fake.requests) == 4


def test_a_stream_from_vllm_passes_through_with_its_usage(vllm, serving):
    backend = {"name": "toy", "model": MODEL, "url": vllm.url}
    routes = [{"name": "other", "backends": ["toy"]}]
    one = serving(backends=[backend], routes=routes, classifier={"use": "fixed", "route": "other"})
    body = {**ASKED, "stream": True, "max_tokens": 8, "stream_options": {"include_usage": True}}
    status, headers, answer = one.request("POST", "/v1/chat/completions", body)
    assert (status, headers["x-fingerpost-backend"]) == (200, "toy")
    assert answer.rstrip().endswith(b"data: [DONE]")
    assert one.told()[-1].usage.output_tokens > 0
