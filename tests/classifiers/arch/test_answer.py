from __future__ import annotations

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fingerpost.classifiers.arch.answer import CONFIDENCE_WITHOUT_LOGPROBS, MAX_ANSWER, believe, parse_route

NAMES = ["hard_question", "chit_chat", "try_again", "image_question", "other"]


def completion(content, logprobs=None):
    return {"choices": [{"message": {"role": "assistant", "content": content}, "logprobs": logprobs}]}


def step(token, probability, **others):
    """A generated token with its probability, and those of the tokens that could have stood there."""
    top = options_of(**{token: probability, **others})
    return {"token": token, "logprob": math.log(probability), "top_logprobs": top}


def options_of(**probabilities):
    return [{"token": token, "logprob": math.log(p)} for token, p in probabilities.items()]


def read(names, *steps):
    text = "".join(one["token"] for one in steps)
    return believe(completion(text, {"content": list(steps)}), names)


READABLE = [
    '{"route": "chit_chat"}',
    '{"route":"chit_chat"}',
    ' {"route": "chit_chat"} \n',
    '{\n  "route": "chit_chat"\n}',
    '{"route": "chit_chat", "confidence": 0.9}',
    '{"why": "small talk", "route": "chit_chat"}',
    '[{"route": "chit_chat"}]',
    '{"answer": {"route": "chit_chat"}}',
    "{'route': 'chit_chat'}",
    "{`route`: `chit_chat`}",
    "{“route”: “chit_chat”}",
    "{route: chit_chat}",
    "{route: 'chit_chat',}",
    "route: chit_chat",
    "route=chit_chat",
    "Route: **chit_chat**",
    '"route": "chit_chat"',
    '{"route": "chit_chat"',
    '{"Route": "chit_chat"}',
    '{"ROUTE": "CHIT_CHAT"}',
    '{"route": "Chit Chat"}',
    '{"route": "chit-chat"}',
    '{"route": " chit_chat "}',
    '{"route": "chit_chat."}',
    '{"route": ["chit_chat"]}',
    '{"route": {"name": "chit_chat"}}',
    '{"route": null, "name": "chit_chat"}',
    '```json\n{"route": "chit_chat"}\n```',
    "```\nchit_chat\n```",
    'Sure! The best route is:\n\n{"route": "chit_chat"}\n\nLet me know.',
    'The formats is {"route": "route_name"}, so {"route": "chit_chat"}',
    'It is not hard_question. {"route": "chit_chat"}',
    '{"route": "chit_chat"} {"route": "chit_chat"}',
    '<think>hard_question? {"route": "hard_question"}</think>\n{"route": "chit_chat"}',
    "<thinking>\nother or hard_question\n</thinking>chit_chat",
    '<THINK>other</THINK>{"route": "chit_chat"}<think>other',
    "maybe other, maybe hard_question\n</think>\n\nchit_chat",
    "chit_chat",
    "chit_chat\n",
    "Chit Chat",
    "CHIT-CHAT!",
    "`chit_chat`",
    "**chit_chat**",
    "<chit_chat>",
    "I would choose chit_chat here.",
    "The user is making small talk, so the route is chit_chat",
    "ｃｈｉｔ＿ｃｈａｔ",
]


@pytest.mark.parametrize("text", READABLE)
def test_an_answer_that_names_a_route_is_read(text):
    assert parse_route(text, NAMES) == "chit_chat"


UNREADABLE = [
    "",
    " \n",
    "{}",
    "[]",
    "null",
    "```json\n```",
    '{"route": ""}',
    '{"route": null}',
    '{"route": 3}',
    '{"route": "weather"}',
    '{"route": "route_name"}',
    "{'route': 'weather'}",
    "weather",
    "I do not know.",
    "chit",
    "chit_chatter",
    "xchit_chat",
    "chit_chat or other",
    '{"route": "chit_chat"} or {"route": "other"}',
    '{"route": "chit_chat"}{"route": "hard_question"}',
    "route: chit_chat, route: other",
    '{"route": ["chit_chat", "other"]}',
    '{"route": "chit_chat, other"}',
    '{"route": "weather"}, since chit_chat does not fit',
    '<think>{"route": "chit_chat"}</think>',
    "<think>chit_chat",
    "chit_chat</think>",
    '{"route": ' + "[" * 5000 + "}",
    "{" * 5000,
    "\x00\ud800",
]


@pytest.mark.parametrize("text", UNREADABLE, ids=lambda text: text[:40])
def test_an_answer_that_names_no_route_or_several_is_no_answer(text):
    assert parse_route(text, NAMES) is None


@pytest.mark.parametrize("text", ["book", "BOOK", '{"route": "book"}', "route: book", "I would book.", "the book route"])
def test_a_name_that_begins_another_is_told_apart(text):
    assert parse_route(text, ["book", "book_flight", "flight"]) == "book"


