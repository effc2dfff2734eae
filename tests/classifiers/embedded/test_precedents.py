"""Routes are drawn towards what was asked of known routes that say something like them."""

from __future__ import annotations

import numpy as np
import pytest

from fingerpost.classifiers.embedded.encoder import ARTIFACT
from fingerpost.classifiers.embedded.precedents import FOCUS, SHARE, SHARE_BARE, Precedents
from fingerpost.classifiers.embedded.text import Turn, lay_out

SAYS_ONE, SAYS_TWO, ASKED_ONE, ASKED_TWO, BETWEEN, ELSEWHERE = np.eye(6, dtype=np.float32)


@pytest.fixture
def precedents() -> Precedents:
    return Precedents(np.eye(6, dtype=np.float32), np.stack([SAYS_ONE, SAYS_TWO]), np.stack([ASKED_ONE, ASKED_TWO]))


def unit(vector):
    return vector / np.linalg.norm(vector)


def test_a_text_is_drawn_towards_what_was_asked_of_the_route_that_says_the_same_and_a_name_further(precedents):
    one, two = precedents.draw(np.stack([SAYS_ONE, 3 * SAYS_TWO]), [False, True])

    assert one == pytest.approx(unit(SAYS_ONE + SHARE * ASKED_ONE), abs=1e-5)
    assert two == pytest.approx(unit(SAYS_TWO + SHARE_BARE * ASKED_TWO), abs=1e-5)


def test_a_text_between_two_routes_is_drawn_towards_both_and_more_to_the_nearer(precedents):
    nearer = unit(BETWEEN + 0.2 * SAYS_ONE + 0.18 * SAYS_TWO)

    drawn = precedents.draw(nearer[None], [False])[0]

    assert drawn[2] / drawn[3] == pytest.approx(np.exp(FOCUS * (nearer[0] - nearer[1])), rel=1e-3)


def test_a_text_like_none_keeps_most_of_what_it_says(precedents):
    drawn = precedents.draw(ELSEWHERE[None], [False])[0]

    assert drawn @ ELSEWHERE == pytest.approx(1 / np.hypot(1, SHARE), abs=1e-5)
    assert drawn[2] == pytest.approx(drawn[3])


def test_what_is_drawn_has_unit_length_and_no_text_gives_no_vector(precedents):
    rows = np.random.default_rng(0).normal(size=(5, 6)).astype(np.float32)

    assert np.linalg.norm(precedents.draw(rows, [False] * 5), axis=1) == pytest.approx(1)
    assert precedents.draw(rows[:0], []).shape == (0, 6)
    assert np.isfinite(precedents.draw(np.zeros((1, 6), np.float32), [True])).all()


def test_what_is_saved_is_loaded_to_a_byte(tmp_path):
    rng = np.random.default_rng(1)
    made = Precedents(*(rng.normal(size=shape).astype(np.float32) for shape in ((8, 4), (5, 4), (5, 4))))

    made.save(tmp_path / "precedents.npz")
    loaded = Precedents.load(tmp_path / "precedents.npz")

    step = float(max(np.abs(made.texts).max(), np.abs(made.asked).max())) / 127
    assert loaded.basis == pytest.approx(made.basis, rel=1e-3, abs=1e-4)
    assert loaded.texts == pytest.approx(made.texts, abs=0.51 * step)
    assert loaded.asked == pytest.approx(made.asked, abs=0.51 * step)


def test_a_file_that_would_run_code_is_refused(tmp_path):
    np.savez(tmp_path / "precedents.npz", basis=np.array([{}], object))

    with pytest.raises(ValueError, match="allow_pickle=False"):
        Precedents.load(tmp_path / "precedents.npz")


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"precedents\.npz"):
        Precedents.load(tmp_path / "precedents.npz")


def test_a_route_comes_nearer_to_requests_that_share_no_word_with_it(encoder):
    said = ["skip this song", "put on some jazz", "turn it up, I love this band"]
    requests = encoder.encode_many([lay_out([Turn("user", text)], encoder.tokenize) for text in said]).vectors
    plain = encoder.encode_routes(["media playback: Controls what the speaker plays.", "billing: Invoices and refunds."])

    before, after = plain @ requests.T, encoder.precedents.draw(plain, [False, False]) @ requests.T

    assert (after[0] > before[0] + 0.01).all()
    assert (after[0] > after[1] + 0.3).all()


def test_the_precedents_that_ship_are_small():
    assert (ARTIFACT / "precedents.npz").stat().st_size < 4_500_000
