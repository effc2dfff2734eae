from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from fingerpost.classifiers.embedded.text import Turn
from fingerpost.train.data import (
    SNIPS,
    RouteSet,
    Sample,
    load_padding,
    load_sgd,
    load_snips,
    load_written,
    read_lines,
    read_turns,
    words_in,
)

IMAGE = {"type": "image_url", "image_url": {"url": "data:"}}


def write_lines(path, rows):
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def said(*turns):
    return [{"role": role, "content": content} for role, content in turns]


def route_of(*wordings):
    return {"wordings": [{"name": name, "description": description} for name, description in wordings]}


# Rows


@pytest.mark.parametrize("compress", [lambda raw: raw, gzip.compress])
def test_rows_of_a_file_gzipped_or_not(tmp_path, compress):
    raw = '{"a": "é"}\n\n{"a": "line\\u2028separator"}\n{"a": "\u2028"}'.encode()
    path = tmp_path / ("rows.jsonl" if compress(raw) == raw else "rows.jsonl.gz")
    path.write_bytes(compress(raw))

    assert [row["a"] for row in read_lines(path)] == ["é", "line\u2028separator", "\u2028"]


def test_an_empty_file_has_no_rows(tmp_path):
    assert read_lines(write_lines(tmp_path / "rows.jsonl", [])) == []


# Turns


@pytest.mark.parametrize(
    ("content", "text", "media"),
    [
        ("hi", "hi", ()),
        ("", "", ()),
        (None, "", ()),
        ([], "", ()),
        ([{"type": "text", "text": "one"}, {"type": "text", "text": "two"}], "one\ntwo", ()),
        ([IMAGE], "", ("image",)),
        ([{"type": "text", "text": "?"}, IMAGE, IMAGE], "?", ("image", "image")),
        ([{"type": "file", "file": {}}, {"type": "input_audio", "input_audio": {}}], "", ("file", "audio")),
        ([{"type": "mystery"}], "", ()),
    ],
)
def test_content_of_any_shape_becomes_a_turn(content, text, media):
    assert read_turns([{"role": "user", "content": content}]) == (Turn("user", text, media),)


def test_turns_keep_roles_and_order():
    assert [turn.role for turn in read_turns(said(("system", "a"), ("user", "b"), ("assistant", "c")))] == [
        "system",
        "user",
        "assistant",
    ]


# Written sets


@pytest.fixture
def written(tmp_path):
    write_lines(
        tmp_path / "route_sets.jsonl",
        [
            {
                "set": "shop",
                "topic": "shopping",
                "split": "train",
                "weight": 2.5,
                "routes": [
                    route_of(("refund", "Money back."), ("returns", "Send it back.")),
                    route_of(("late", "Late parcels.")),
                ],
            },
            {
                "set": "shop_areas",
                "areas_of": "shop",
                "topic": "shopping, by area",
                "split": "train",
                "routes": [
                    {**route_of(("money", "Money: refunds.")), "covers": ["refund"]},
                    {**route_of(("parcels", "Parcels.")), "covers": ["late"]},
                ],
            },
            {"set": "bank", "topic": "money", "split": "unseen", "routes": [route_of(("card", "Cards."))]},
        ],
    )
    write_lines(
        tmp_path / "conversations.jsonl",
        [
            {"set": "shop", "route": "refund", "also": [], "messages": said(("user", "money back!"))},
            {"set": "shop", "route": "refund", "also": ["late"], "messages": said(("user", "late, money back!"))},
            {"set": "shop", "route": "other", "also": [], "messages": said(("user", "hello"))},
            {"set": "bank", "route": "card", "also": [], "messages": said(("user", "my card"))},
        ],
    )
    return tmp_path


def test_a_split_has_its_sets_with_all_wordings(written):
    shop, _ = load_written(written, "train")

    assert (shop.name, shop.topic, shop.weight) == ("shop", "shopping", 2.5)
    assert shop.routes == {
        "refund": [("refund", "Money back."), ("returns", "Send it back.")],
        "late": [("late", "Late parcels.")],
    }


def test_conversations_are_labelled_with_all_right_routes_and_none_for_other(written):
    shop, _ = load_written(written, "train")

    assert [sample.right for sample in shop.samples] == [("refund",), ("refund", "late"), ()]
    assert shop.samples[0].turns == (Turn("user", "money back!"),)


def test_areas_share_the_conversations_of_the_routes_that_they_cover(written):
    shop, areas = load_written(written, "train")

    assert list(areas.routes) == ["money", "parcels"]
    assert [sample.right for sample in areas.samples] == [("money",), ("money", "parcels"), ()]
    assert [sample.turns for sample in areas.samples] == [sample.turns for sample in shop.samples]


