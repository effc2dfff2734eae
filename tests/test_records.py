from __future__ import annotations

import json

import msgspec
import pytest

from fingerpost.records import Attempt, Constraint, Decision, Exchange, Usage, Verdict
from fingerpost.routes import Backend, Price

SMALL = Backend(
    "small", "vendor/small", "http://small/v1", key="sk-SECRET", headers={"x-key": "sk-HEADER"}, price=Price(1.0, 10.0)
)
BIG = Backend("big", "vendor/big", "http://big/v1")
VERDICT = Verdict({"other": 0.1, "chat": 0.70004, "hard": 0.2}, "embedded", 0.00123456, "cut to 10 tokens")
DECISION = Decision(
    "chat",
    (SMALL, BIG),
    "embedded is 70% sure",
    "embedded",
    0.70004,
    VERDICT,
    (Constraint("tiny", "does not accept image"),),
    0.0025,
    cached=True,
)


def exchange(**fields):
    given = {"request_id": "r1", "outcome": "completed", "status": 200, "key": None, "stream": True, "elapsed": 1.5}
    return Exchange(**given | {"decision": DECISION, "attempts": (Attempt("small", 200),), "backend": SMALL} | fields)


def test_a_verdict_names_its_most_probable_route_and_confidence():
    assert (VERDICT.route, VERDICT.confidence) == ("chat", 0.70004)


def test_an_empty_verdict_means_other_without_confidence():
    assert (Verdict({}, "x").route, Verdict({}, "x").confidence) == ("other", 0.0)


def test_of_equally_probable_routes_the_first_counts():
    assert Verdict({"a": 0.5, "b": 0.5}, "x").route == "a"


def test_a_verdict_is_told_with_the_most_probable_route_first():
    told = VERDICT.to_json()

    assert told == {
        "route": "chat",
        "confidence": 0.7,
        "probabilities": {"chat": 0.7, "hard": 0.2, "other": 0.1},
        "source": "embedded",
        "ms": 1.235,
        "note": "cut to 10 tokens",
    }
    assert list(told["probabilities"]) == ["chat", "hard", "other"]


def test_a_verdict_without_a_note_tells_none():
    assert "note" not in Verdict({"a": 1.0}, "x").to_json()


def test_a_decision_tells_what_the_route_endpoint_answers():
    assert DECISION.to_json() == {
        "route": "chat", "backend": "small", "model": "vendor/small", "backends": ["small", "big"], "confidence": 0.7,
        "probabilities": {"chat": 0.7, "hard": 0.2, "other": 0.1}, "source": "embedded", "reason": "embedded is 70% sure",
        "constraints": [{"backend": "tiny", "why": "does not accept image"}], "cached": True, "ms": 2.5,
    }  # fmt: skip


def test_a_decision_without_verdict_or_backends_tells_nulls():
    told = Decision("other", (), "no verdict", "default").to_json()

    assert (told["backend"], told["model"], told["confidence"], told["probabilities"]) == (None, None, None, {})


def test_an_attempt_tells_its_status_or_its_error():
    assert msgspec.to_builtins(Attempt("small", None, "cannot connect", 0.12345).line()) == {
        "backend": "small", "kind": "first", "status": None, "error": "cannot connect", "ms": 123.5,
    }  # fmt: skip


@pytest.mark.parametrize(("kind", "called"), [("first", True), ("failover", True), ("retry", True), ("hedge", True),
                                               ("full", False), ("resting", False), ("open", False)])  # fmt: skip
def test_an_attempt_knows_whether_the_backend_was_called(kind, called):
    assert Attempt("small", None, kind=kind).called is called


def test_an_exchange_tells_the_whole_story():
    told = exchange(first_byte=0.5, sent_bytes=10, usage=Usage(1_000_000, 100_000)).to_json()

    assert told == {
        "request_id": "r1", "outcome": "completed", "status": 200, "key": None, "stream": True, "route": "chat",
        "backend": "small",
        "confidence": 0.7, "source": "embedded", "reason": "embedded is 70% sure", "decision_ms": 2.5,
        "attempts": [{"backend": "small", "kind": "first", "status": 200, "error": "", "ms": 0.0}],
        "first_byte_ms": 500.0, "ms": 1500.0, "bytes": 10, "input_tokens": 1_000_000, "output_tokens": 100_000,
        "cost_usd": 2.0, "error": "",
    }  # fmt: skip


def test_an_exchange_that_came_to_no_decision_tells_nulls():
    told = Exchange("r1", "rejected", 400, False, 0.1, error="messages: wrong").to_json()

    assert {key for key, value in told.items() if value is None} == {
        "route", "backend", "confidence", "source", "reason", "decision_ms", "first_byte_ms", "input_tokens",
        "output_tokens", "cost_usd", "key",
    }  # fmt: skip


def test_the_confidence_of_an_exchange_whose_request_named_its_backend_is_null():
    decision = Decision(None, (SMALL,), "the request names the backend small", "hint")

    assert exchange(decision=decision).to_json()["confidence"] is None


@pytest.mark.parametrize(
    ("fields", "cost"),
    [
        ({"usage": Usage(1_000_000, 500_000)}, 6.0),
        ({"usage": Usage()}, 0.0),
        ({"usage": None}, None),
        ({"usage": Usage(1, 1), "backend": None}, None),
    ],
)
def test_an_exchange_costs_what_its_backend_asks_for_the_tokens(fields, cost):
    assert exchange(**fields).cost == cost


@pytest.mark.parametrize("record", [VERDICT, DECISION, exchange(usage=Usage(1, 2)), Constraint("a", "b")])
def test_what_a_record_tells_is_json_without_secrets(record):
    told = json.dumps(record.to_json())

    assert "SECRET" not in told + repr(record)
    assert "HEADER" not in told + repr(record)


@pytest.mark.parametrize("record", [VERDICT, DECISION, exchange(), Attempt("a", 1), Constraint("a", "b"), Usage()])
def test_records_cannot_be_changed(record):
    name = record.__struct_fields__[0]

    with pytest.raises(AttributeError):
        setattr(record, name, "other")
