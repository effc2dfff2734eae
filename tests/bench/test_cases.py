import json

import pytest
from bench.speed.cases import CASES, CHUNKS, LARGE, SMALL, STREAM, events, text_of

from fingerpost.chat import ChatRequest


@pytest.mark.parametrize("case", CASES.values(), ids=list(CASES))
def test_a_case_asks_what_fingerpost_can_read_and_its_number_makes_another_conversation(case) -> None:
    body = case.body("auto")
    one, other = (ChatRequest.parse(body.before + body.number(n) + body.after) for n in (1, 2))
    assert one.stream is case.stream
    assert one.conversation.digest != other.conversation.digest
    assert len(body) == len(body.before + body.number(123456789) + body.after)


def test_sizes_are_what_the_titles_say() -> None:
    assert 380 <= len(SMALL) <= 480
    assert 950_000 <= len(LARGE) <= 1_050_000
    assert 60_000 <= len(CASES["64kb"].body("auto")) <= 72_000
    assert 9_900_000 <= len(CASES["10mb"].body("auto")) <= 10_100_000
    assert len(events()) == CHUNKS
    assert json.loads(events()[-2][6:])["usage"]["completion_tokens"] == CHUNKS - 4


def test_a_reply_written_anew_is_right_when_its_text_is() -> None:
    case = CASES["stream"]
    anew = STREAM.replace(b'"object": ', b'"object":')
    assert case.is_answered_by(STREAM, exact=True)
    assert not case.is_answered_by(anew, exact=True)
    assert case.is_answered_by(anew, exact=False)
    assert not case.is_answered_by(STREAM.replace(b" word7", b" word8"), exact=False)


@pytest.mark.parametrize("reply", [b"", b"no JSON", b"[]", b'{"error": {}}', b"data: [DONE]\n\n"])
def test_what_says_nothing_is_no_right_reply(reply: bytes) -> None:
    assert text_of(reply) == ""
    assert not CASES["small"].is_answered_by(reply, exact=False)
