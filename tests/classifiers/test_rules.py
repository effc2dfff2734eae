from __future__ import annotations

import pytest

from fingerpost.chat import ChatRequest
from fingerpost.classifiers.rules import Rule, Rules
from fingerpost.routes import OTHER, Route, RouteTable

TABLE = RouteTable((Route("picture", "Pictures."), Route("refund", "Refunds."), Route(OTHER)))
PICTURE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
TOOL = {"type": "function", "function": {"name": "search"}}


def user(*content) -> dict:
    return {"role": "user", "content": [{"type": "text", "text": part} if isinstance(part, str) else part for part in content]}


def talk(*messages, **fields):
    turns = [{"role": "user", "content": message} if isinstance(message, str) else message for message in messages]
    return ChatRequest.from_messages(turns, **fields).conversation


async def believe(rules, conversation, table=TABLE):
    classifier = Rules(rules)
    await classifier.prepare(table)
    verdict = await classifier.classify(conversation, table)
    await classifier.aclose()
    return verdict


async def test_the_first_rule_that_holds_wins_with_certainty():
    verdict = await believe([Rule("picture", image=True), Rule("refund", keywords=("hi",)), Rule("other")], talk("hi"))
    assert verdict.probabilities == {"refund": 1.0}
    assert verdict.source == "rules"


async def test_without_a_rule_that_holds_there_is_no_opinion():
    assert await believe([Rule("picture", image=True)], talk("hi")) is None
    assert await believe([], talk("hi")) is None


async def test_a_rule_for_a_route_that_the_table_lacks_is_passed_over():
    rules = [Rule("picture", image=True), Rule("other", image=True)]
    assert (await believe(rules, talk(user(PICTURE)), RouteTable((Route(OTHER),)))).route == OTHER


async def test_a_rule_without_conditions_always_holds():
    assert (await believe([Rule("refund")], talk("anything"))).route == "refund"


@pytest.mark.parametrize(
    ("image", "conversation", "holds"),
    [
        (True, talk(user("what is this?", PICTURE)), True),
        (True, talk(user(PICTURE)), True),
        (True, talk(user({"type": "input_image", "image_url": "https://example.org/a.png"})), True),
        (True, talk("what is this?"), False),
        (True, talk(user("see", PICTURE), {"role": "assistant", "content": "a cat"}, "thanks"), False),
        (True, talk(user(PICTURE), {"role": "tool", "content": "done", "tool_call_id": "1"}), True),
        (True, talk({"role": "system", "content": "x"}), False),
        (True, talk(user({"type": "input_audio", "input_audio": {"data": "", "format": "wav"}})), False),
        (False, talk("what is this?"), True),
        (False, talk(user(PICTURE)), False),
        (False, talk({"role": "system", "content": "x"}), True),
        (None, talk(user(PICTURE)), True),
    ],
)
def test_an_image_counts_in_the_users_latest_turn(image, conversation, holds):
    assert Rule("picture", image=image).holds(conversation) is holds


@pytest.mark.parametrize(
    ("keywords", "text", "holds"),
    [
        (["refund"], "I want a refund!", True),
        (["refund"], "REFUND", True),
        (["Refund"], "(refund)", True),
        (["refund"], "refund-request", True),
        (["refund"], "refunds", False),
        (["refund"], "prerefund", False),
        (["refund"], "refund_id", False),
        (["refund"], "", False),
        (["cash", "money back"], "I want my money back", True),
        (["money back"], "money, back", False),
        (["c++"], "How do I do this in C++?", True),
        (["c++"], "c++17", True),
        (["c++"], "objective-c++", True),
        (["c++"], "abc++", False),
        ([".net"], "asp.net", True),
        (["a.b"], "axb", False),
        (["(", "["], "f(x)", True),
        (["3d"], "a 3D print", True),
        (["3d"], "13d", False),
        (["größe"], "Welche GRÖSSE?", False),
        (["größe"], "Welche GRÖßE?", True),
        (["größe"], "Übergröße", False),
        (["возврат"], "Хочу ВОЗВРАТ денег", True),
        (["возврат"], "возвратить", False),
        (["việt"], "tiếng Việt", True),
        (["iệt"], "tiếng Việt", False),
        (["图片"], "这张图片里有什么", True),
        (["GPT"], "用gpt写一首诗", True),
        (["图片"], "看GPT图片", True),
        (["写真"], "この写真を見て", True),
        (["사진"], "사진을 봐줘", True),
        (["จอง"], "อยากจองตั๋ว", True),
        (["🙂"], "hi🙂there", True),
    ],
)
def test_a_keyword_is_found_as_a_word_of_its_own_where_the_script_has_such(keywords, text, holds):
    assert Rule("refund", keywords=tuple(keywords)).holds(talk(text)) is holds


def test_keywords_are_looked_for_in_the_users_latest_turn_only():
    rule = Rule("refund", keywords=("refund",))
    assert not rule.holds(talk("a refund", {"role": "assistant", "content": "refund done"}, "thanks"))
    assert rule.holds(talk("hi", user("and", "a refund", PICTURE)))


@pytest.mark.parametrize(("limit", "holds"), [(None, True), (0, True), (4, True), (5, False), (6, False)])
def test_longer_than_counts_characters_of_the_latest_text(limit, holds):
    assert Rule("refund", longer_than=limit).holds(talk("a much longer text before", "häßli")) is holds


@pytest.mark.parametrize(
    ("tools", "fields", "holds"),
    [
        (True, {"tools": [TOOL]}, True),
        (True, {"functions": [{"name": "search"}]}, True),
        (True, {}, False),
        (True, {"tools": []}, False),
        (False, {"tools": [TOOL]}, False),
        (False, {"tools": None}, True),
        (None, {"tools": [TOOL]}, True),
    ],
)
def test_tools_that_the_request_offers_count(tools, fields, holds):
    assert Rule("refund", tools=tools).holds(talk("hi", **fields)) is holds


@pytest.mark.parametrize(
    ("metadata", "given", "holds"),
    [
        ({"tier": "gold"}, {"tier": "gold", "x": "y"}, True),
        ({"tier": "gold"}, {"tier": "silver"}, False),
        ({"tier": "gold"}, {}, False),
        ({"tier": "gold"}, None, False),
        ({"tier": "gold", "beta": "1"}, {"tier": "gold"}, False),
        ({"level": "3"}, {"level": 3}, True),
        ({}, None, True),
    ],
)
def test_metadata_must_have_all_the_stated_values(metadata, given, holds):
    assert Rule("refund", metadata=metadata).holds(talk("hi", metadata=given)) is holds


def test_all_stated_conditions_must_hold():
    rule = Rule("refund", keywords=("refund",), longer_than=10, tools=True)
    assert rule.holds(talk("give me a refund", tools=[TOOL]))
    assert not rule.holds(talk("refund", tools=[TOOL]))
    assert not rule.holds(talk("give me a refund"))
    assert not rule.holds(talk("give me the money", tools=[TOOL]))
