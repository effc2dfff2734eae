"""A short run of `python -m bench.chaos`, and that its judge sees what it is there to see."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from bench.chaos.__main__ import Tally, answer_for, breaches, judge

ROOT = Path(__file__).parents[2]
NONCE = "n1xabc"


def whole(text: str) -> bytes:
    return json.dumps({"choices": [{"message": {"content": text}}]}).encode()


def stream(*texts: str, end: str = "data: [DONE]\n\n") -> bytes:
    deltas = [json.dumps({"choices": [{"delta": {"content": text}}]}) for text in texts]
    return ("".join(f"data: {delta}\n\n" for delta in deltas) + end).encode()


ERROR = json.dumps({"error": {"message": "x", "type": "server_error", "param": None, "code": "y"}})


def test_nothing_is_lost_doubled_or_mixed_up_while_backends_die_and_the_configuration_is_reloaded() -> None:
    command = [sys.executable, "-m", "bench.chaos", "--requests", "1000", "--in-flight", "100", "--every", "0.4"]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=240, cwd=ROOT, check=False)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert "exchanges told                    1000" in ran.stdout
    assert "reloads: ok" in ran.stdout


@pytest.mark.parametrize(
    ("status", "content", "streamed", "broken", "end"),
    [
        (200, whole(answer_for(NONCE)), False, False, "answer, whole"),
        (200, whole(answer_for(NONCE))[:40], False, True, "broken transfer"),
        (200, stream(answer_for(NONCE)), True, False, "answer, streamed"),
        (200, stream(NONCE, end=f"data: {ERROR}\n\n"), True, False, "error event"),
        (503, ERROR.encode(), True, False, "error 503"),
        (500, ERROR.encode(), True, False, "no error"),
        (503, b'{"error": {}}', True, False, "no error"),
        (200, whole(answer_for("n2xabc")), False, False, "wrong bytes"),
        (200, whole(answer_for(NONCE) * 2), False, False, "wrong answer"),
        (200, stream(answer_for(NONCE), answer_for(NONCE)), True, False, "wrong stream"),
        (200, stream(NONCE, end=""), True, False, "short stream"),
        (200, stream(NONCE), True, True, "broken stream"),
    ],
)
def test_the_judge_knows_how_a_request_ended(status: int, content: bytes, streamed: bool, broken: bool, end: str) -> None:
    assert judge(status, content, NONCE, stream=streamed, broken=broken).startswith(end)


def line(name: str, *errors: str) -> dict[str, Any]:
    return {"request_id": name, "attempts": [{"error": error} for error in errors]}


@pytest.mark.parametrize(
    ("log", "ids", "metrics", "code", "words"),
    [
        ([line("a", "")], ["a"], "", 0, None),
        ([line("a", "x", "")], ["a"], "fingerpost_in_flight 0.0", 0, None),
        ([line("a", "")], ["a"], "", 1, "ended with 1"),
        ([], ["a"], "", 0, "a was not told"),
        ([line("a", ""), line("a", "")], ["a"], "", 0, "a was told 2 times"),
        ([line("a", "", "")], ["a"], "", 0, "2 attempts answered"),
        ([line("a", ""), line("b", "")], ["a"], "", 0, "b was told, and no client"),
        ([line("a", "")], ["a", "a"], "", 0, "given 2 times"),
        ([line("a", "")], ["a"], 'fingerpost_backend_in_flight{backend="b0"} 1.0', 0, "when all is over"),
    ],
)
def test_every_breach_is_found(log: list[Any], ids: list[str], metrics: str, code: int, words: str | None) -> None:
    tally = Tally(ends=Counter({"answer, whole": len(ids)}), ids=Counter(ids))
    found = breaches(tally, log, metrics, len(ids), code)
    assert [words in breach for breach in found] == [True] if words else found == []


def test_a_request_that_never_ended_is_a_breach() -> None:
    assert breaches(Tally(), [], "", 1, 0) == ["0 requests ended, not 1"]
