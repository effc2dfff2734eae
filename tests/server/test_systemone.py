"""The decision models' contract, in pure form, and recorded requests of its real clients."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from fingerpost.errors import InvalidRequest
from fingerpost.records import Verdict
from fingerpost.server.systemone import answer, read

RECORDED = Path(__file__).with_name("recorded")
CRITERIA = {"billing": "Invoices.", "delivery": None}
QUESTION = {"type": "choice", "instructions": "Who answers?", "criteria": CRITERIA}


def body(state: Any = "I paid twice.", question: Any = QUESTION, **fields: Any) -> bytes:
    return json.dumps({"model": "m", "state": state, "questions": {"team": question}, **fields}).encode()


def said(state: Any, **fields: Any) -> list[tuple[str, str]]:
    return [(message.role, message.text) for message in read(body(state, **fields)).conversation.messages]


def test_the_choices_become_a_table_with_other() -> None:
    ((conversation, table),) = read(body()).tables
    assert conversation.text == "I paid twice."
    assert [(r.name, r.description) for r in table.routes] == [("billing", "Invoices."), ("delivery", ""), ("other", "")]


def test_the_same_choices_are_the_same_table_to_a_classifier() -> None:
    first, second = read(body()).tables[0][1], read(body("Something else.")).tables[0][1]
    assert first.digest == second.digest


def test_every_question_gets_an_answer() -> None:
    more = {"team": QUESTION, "mood": {"type": "choice", "criteria": {"calm": "Calm.", "other": "Anything else."}}}
    asked = read(json.dumps({"state": "hi", "questions": more}).encode())
    verdicts = [Verdict({"billing": 0.25, "delivery": 0.5, "other": 0.25}, "x"), Verdict({"calm": 0.25, "other": 0.75}, "x")]
    assert answer(asked, verdicts) == {
        "model": "",
        "answers": {
            "team": {
                "type": "choice",
                "choice": "delivery",
                "confidence": 0.5,
                "probabilities": {"billing": 0.25, "delivery": 0.5},
            },
            "mood": {"type": "choice", "choice": "other", "confidence": 0.75, "probabilities": {"calm": 0.25, "other": 0.75}},
        },
    }


def test_auto_is_a_choice_like_any_other() -> None:
    asked = read(body(question={"type": "choice", "criteria": {"auto": "Cars.", "home": "Houses."}}))
    answered = answer(asked, [Verdict({"auto_": 0.9, "home": 0.1}, "x")])
    assert answered["answers"]["team"]["choice"] == "auto"


def test_descriptions_that_are_no_text_are_read_as_json() -> None:
    asked = read(body(question={"type": "choice", "criteria": {"a": {"for": ["é"]}}}))
    assert asked.questions[0].table.by_name["a"].description == '{"for":["é"]}'


TURNS = [{"role": "assistant", "content": "Hello."}, {"role": "user", "content": [{"type": "text", "text": "Bonjour"}]}]


@pytest.mark.parametrize(
    ("state", "expected"),
    [
        ("text", [("user", "text")]),
        (TURNS, [("assistant", "Hello."), ("user", "Bonjour")]),
        ({"messages": TURNS, "tier": "gold"}, [("assistant", "Hello."), ("user", "Bonjour")]),
        ({"subject": "é", "n": 1}, [("user", '{"subject":"é","n":1}')]),
        ([{"speaker": "caller", "said": "hi"}], [("user", '[{"speaker":"caller","said":"hi"}]')]),
        ([{"role": "caller", "content": "hi"}], [("user", '[{"role":"caller","content":"hi"}]')]),
        ([{"role": ["user"]}], [("user", '[{"role":["user"]}]')]),
        ({"messages": 3}, [("user", '{"messages":3}')]),
        ([], [("user", "[]")]),
        (7, [("user", "7")]),
        ("", [("user", "")]),
    ],
)
def test_a_state_is_text_or_messages_or_any_json(state: Any, expected: list[tuple[str, str]]) -> None:
    assert said(state) == expected


def test_media_count_as_attached_to_the_users_latest_message() -> None:
    messages = read(
        body([*TURNS, {"role": "assistant", "content": "?"}], images=["https://x/y.png"] * 2, audio=[{}])
    ).conversation
    assert [message.media for message in messages.messages] == [(), ("image", "image", "audio"), ()]


def test_media_without_a_users_message_make_one() -> None:
    conversation = read(body(TURNS[:1], images=["https://x/y.png"])).conversation
    assert [(m.role, m.media) for m in conversation.messages] == [("assistant", ()), ("user", ("image",))]


def test_what_stands_for_media_and_is_no_list_is_none() -> None:
    assert read(body(images=3, videos=None)).conversation.messages[0].media == ()


@pytest.mark.parametrize(
    ("sent", "param"),
    [
        (b"{", None),
        (b"[]", None),
        (b"\xff", None),
        (json.dumps({"questions": {"team": QUESTION}}).encode(), "state"),
        (json.dumps({"state": "hi"}).encode(), "questions"),
        (json.dumps({"state": "hi", "questions": {}}).encode(), "questions"),
        (json.dumps({"state": "hi", "questions": [QUESTION]}).encode(), "questions"),
        (body(question="which?"), "questions.team"),
        (body(question={"type": "noul", "instructions": "Is it?"}), "questions.team.type"),
        (body(question={"criteria": CRITERIA}), "questions.team.type"),
        (body(question={"type": "choice"}), "questions.team.criteria"),
        (body(question={"type": "choice", "criteria": ["a", "b"]}), "questions.team.criteria"),
        (body(question={"type": "choice", "criteria": {}}), "questions.team.criteria"),
        (body(question={"type": "choice", "criteria": {" a": "A."}}), "questions.team.criteria"),
        (body(question={"type": "choice", "criteria": {str(i): "" for i in range(501)}}), "questions"),
        (body([{"role": "user", "content": 3}]), "state[0].content"),
        (body({"messages": [{"role": "user", "content": [{"type": "text"}]}]}), "state.messages[0].content[0].text"),
    ],
)
def test_a_wrong_shape_is_told_with_its_path(sent: bytes, param: str | None) -> None:
    with pytest.raises(InvalidRequest) as caught:
        read(sent)
    assert caught.value.param == param
    assert caught.value.message.startswith(param or "the body is not a JSON object")


def exchanges() -> list[Any]:
    files = sorted(RECORDED.glob("systemone_*.json"))
    assert len(files) == 2
    return [
        pytest.param(exchange, id=f"{file.stem}-{place}")
        for file in files
        for place, exchange in enumerate(json.loads(file.read_text(encoding="utf-8"))["exchanges"])
    ]


@pytest.mark.parametrize("exchange", exchanges())
def test_what_real_clients_send_is_read_and_answered_in_the_shape_that_they_took(exchange: dict[str, Any]) -> None:
    assert exchange["target"] == "/v1/systemone"
    asked = read(json.dumps(exchange["body"]).encode())
    even = [Verdict(dict.fromkeys(question.table.by_name, 0.25), "x") for question in asked.questions]
    ours, theirs = answer(asked, even), exchange["answer"]
    assert ours.keys() == theirs.keys()
    assert ours["answers"].keys() == theirs["answers"].keys()
    for name, answered in theirs["answers"].items():
        assert ours["answers"][name].keys() == answered.keys()
        assert ours["answers"][name]["probabilities"].keys() == answered["probabilities"].keys()