@pytest.mark.parametrize("text", ["book_flight", "book flight", "I take Book-Flight.", "{'route': 'book_flight'}"])
def test_a_longer_name_hides_those_that_are_part_of_it(text):
    assert parse_route(text, ["book", "book_flight", "flight"]) == "book_flight"


def test_a_part_of_a_name_that_is_also_named_itself_makes_two():
    assert parse_route("image or image_question", ["image", "image_question"]) is None


@pytest.mark.parametrize("name", ["c", "c++", "C", "c#"])
def test_names_that_differ_in_signs_only_are_known_by_their_exact_spelling(name):
    names = ["c", "c++", "C", "c#", "other"]
    assert parse_route(json.dumps({"route": name}), names) == name
    assert parse_route(name, names) == name
    assert parse_route(f"I choose {name}!", names) is None


@pytest.mark.parametrize(
    "name", ["größe", "天気", "🙂", "a{b}", 'say "hi"', "what's up", "billing, refunds", "back\\slash", "हिन्दी"]
)
def test_unusual_names_are_read_from_json(name):
    names = [name, "other"]
    assert parse_route(json.dumps({"route": name}), names) == name
    assert parse_route(json.dumps({"route": name}, ensure_ascii=False), names) == name


@pytest.mark.parametrize("text", ["", "!!!", "{}", "🙃"])
def test_an_empty_answer_is_not_a_name_without_letters(text):
    assert parse_route(text, ["🙂", "other"]) is None


@pytest.mark.parametrize("name", ["what's up", "billing, refunds", "a{b"])
def test_unusual_names_are_found_where_quotes_and_braces_mislead(name):
    assert parse_route(f"{{'route': '{name}'}}", [name, "other"]) == name


def test_without_names_nothing_is_read():
    assert parse_route("chit_chat", []) is None


def test_only_the_end_of_a_rambling_answer_is_looked_at():
    assert parse_route("other " + "blah " * MAX_ANSWER + '{"route": "chit_chat"}', NAMES) == "chit_chat"
    assert parse_route("chit_chat " + "blah " * MAX_ANSWER, NAMES) is None


@given(st.sampled_from(NAMES), st.text("{}[]\"'`:,. \nab<>", max_size=60), st.text("{}[]\"'`:,. \nab<>", max_size=60))
def test_json_is_found_in_any_prose(name, before, after):
    assert parse_route(before + json.dumps({"route": name}) + after, NAMES) in {name, None}


@given(st.text())
def test_parsing_never_fails_and_only_gives_names(text):
    assert parse_route(text, NAMES) in {*NAMES, None}


def test_an_answer_without_logprobs_is_believed_as_far_as_the_model_is_usually_right():
    believed = believe(completion('{"route": "chit_chat"}'), NAMES)
    assert believed["chit_chat"] == CONFIDENCE_WITHOUT_LOGPROBS
    assert list(believed) == NAMES
    assert sum(believed.values()) == pytest.approx(1)


def test_a_lone_name_is_certain():
    assert believe(completion("other"), ["other"]) == {"other": 1.0}


NO_COMPLETION = [
    {},
    {"choices": None},
    {"choices": []},
    {"choices": {}},
    {"choices": "chit_chat"},
    {"choices": [None]},
    {"choices": ["chit_chat"]},
    {"choices": [[]]},
    {"choices": [{}]},
    {"choices": [{"text": "chit_chat"}]},
    {"choices": [{"message": None}]},
    {"choices": [{"message": "chit_chat"}]},
    {"choices": [{"message": {}}]},
    {"error": {"message": "chit_chat"}},
    completion(None),
    completion(""),
    completion(5),
    completion(["chit_chat"]),
    completion({"route": "chit_chat"}),
    completion("weather"),
]


@pytest.mark.parametrize("value", NO_COMPLETION, ids=str)
def test_what_is_no_completion_with_an_answer_is_not_believed(value):
    assert believe(value, NAMES) is None


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.sampled_from([*NAMES, '{"route": "other"}']),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(["token", "logprob", "x"]), inner, max_size=4),
    max_leaves=12,
)


def is_sound(believed):
    return believed is None or (
        list(believed) == NAMES and sum(believed.values()) == pytest.approx(1) and all(0 <= p <= 1 for p in believed.values())
    )


@given(
    st.dictionaries(st.sampled_from(["choices", "x"]), json_values)
    | st.builds(lambda choice: {"choices": [choice]}, json_values)
    | st.builds(lambda message: {"choices": [{"message": message}]}, json_values)
    | st.builds(completion, json_values, json_values)
    | st.builds(lambda logprobs: completion('{"route": "other"}', logprobs), json_values)
    | st.builds(lambda content: completion('{"route": "other"}', {"content": content}), json_values)
)
def test_believing_never_fails_on_arbitrary_json(value):
    assert is_sound(believe(value, NAMES))


