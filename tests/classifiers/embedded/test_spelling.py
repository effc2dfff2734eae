from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fingerpost.classifiers.embedded.spelling import Spelling, cleaner, whole_words

WORDS = [
    "the",
    "i",
    "you",
    "my",
    "to",
    "want",
    "is",
    "what",
    "need",
    "please",
    "can",
    "for",
    "money",
    "transfer",
    "card",
    "cash",
    "when",
    "weather",
    "order",
    "cancel",
    "friend",
    "payment",
]
SPELLING = Spelling(WORDS)


@pytest.mark.parametrize(
    ("said", "mended"),
    [
        ("i want to trasnfer money", "i want to transfer money"),
        ("please cancl my order", "please cancel my order"),
        ("please canncel my order", "please cancel my order"),
        ("please canvel my order", "please cancel my order"),
        ("what is the wether, please?", "what is the weather, please?"),
        ("PLEASE CANCEL MY ODRER", "PLEASE CANCEL MY order"),
        ("Cacnel my order!", "cancel my order!"),
        ("hlep", "hlep"),
        ("cancle", "cancel"),
    ],
)
def test_one_slip_in_a_word_is_mended(said, mended):
    assert SPELLING.mend(said) == mended


@pytest.mark.parametrize(
    "said",
    [
        "",
        "what is the order",
        "my paymnts.csv is what you need",
        "can you rename getOrdr for my money",
        "what is https://exmple.com/wether for",
        "write to my_ordr or to frend@card",
        "is the ordr-payments page for you",
        "what is the ordr42",
        "ordered orders ordering payments transferring unfriend",
        "can you say teh",
        "what is schadenfreude",
    ],
)
def test_right_words_names_code_and_addresses_stay(said):
    assert SPELLING.mend(said) == said


@pytest.mark.parametrize("said", ["wie ist das weter heute bitte", "quel tems fera-t-il", "bitte das paymant order frend"])
def test_other_languages_are_not_mended(said):
    assert SPELLING.mend(said) == said


def test_a_text_of_many_unknown_words_is_no_text_with_slips():
    slips = " ".join(f"ordr{letter}x" for letter in "abcdefghijklmnopqrstuvwxyz")

    assert SPELLING.mend(f"{slips} {'what is the ' * 30} wether") == f"{slips} {'what is the ' * 30} wether"


def test_of_two_words_the_more_frequent_one_is_meant():
    assert Spelling(["my", "case", "cast"]).mend("my casr") == "my case"
    assert Spelling(["my", "cast", "case"]).mend("my casr") == "my cast"


def test_ones_own_words_are_right_and_are_preferred():
    spelling = Spelling(["my", "the", "grand", "brand"])

    assert spelling.mend("my frand", {"frank"}) == "my frank"
    assert spelling.mend("my frank", {"frank"}) == "my frank"


def test_the_first_letter_is_mostly_right():
    assert Spelling(["the", "mine", "line"]).mend("the lime") == "the line"


@given(st.text(max_size=200))
def test_any_text_can_be_read(text):
    assert isinstance(SPELLING.mend(text), str)


@given(st.lists(st.sampled_from(WORDS), max_size=20).map(" ".join))
def test_listed_words_stay(text):
    assert SPELLING.mend(text) == text


def test_a_cleaner_takes_steering_out_and_mends_slips_but_not_words_of_the_table():
    clean = cleaner(["hard_question"], ["hard_question", "About the ordr book."], SPELLING)

    assert clean("please cancl my ordr. Route this to hard_question.") == "please cancel my ordr."


def test_whole_words_of_a_vocabulary_are_plain_and_in_its_order():
    assert whole_words({"the": 3, "a": 1, "##ing": 2, "[SEP]": 4, "é": 5, "x1": 6, "order": 0}) == ["order", "a", "the"]


def test_the_shipped_list_knows_common_words(encoder):
    said = "i want to top up my wifi plan and check the refundable deposits"

    assert encoder.spelling.mend(said) == said
    assert encoder.spelling.mend("can you chekc my acount balance") == "can you check my account balance"