def test_conversations_of_a_route_that_no_area_covers_are_left_out_of_the_areas(written):
    rows = [json.loads(line) for line in (written / "route_sets.jsonl").read_text().splitlines()]
    rows[1]["routes"].pop()
    write_lines(written / "route_sets.jsonl", rows)

    _, areas = load_written(written, "train")

    assert [sample.right for sample in areas.samples] == [("money",), ()]


def test_words_that_are_no_slips_are_those_written_more_than_once(written):
    texts = ["my parcel is late", "where is the parcel", "prcel", "déjà parcel"]
    routes = RouteSet("x", "x", {"a": [("a", "Refunds.")]}, [Sample((Turn("user", text),), ("a",)) for text in texts])

    assert words_in([routes], RouteSet("sgd", "x", {})) == ["parcel", "refunds"]


def test_what_is_written_around_requests_is_committed_and_repeats_nothing():
    padding = load_padding(Path("train/data"))

    for bank in (padding.greetings, padding.wishes, padding.leads, padding.endings, padding.sentences):
        assert len(set(bank)) == len(bank) > 20


def test_splits_are_kept_apart(written):
    [bank] = load_written(written, "unseen")

    assert (bank.name, bank.weight, len(bank.samples)) == ("bank", 1.0, 1)
    assert load_written(written, "calibrate") == []


# Schema-Guided Dialogue


@pytest.fixture
def sgd_folder(tmp_path):
    schema = {
        "base": {
            "Hotels_1": {"intents": {"Search": "Find a hotel.", "Book": "Book a hotel."}},
            "Hotels_2": {"intents": {"Find": "Find a house."}},
            "Music_1": {"intents": {"Play": "Play a song."}},
        },
        "rewordings": {
            "Hotels_1": [
                {
                    "Search": {"name": "Look", "description": "Look for one."},
                    "Book": {"name": "Take", "description": "Take one."},
                }
            ]
        },
    }
    (tmp_path / "schema_train.json").write_text(json.dumps(schema))
    turns = [
        {"role": "user", "content": "a hotel", "intents": ["Hotels_1/Search"]},
        {"role": "assistant", "content": "where?", "intents": []},
        {"role": "user", "content": "thanks", "intents": []},
        {"role": "user", "content": "book it", "intents": ["Hotels_1/Book"]},
    ]
    rows = [
        {"id": "1", "services": ["Hotels_1"], "turns": turns},
        {"id": "2", "services": ["Music_1"], "turns": [{"role": "user", "content": "play", "intents": ["Music_1/Play"]}]},
    ]
    (tmp_path / "train.jsonl.gz").write_bytes(gzip.compress("\n".join(json.dumps(row) for row in rows).encode()))
    return tmp_path


def test_every_intent_is_a_route_in_all_its_wordings(sgd_folder):
    sgd = load_sgd(sgd_folder)

    assert list(sgd.routes) == ["Hotels_1/Search", "Hotels_1/Book", "Hotels_2/Find", "Music_1/Play"]
    assert sgd.routes["Hotels_1/Book"] == [("Hotels_1.Book", "Book a hotel."), ("Hotels_1.Take", "Take one.")]
    assert sgd.routes["Music_1/Play"] == [("Music_1.Play", "Play a song.")]


def test_every_user_turn_with_an_intent_is_a_sample_with_its_history(sgd_folder):
    first, second, third = load_sgd(sgd_folder).samples

    assert (first.right, [turn.text for turn in first.turns]) == (("Hotels_1/Search",), ["a hotel"])
    assert (second.right, [turn.text for turn in second.turns]) == (
        ("Hotels_1/Book",),
        ["a hotel", "where?", "thanks", "book it"],
    )
    assert third.right == ("Music_1/Play",)


def test_a_dialogues_own_services_are_near_and_other_services_of_its_domain_are_blurred(sgd_folder):
    sample = load_sgd(sgd_folder).samples[0]

    assert sample.near == ("Hotels_1/Search", "Hotels_1/Book")
    assert sample.blurred == {"Hotels_1/Search", "Hotels_1/Book", "Hotels_2/Find"}


def test_dialogues_can_be_left_out(sgd_folder):
    assert [sample.right for sample in load_sgd(sgd_folder, leave=frozenset({"1"})).samples] == [("Music_1/Play",)]


# SNIPS


def test_snips_has_descriptions_in_three_wordings_for_every_label():
    assert all(len(set(wordings)) == 3 for wordings in SNIPS.values())
    assert all(name and description for wordings in SNIPS.values() for name, description in wordings)


def test_snips_rows_are_single_turns(tmp_path):
    path = write_lines(tmp_path / "snips.jsonl", [{"text": " play jazz \n", "label": "PlayMusic"}])

    snips = load_snips(path)

    assert snips == RouteSet("snips", "voice assistant", SNIPS, [Sample((Turn("user", "play jazz"),), ("PlayMusic",))])