tokens = st.sampled_from(
    ['{"', "route", '":', ' "', '"', "chit", "_", "chat", "other", "hard_question", '"}', "}", "\n", "", "'"]
)
options = st.fixed_dictionaries(
    {"token": tokens, "logprob": st.floats(-50, 1) | st.sampled_from([-9999.0, math.nan, math.inf])}
)
steps = st.fixed_dictionaries(
    {"token": tokens, "logprob": st.floats(-50, 1) | st.floats()},
    optional={"top_logprobs": st.none() | st.lists(options, max_size=4)},
)


@given(st.lists(steps, max_size=8), st.booleans())
def test_believing_never_fails_on_arbitrary_logprobs(content, opened):
    start = [step('{"route": "', 1.0)] if opened else []
    text = "".join(one["token"] for one in [*start, *content])
    assert is_sound(believe(completion(text, {"content": [*start, *content]}), NAMES))


START = (step('{"', 1.0), step("route", 1.0), step('":', 1.0), step(' "', 1.0))


def test_probabilities_come_from_the_token_where_the_answers_part():
    believed = read(NAMES, *START, step("chit", 0.8, hard=0.15, other=0.05), step("_chat", 1.0), step('"}', 1.0))
    assert believed == pytest.approx(
        {"chit_chat": 0.8, "hard_question": 0.15, "other": 0.05, "try_again": 0, "image_question": 0}
    )


def test_mass_on_tokens_that_begin_no_answer_is_left_out():
    believed = read(NAMES, *START, step("chit_chat", 0.4, hard=0.1, The=0.3, I=0.2), step('"}', 1.0))
    assert believed["chit_chat"] == pytest.approx(0.8)
    assert believed["hard_question"] == pytest.approx(0.2)


def test_uncertainty_before_the_name_does_not_count_against_it():
    shaky = (step('{"', 0.3, Sure=0.7), step("route", 0.5), step('":', 0.5), step(' "', 0.5))
    believed = read(NAMES, *shaky, step("chit", 0.9, other=0.1), step('_chat"}', 1.0))
    assert believed["chit_chat"] == pytest.approx(0.9)


def test_names_with_a_shared_beginning_part_later():
    names = ["image_question", "image_understanding", "other"]
    believed = read(
        names, *START, step("image", 0.9, other=0.1), step("_", 1.0), step("question", 0.7, under=0.3), step('"}', 1.0)
    )
    assert believed == pytest.approx({"image_question": 0.63, "image_understanding": 0.27, "other": 0.1})


@pytest.mark.parametrize("end", ['"', '"}', '"}\n', '"}<|im_end|>'])
def test_a_name_that_begins_another_is_told_apart_by_the_closing_quote(end):
    names = ["book", "book_flight", "other"]
    believed = read(names, *START, step("book", 0.9, other=0.1), step(end, 0.75, _flight=0.25))
    assert believed == pytest.approx({"book": 0.675, "book_flight": 0.225, "other": 0.1})


def test_merged_tokens_are_read():
    merged = {"token": '{"route": "chit_chat"}', "logprob": math.log(0.6)}
    others = [{"token": '{"route": "other"}', "logprob": math.log(0.3)}, {"token": '{"route": "hard', "logprob": math.log(0.1)}]
    believed = read(NAMES, {**merged, "top_logprobs": others})
    assert believed == pytest.approx(
        {"chit_chat": 0.6, "other": 0.3, "hard_question": 0.1, "try_again": 0, "image_question": 0}
    )


def test_a_token_that_says_the_same_in_other_pieces_counts_for_the_same_name():
    believed = read(NAMES, *START, step("chit", 0.5, ch=0.2, chi=0.1, other=0.2), step("_chat", 1.0), step('"}', 1.0))
    assert believed["chit_chat"] == pytest.approx(0.8)


def test_a_token_that_several_names_share_is_shared_equally():
    names = ["image_question", "image_understanding", "other"]
    believed = read(names, *START, step("other", 0.6, image=0.4), step('"}', 1.0))
    assert believed == pytest.approx({"image_question": 0.2, "image_understanding": 0.2, "other": 0.6})


def test_an_answer_that_was_cut_before_names_part_is_shared_equally():
    believed = read(["book", "book_flight", "other"], *START, step("book", 0.9, other=0.1))
    assert believed == pytest.approx({"book": 0.45, "book_flight": 0.45, "other": 0.1})


@pytest.mark.parametrize(
    ("first", "last"),
    [('{"route":"', '"}'), ("{'route': '", "'}"), ('```json\n{"route": "', '"}\n```'), ('{\n  "Route" : "', '"\n}')],
)
def test_every_style_of_answer_has_its_logprobs_read(first, last):
    believed = read(NAMES, step(first, 0.9), step("chit_chat", 0.7, other=0.3), step(last, 1.0))
    assert believed["chit_chat"] == pytest.approx(0.7)


