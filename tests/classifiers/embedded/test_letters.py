"""Likeness in wording: what shares runs of letters is alike, and nothing breaks it."""

from __future__ import annotations

import numpy as np
import pytest

from fingerpost.classifiers.embedded.letters import PLACES, letters


def likeness(one, other):
    first, second = letters([one, other])
    return float(first @ second)


def test_a_text_is_as_like_itself_as_can_be():
    assert likeness("where is my parcel", "where is my parcel") == pytest.approx(1, abs=1e-5)


def test_case_and_spaces_do_not_count():
    assert likeness("Where  is\nmy PARCEL", " where is my parcel ") == pytest.approx(1, abs=1e-5)


def test_shared_words_make_texts_alike_and_others_do_not():
    assert likeness("top up by apple pay", "does apple pay work for a top-up") > 0.4
    assert abs(likeness("top up by apple pay", "when does the museum close")) < 0.2


def test_forms_of_a_word_are_alike():
    assert likeness("exchanging currencies", "exchange of currency") > likeness("exchanging currencies", "a pin blocked") + 0.3


@pytest.mark.parametrize("text", ["", " ", "a", "天気", "\ud800 lone surrogate", "x" * 100_000])
def test_any_text_has_a_vector(text):
    found = letters([text])

    assert found.shape == (1, PLACES)
    assert found.dtype == np.float32
    assert np.linalg.norm(found) == pytest.approx(1, abs=1e-5) or not found.any()


def test_no_texts_make_no_rows():
    assert letters([]).shape == (0, PLACES)


HASHED = [101, 102, 149, 275, 463]


def test_hashes_stay_what_they_are():
    # Other hashes would change every decision of a table with examples.
    assert np.flatnonzero(letters(["pay"])).tolist() == HASHED
