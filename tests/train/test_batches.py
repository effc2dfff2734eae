from __future__ import annotations

import random

import pytest

from fingerpost.classifiers.embedded.text import Turn, route_text
from fingerpost.train.augment import Padding
from fingerpost.train.batches import Batch, Recipe, Sources, sample_batch, worded
from fingerpost.train.data import RouteSet, Sample

PLAIN = Recipe(
    sgd_rows=3, snips_rows=2, sets=2, least=4, most=4, drop=0, drop_sgd=0, merged=0, bare=0, reworded=1, reworded_sgd=0
)
PADDING = Padding(("Hi",), ("all well?",), ("So,",), ("Thanks",), tuple(f"Boat {number} came back." for number in range(9)))


WORDS = ("alpha", "beta", "gamma", "delta", "eta", "zeta", "theta", "iota", "kappa")


def turns(about):
    """A conversation whose first turn, which is never varied, says what it is about."""
    return (Turn("user", about), Turn("assistant", "Yes?"), Turn("user", "please go on and do it"))


def make_set(name, count, other=True, weight=1.0):
    routes = {
        f"{name}_{word}": [(f"{name}_{word}", f"About {name} {word}."), (f"also_{name}_{word}", f"Or {name}, {word}, xxx.")]
        for word in WORDS[:count]
    }
    samples = [Sample(turns(key), (key,)) for key in routes] + [Sample(turns("nothing"), ())] * other
    return RouteSet(name, "topic", routes, samples, weight)


def make_sgd():
    routes = {f"S{s}_1/{word}": [(f"S{s}_1.{word}", f"Intent {word} of {s}.")] for s in range(20) for word in WORDS[:3]}
    samples = []
    for key in routes:
        near = tuple(other for other in routes if other.split("/")[0] == key.split("/")[0])
        samples += [Sample(turns(key), (key,), near, frozenset(near))] * 2
    return RouteSet("sgd", "task dialogues", routes, samples)


SGD, SNIPS = make_sgd(), make_set("snips", 7, other=False)
WRITTEN = [make_set(name, 6) for name in ("shop", "bank", "home")]


def drawn(recipe=PLAIN, seed=0, written=WRITTEN) -> Batch:
    return sample_batch(Sources(SGD, SNIPS, written, PADDING), recipe, random.Random(seed))


def written_forms(name, description):
    return route_text(name, description), route_text(name, ""), route_text("", description)


SEEDS = pytest.mark.parametrize("seed", range(12))


@SEEDS
@pytest.mark.parametrize("recipe", [Recipe(), Recipe(drop=1, drop_sgd=1), Recipe(merged=1), PLAIN])
def test_every_row_points_into_the_batch(seed, recipe):
    batch = drawn(recipe, seed)

    assert len(batch.routes) == len(batch.sets)
    for place, text in (*batch.facets, *batch.reworded):
        assert 0 <= place < len(batch.routes)
        assert text
    for row in batch.rows:
        assert row.candidates
        assert len(set(row.candidates)) == len(row.candidates)
        assert all(0 <= place < len(batch.routes) for place in row.candidates)
        assert set(row.right) <= set(row.candidates)
        assert set(row.strangers) <= set(row.candidates)


@SEEDS
def test_the_recipe_says_how_many_rows_of_what(seed):
    batch = drawn(seed=seed)
    kinds = [batch.sets[row.candidates[0]] for row in batch.rows]

    assert kinds.count("sgd") <= 3
    assert kinds.count("snips") == 2
    assert len(set(kinds) - {"sgd", "snips"}) == 2
    assert len(kinds) - kinds.count("sgd") - kinds.count("snips") == 8


@SEEDS
def test_the_right_route_of_a_row_is_the_one_that_its_conversation_is_about(seed):
    batch = drawn(seed=seed)
    sets = {routes.name: routes for routes in (SGD, SNIPS, *WRITTEN)}

    for row in batch.rows:
        about = row.turns[0].text
        if about == "nothing":
            assert row.right == []
        else:
            [right] = row.right
            wordings = sets[batch.sets[right]].routes[about]
            assert batch.routes[right] in {text for name, said in wordings for text in written_forms(name, said)}


@SEEDS
def test_a_dropped_route_is_no_candidate_and_nothing_is_right(seed):
    batch = drawn(Recipe(drop=1, drop_sgd=1, merged=0), seed)

    assert all(not row.right for row in batch.rows)
    assert all(not row.strangers for row in batch.rows)


@SEEDS
def test_conversations_that_fit_nothing_see_only_their_own_set(seed):
    for row in drawn(seed=seed).rows:
        if not row.right:
            assert not row.strangers


