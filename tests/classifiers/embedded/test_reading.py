"""Routes as the model sees them: moved towards requests for what they name, then towards what was asked of routes like them."""

from __future__ import annotations

import numpy as np
import pytest

from fingerpost.classifiers.embedded.encoder import Encoder
from fingerpost.classifiers.embedded.matcher import Calibration
from fingerpost.classifiers.embedded.reading import read_routes
from fingerpost.classifiers.embedded.text import Turn, lay_out


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    return Encoder()


def read(encoder, *wordings):
    return read_routes(encoder, wordings, Calibration.from_json(encoder.settings["calibration"]))


def test_a_name_alone_is_moved_towards_those_who_ask_for_it(encoder):
    asked = encoder.encode_asked(["exchange rate"])[0]
    said = encoder.encode_routes(["exchange rate", "exchange rate: What a currency costs in another."])

    bare, described = (
        read(encoder, ("exchange_rate", "")),
        read(encoder, ("exchange_rate", "What a currency costs in another.")),
    )

    plain, whole = encoder.precedents.draw(said, [True, False])
    assert bare.routes[0] @ asked > plain @ asked
    assert described.routes[0] == pytest.approx(whole, abs=1e-5)
    assert (bare.nameless, described.nameless) == (1, 0)


def test_a_route_is_drawn_towards_what_was_asked_of_routes_like_it(encoder):
    request = encoder.encode([lay_out([Turn("user", "how many yen do I get for 50 dollars?")], encoder.tokenize)]).vectors[0]
    said = encoder.encode_routes(["exchange rate: What a currency costs in another."])[0]

    matcher = read(encoder, ("exchange_rate", "What a currency costs in another."))

    assert matcher.routes[0] @ request > said @ request


def test_a_description_that_only_repeats_the_name_is_none(encoder):
    assert (read(encoder, ("exchange_rate", "exchange rate")).routes == read(encoder, ("exchange_rate", "")).routes).all()


def test_short_things_of_a_list_are_moved_and_clauses_are_not(encoder):
    clause = "what to do when a parcel comes too late"

    matcher = read(encoder, ("shop", f"Parcels, returns, {clause}."))

    plain = encoder.precedents.draw(encoder.encode_routes(["shop: Parcels", "shop: returns", f"shop: {clause}"]), [False] * 3)
    assert matcher.owners.tolist() == [0, 0, 0]
    assert (np.abs(matcher.facets - plain).max(axis=1) > 1e-4).tolist() == [True, True, False]


def test_each_thing_belongs_to_its_route(encoder):
    matcher = read(encoder, ("one", "a thing, another thing, a third"), ("two", "Nothing listed."), ("three", "x1, x2, x3, x4"))

    assert matcher.owners.tolist() == [0] * 3 + [2] * 4
    assert matcher.names == ("one", "two", "three")


def test_a_table_without_routes_has_no_vectors(encoder):
    matcher = read(encoder)

    assert matcher.routes.shape == (0, encoder.settings["width"])
    assert matcher.nameless == 0
    assert np.isfinite(matcher.sharpness)