def test_the_answer_after_thinking_counts():
    thought = step('<think>{"route": "other"}</think>{"route": "', 0.5)
    believed = read(NAMES, thought, step("chit_chat", 0.7, other=0.3), step('"}', 1.0))
    assert believed["chit_chat"] == pytest.approx(0.7)


@pytest.mark.parametrize("top", [None, [], [{"token": "chit_chat", "logprob": math.log(0.7)}]])
def test_without_alternatives_the_rest_is_shared_by_the_other_names(top):
    chosen = {"token": "chit_chat", "logprob": math.log(0.7), "top_logprobs": top}
    believed = read(NAMES, *START, chosen, step('"}', 1.0))
    assert believed["chit_chat"] == pytest.approx(0.7)
    assert believed["other"] == pytest.approx(0.3 / 4)


def test_without_top_logprobs_in_the_steps_the_rest_is_shared_by_the_other_names():
    steps = [{"token": token, "logprob": math.log(p)} for token, p in (('{"route": "', 0.5), ("other", 0.6), ('"}', 0.9))]
    assert read(NAMES, *steps)["other"] == pytest.approx(0.6)


WITHOUT_USE = [
    None,
    {},
    [],
    "x",
    5,
    {"content": None},
    {"content": []},
    {"content": 5},
    {"content": "abc"},
    {"content": [None]},
    {"content": [{}]},
    {"content": [{"token": '{"route": "chit_chat"}'}]},
    {"content": [{"token": None, "logprob": -0.1}]},
    {"content": [{"token": 5, "logprob": -0.1}]},
    {"content": [{"token": '{"route": "chit_chat"}', "logprob": "-0.1"}]},
    {"content": [{"token": '{"route": "chit_chat"}', "logprob": None}]},
    {"content": [{"token": '{"route": "chit_chat"}', "logprob": -0.1, "top_logprobs": 5}]},
    {"content": [{"token": '{"route": "chit_chat"}', "logprob": -0.1, "top_logprobs": [None]}]},
    {"content": [{"token": '{"route": "chit_chat"}', "logprob": -0.1, "top_logprobs": [{"token": 5, "logprob": -1}]}]},
    {"content": [{"token": '{"route": "chit_chat"}', "logprob": -0.1, "top_logprobs": {"token": 5}}]},
    {"content": [{"token": '{"route": "chit_chat"}', "logprob": math.nan}]},
    {"content": [{"token": '{"route": "chit_chat"}', "logprob": -math.inf, "top_logprobs": options_of(other=0.5)}]},
    {"content": [{"token": "chit_chat", "logprob": -0.1}]},
    {"content": [{"token": '{"route": "something else"}', "logprob": -0.1}]},
    {"content": [{"token": '{"route": "other"}', "logprob": -0.1}]},
]


@pytest.mark.parametrize("logprobs", WITHOUT_USE, ids=str)
def test_logprobs_of_no_use_leave_the_answer_itself(logprobs):
    believed = believe(completion('{"route": "chit_chat"}', logprobs), NAMES)
    assert believed["chit_chat"] == CONFIDENCE_WITHOUT_LOGPROBS
    assert sum(believed.values()) == pytest.approx(1)


def test_logprobs_that_favour_another_route_than_the_answer_are_not_used():
    believed = read(NAMES, *START, step("chit_chat", 0.2, other=0.7), step('"}', 1.0))
    assert believed["chit_chat"] == CONFIDENCE_WITHOUT_LOGPROBS


def test_a_probability_above_one_counts_as_one():
    steps = [{"token": '{"route": "chit_chat"}', "logprob": 800.0, "top_logprobs": []}]
    assert read(NAMES, *steps)["chit_chat"] == 1.0


def test_the_minus_9999_that_vllm_writes_for_impossible_is_nothing():
    options = [{"token": "other", "logprob": -9999.0}, {"token": "chit_chat", "logprob": 0.0}]
    chosen = {"token": "chit_chat", "logprob": 0.0, "top_logprobs": options}
    assert read(NAMES, *START, chosen, step('"}', 1.0))["chit_chat"] == 1.0


def test_names_are_escaped_as_the_answer_escapes_them():
    names = ['say "hi"', "größe", "other"]
    believed = read(names, step('{"route": "say \\"', 0.9), step('hi\\""}', 0.5, there=0.5))
    assert believed['say "hi"'] == pytest.approx(0.9)
    assert read(names, step('{"route": "', 1.0), step("grö", 0.8, other=0.2), step('ße"}', 1.0))["größe"] == pytest.approx(0.8)
