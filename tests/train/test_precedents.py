from __future__ import annotations

import numpy as np
import pytest

from fingerpost.classifiers.embedded.encoder import Encoder
from fingerpost.classifiers.embedded.text import Turn, lay_out
from fingerpost.train.data import RouteSet, Sample
from fingerpost.train.precedents import LEAST, MOST, gather

WEATHER, PLAY = ("weather", "Forecasts for a place."), ("play", "Puts music on.")
RAIN = ["will it rain?", "how hot is it in Rome?", "do I need a coat?"]
SONGS = ["some jazz please", "put on Queen", "play the top hits"]


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    return Encoder()


def said(text, *right):
    return Sample((Turn("user", text),), right)


def route_set(**said_of):
    samples = [said(text, route) for route, texts in said_of.items() for text in texts]
    return RouteSet("home", "voice assistant", {"weather": [WEATHER], "play": [PLAY]}, samples)


def seen(encoder, texts):
    mean = encoder.encode_many([lay_out([Turn("user", text)], encoder.tokenize) for text in texts]).vectors.mean(0)
    return mean / np.linalg.norm(mean)


def test_a_route_is_known_by_what_it_says_and_by_the_mean_of_its_conversations(encoder):
    found = gather(encoder, [route_set(weather=RAIN, play=SONGS)])

    says = encoder.encode_routes(["weather: Forecasts for a place.", "play: Puts music on."])
    assert found.texts @ found.basis.T == pytest.approx(says, abs=1e-3)
    assert found.asked @ found.basis.T == pytest.approx(np.stack([seen(encoder, RAIN), seen(encoder, SONGS)]), abs=0.02)


def test_the_first_wording_of_a_route_counts_most(encoder):
    routes = route_set(weather=RAIN)
    routes.routes["weather"].append(("question", "The user wants to know something."))

    found = gather(encoder, [routes])

    first, second = encoder.encode_routes(["weather: Forecasts for a place.", "question: The user wants to know something."])
    says = (found.texts @ found.basis.T)[0]
    assert says == pytest.approx((3 * first + second) / np.linalg.norm(3 * first + second), abs=1e-3)


def test_a_route_that_hardly_anyone_asked_for_is_no_precedent(encoder):
    assert len(gather(encoder, [route_set(weather=RAIN, play=SONGS[: LEAST - 1])]).texts) == 1


def test_a_conversation_with_several_right_routes_counts_for_each_and_none_of_these_for_none(encoder):
    routes = route_set(weather=RAIN[:-1], play=SONGS[:-1])
    routes.samples += [said("jazz for a rainy day", "weather", "play"), said("who are you?")]

    found = gather(encoder, [routes])

    both = np.stack([seen(encoder, [*RAIN[:-1], "jazz for a rainy day"]), seen(encoder, [*SONGS[:-1], "jazz for a rainy day"])])
    assert found.asked @ found.basis.T == pytest.approx(both, abs=0.02)


def test_of_many_conversations_some_are_drawn_the_same_each_time(encoder):
    routes = route_set(weather=[f"will it rain on day {day}?" for day in range(MOST + 20)])

    one, other = gather(encoder, [routes]), gather(encoder, [routes])

    everything = seen(encoder, [sample.turns[0].text for sample in routes.samples])
    assert (one.asked == other.asked).all()
    assert one.asked[0] @ one.basis.T @ everything == pytest.approx(1, abs=0.01)
    assert one.asked @ one.basis.T != pytest.approx(everything[None], abs=1e-5)


def test_sets_are_gathered_together(encoder):
    assert len(gather(encoder, [route_set(weather=RAIN), route_set(play=SONGS)]).texts) == 2
