from __future__ import annotations

import random
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fingerpost.classifiers.embedded.text import Turn, normalise
from fingerpost.train.augment import LOOKALIKES, NEAR, STEERING, Padding, augmented, lookalikes, paste, polite, steer, typos

PADDING = Padding(
    greetings=("Hi",),
    wishes=("all the best",),
    leads=("One thing:",),
    endings=("Cheers.",),
    sentences=tuple(f"Boat {number} came back." for number in range(9)),
)
SAID = "please explain how photosynthesis works in a few words"
RNGS = st.randoms(use_true_random=False)
TURNS = (Turn("user", "hello"), Turn("assistant", "hi"), Turn("user", SAID, ("image",)), Turn("assistant", "well"))


@given(st.text(max_size=60), RNGS)
def test_without_a_rate_there_are_no_typos(said, rng):
    assert typos(said, rng, 0) == said


@given(st.text(max_size=60), RNGS)
def test_typos_touch_letters_only(said, rng):
    kept = [c for c in said if not c.isalpha()]

    assert [c for c in typos(said, rng, 1.0) if c in kept] == kept or any(c.isalpha() for c in kept)


def test_typos_change_some_letters():
    changed = typos(SAID * 20, random.Random(0), 0.05)

    assert changed != SAID * 20
    assert abs(len(changed) - len(SAID * 20)) < 40
    assert typos(SAID, random.Random(7), 0.2) == typos(SAID, random.Random(7), 0.2)


def test_neighbouring_keys_are_other_letters():
    assert all(key not in near and near.isalpha() for key, near in NEAR.items())


@given(RNGS)
def test_a_paste_keeps_the_request_whole_at_one_end(rng):
    pasted = paste(SAID, PADDING, rng)

    assert pasted.startswith(SAID) != pasted.endswith(SAID)
    assert sum(sentence in pasted for sentence in PADDING.sentences) in (1, 2, 4, 8)


@given(RNGS)
def test_politeness_goes_around_the_request(rng):
    said = polite(SAID, PADDING, rng)
    opening, ending = said.split(SAID)

    assert opening or ending
    assert re.fullmatch(r"(Hi[,.!]? )?(all the best[,.!]? )?(One thing: )?", opening)
    assert ending in ("", " Cheers.")


@given(RNGS)
def test_steering_names_its_target_and_keeps_the_request(rng):
    steered = steer(SAID, "hard question", rng)

    assert SAID in steered
    assert "hard question" in steered.lower().replace("_", " ")
    assert "{x}" not in steered


@pytest.mark.parametrize("name", ["{x}", "{0}", "a{b", "%s"])
def test_any_name_can_be_a_target(name):
    for seed in range(40):
        assert name.lower() in steer(SAID, name, random.Random(seed)).lower()


@given(RNGS)
def test_look_alikes_read_the_same_once_normal(rng):
    assert normalise(lookalikes(SAID, rng, 0.3)) == SAID


def test_look_alikes_at_the_ends_of_the_rate():
    assert lookalikes(SAID, random.Random(0), 0) == SAID
    assert not set(lookalikes(SAID, random.Random(0), 1.1)) & set(LOOKALIKES)


@given(RNGS)
def test_only_the_latest_user_turn_changes_and_keeps_its_media(rng):
    changed = augmented(TURNS, ["hard question"], PADDING, rng)

    assert (changed[:2], changed[3]) == (TURNS[:2], TURNS[3])
    assert (changed[2].role, changed[2].media) == ("user", ("image",))


def test_about_half_of_the_conversations_stay_as_they_are():
    rng = random.Random(0)
    unchanged = sum(augmented(TURNS, ["hard question"], PADDING, rng) == TURNS for _ in range(2000))

    assert 900 < unchanged < 1400


def test_each_kind_of_change_happens():
    rng = random.Random(1)
    texts = [augmented(TURNS, ["hard question"], PADDING, rng)[2].text for _ in range(1500)]

    assert any(text.isupper() for text in texts)
    assert any(text.istitle() for text in texts)
    assert any(text.startswith("Hi") for text in texts)
    assert any(text.endswith("Cheers.") for text in texts)
    assert any(sentence in text for text in texts for sentence in PADDING.sentences)
    assert any("hard" in text.lower() for text in texts)


def test_without_names_there_is_no_steering():
    rng = random.Random(2)
    opened = [order.split("{x}")[0] for order in STEERING if len(order.split("{x}")[0]) > 6]

    assert not any(start in augmented(TURNS, [], PADDING, rng)[2].text for _ in range(500) for start in opened)


def test_the_same_seed_gives_the_same_change():
    one, other = ([augmented(TURNS, ["a b"], PADDING, rng) for _ in range(50)] for rng in (random.Random(3), random.Random(3)))

    assert one == other


def test_the_phrases_differ_from_each_other():
    assert len(set(STEERING)) == len(STEERING)
    assert all("{x}" in order for order in STEERING)