@SEEDS
def test_strangers_belong_to_other_written_sets(seed):
    batch = drawn(Recipe(merged=0), seed)

    for row in batch.rows:
        own = batch.sets[row.candidates[0]]
        assert not {batch.sets[place] for place in row.strangers} & {own, "sgd", "snips"}


@SEEDS
def test_routes_of_a_dialogues_domain_are_candidates_only_when_near(seed):
    batch = drawn(seed=seed)

    for row in batch.rows:
        if batch.sets[row.candidates[0]] == "sgd":
            assert row.right
            assert len(row.candidates) >= 3


def test_merged_routes_are_joined_and_their_conversations_follow():
    recipe = Recipe(sgd_rows=1, snips_rows=0, sets=1, least=7, most=7, drop=0, merged=1)
    batches = [drawn(recipe, seed, [make_set("shop", 9)]) for seed in range(20)]

    assert any(batch.sets.count("shop") < 9 for batch in batches)
    for batch in batches:
        for row in batch.rows:
            if batch.sets[row.candidates[0]] == "shop" and row.turns[0].text != "nothing":
                assert len(row.right) == 1


@pytest.mark.parametrize("count", [2, 6])
def test_several_right_routes_are_all_right(count):
    routes = make_set("shop", 6)
    routes.samples = [Sample(turns("several"), tuple(f"shop_{word}" for word in WORDS[:count]))]

    [row] = drawn(Recipe(sgd_rows=0, snips_rows=0, sets=1, least=1, most=1, drop=0, merged=0), 0, [routes]).rows

    assert len(row.right) == count


def test_a_set_of_one_route_whose_route_is_dropped_gives_no_row():
    batch = drawn(Recipe(sgd_rows=0, snips_rows=0, sets=1, least=5, most=5, drop=1), 0, [make_set("lone", 1, other=False)])

    assert batch.rows == []


def test_tables_of_bare_names_have_no_description():
    batch = drawn(Recipe(bare=1, merged=0), 4)

    assert batch.routes
    assert not any(":" in text for text in batch.routes)


@pytest.mark.parametrize(("routes", "rows"), [(2, 3), (8, 4), (9, 4)])
def test_a_set_gives_a_row_for_every_two_routes_within_limits(routes, rows):
    recipe = Recipe(sgd_rows=0, snips_rows=0, sets=1, least=3, most=4, drop=0, merged=0)
    [found] = {len(drawn(recipe, seed, [make_set("shop", routes)]).rows) for seed in range(5)}

    assert found == rows


def test_no_written_sets_are_no_obstacle():
    assert set(drawn(written=[]).sets) == {"sgd", "snips"}


def test_heavy_sets_are_drawn_more_often():
    sets = [make_set("heavy", 3, weight=50.0), make_set("light", 3), make_set("slight", 3)]
    recipe = Recipe(sgd_rows=1, snips_rows=1, sets=1)

    heavy = sum("heavy" in drawn(recipe, seed, sets).sets for seed in range(100))

    assert heavy > 85


def test_the_same_seed_gives_the_same_batch():
    assert drawn(Recipe(), 5) == drawn(Recipe(), 5)
    assert drawn(Recipe(), 5) != drawn(Recipe(), 6)


def test_route_sets_are_left_as_they_were():
    before = [route_set.routes.copy() for route_set in (SGD, SNIPS, *WRITTEN)]

    drawn(Recipe(merged=1), 9)

    assert [route_set.routes for route_set in (SGD, SNIPS, *WRITTEN)] == before


def test_a_wording_mostly_has_both_parts_and_never_loses_both():
    rng = random.Random(0)
    seen = [worded(("name", "Description."), rng) for _ in range(2000)]

    assert set(seen) == {("name", "Description."), ("name", ""), ("", "Description.")}
    assert seen.count(("name", "Description.")) > 1400


def test_a_second_wording_is_another_than_the_first():
    batch = drawn(seed=1)
    places = [place for place, _ in batch.reworded]

    assert places
    assert len(set(places)) == len(places)
    assert all(text != batch.routes[place] for place, text in batch.reworded)
    assert all(batch.sets[place] != "sgd" for place in places)


def test_names_of_a_row_are_those_of_its_own_candidates():
    batch = drawn(Recipe(merged=0), 2)

    for row in batch.rows:
        own = [batch.routes[place].split(":")[0] for place in row.candidates if place not in row.strangers]
        assert row.names == own


def test_routes_are_written_as_the_model_reads_them_at_run_time():
    batch = drawn(seed=3)
    known = {text for wordings in SNIPS.routes.values() for wording in wordings for text in written_forms(*wording)}

    assert {text for text, name in zip(batch.routes, batch.sets, strict=True) if name == "snips"} <= known
