from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fingerpost.classifiers.embedded.matcher import (
    SPREAD,
    WHOLE,
    Calibration,
    Matcher,
    features,
    softmax,
    taught_features,
    taught_scores,
    teach,
)

CALIBRATION = Calibration(
    scale=20.0, sharpness=(0.0, 0.0, 0.0), slope=1.0, none=(8.0, 0.0, 0.0), taught_none=(8.0, 0.0, 0.0, 0.0, 0.0), pull=0.03
)
WIDTH = 8


def unit(rows) -> np.ndarray:
    rows = np.atleast_2d(np.asarray(rows, np.float32))
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def axes(*places) -> np.ndarray:
    return np.eye(WIDTH, dtype=np.float32)[list(places)]


def near(vector, count, seed=0) -> np.ndarray:
    noise = np.random.default_rng(seed).normal(0, 0.15, (count, len(vector))).astype(np.float32)
    return unit(vector + noise)


def matcher_of(routes, facets=None, owners=(), calibration=CALIBRATION, nameless=0.0) -> Matcher:
    return Matcher(
        names=tuple(f"r{place}" for place in range(len(routes))),
        routes=routes,
        facets=np.empty((0, routes.shape[1]), np.float32) if facets is None else facets,
        owners=np.array(owners, np.intp),
        nameless=nameless,
        usual=np.zeros(WIDTH, np.float32),
        calibration=calibration,
    )


def taught(matcher, vectors, labels) -> Matcher:
    return replace(matcher, lesson=teach(matcher, vectors, labels))


def none_of(vectors) -> np.ndarray:
    return np.zeros(len(vectors), np.float32)


def shares(matcher, vectors) -> np.ndarray:
    return matcher.probabilities(vectors, none_of(vectors))


# Softmax


@given(st.lists(st.floats(-1e4, 1e4, width=32), min_size=1, max_size=20))
def test_rows_sum_to_one_and_keep_their_order(logits):
    row = softmax(np.array([logits], np.float32))[0]

    assert row.sum() == pytest.approx(1, abs=1e-5)
    assert row[np.argmax(np.array(logits, np.float32))] == row.max()
    assert ((row >= 0) & (row <= 1)).all()


def test_rows_are_independent():
    both = softmax(np.array([[1, 2], [1000, -1000]], np.float32))

    assert both[0] == pytest.approx(softmax(np.array([[1, 2]], np.float32))[0])
    assert both[1] == pytest.approx([1, 0])


# Descriptions


def test_the_route_whose_text_is_nearest_is_most_probable_and_none_of_these_comes_last():
    row = shares(matcher_of(axes(0, 1, 2)), axes(1))[0]

    assert row.shape == (4,)
    assert row.argmax() == 1


def test_what_is_near_to_no_route_is_none_of_these():
    assert shares(matcher_of(axes(0, 1, 2)), axes(5))[0].argmax() == 3


def test_a_high_score_of_none_of_these_beats_a_near_route():
    matcher = matcher_of(axes(0, 1))

    assert matcher.probabilities(axes(0), np.array([50.0], np.float32))[0].argmax() == 2


def test_a_score_is_the_scaled_likeness_of_the_whole_text_and_of_the_best_facet():
    matcher = matcher_of(axes(0, 1), facets=axes(2, 3), owners=[0, 0])

    assert matcher.scores(axes(0))[0] == pytest.approx([20, 0])
    assert matcher.scores(axes(2))[0] == pytest.approx([20 * (1 - WHOLE), 0])
    assert matcher.scores(axes(3))[0] == pytest.approx([20 * (1 - WHOLE), 0])


def test_a_facet_never_lowers_a_score():
    vectors = unit(np.random.default_rng(1).normal(size=(20, WIDTH)))
    plain, listed = matcher_of(axes(0, 1, 2)), matcher_of(axes(0, 1, 2), facets=axes(3, 4, 5), owners=[0, 1, 1])

    assert (listed.scores(vectors) >= plain.scores(vectors) - 1e-5).all()


def test_scoring_changes_no_input():
    matcher = matcher_of(axes(0, 1), facets=axes(2), owners=[1])
    routes, vectors = matcher.routes.copy(), axes(2)

    matcher.scores(vectors)

    assert (matcher.routes == routes).all()
    assert (vectors == axes(2)).all()


@given(st.permutations(range(5)))
def test_the_order_of_the_routes_does_not_matter(order):
    routes = unit(np.random.default_rng(3).normal(size=(5, WIDTH)))
    vectors = unit(np.random.default_rng(4).normal(size=(6, WIDTH)))

    straight, turned = shares(matcher_of(routes), vectors), shares(matcher_of(routes[order]), vectors)

    assert turned[:, :5] == pytest.approx(straight[:, order], abs=1e-5)
    assert turned[:, 5] == pytest.approx(straight[:, 5], abs=1e-5)


@pytest.mark.parametrize("count", [0, 1, 500])
def test_any_number_of_routes(count):
    routes = unit(np.random.default_rng(5).normal(size=(count, WIDTH))) if count else np.empty((0, WIDTH), np.float32)

    found = shares(matcher_of(routes), axes(0, 1))

    assert found.shape == (2, count + 1)
    assert found.sum(1) == pytest.approx([1, 1], abs=1e-5)
    assert np.isfinite(found).all()


def test_routes_of_equal_texts_share_their_probability():
    first, second, _ = shares(matcher_of(axes(0, 0)), axes(0))[0]

    assert first == pytest.approx(second)


# Calibration


def test_a_calibration_is_read_from_json():
    values = {"scale": 20, "sharpness": [0, 1], "slope": 2, "none": [1, 2, 3], "taught_none": [4], "pull": 0.1}

    assert Calibration.from_json(values) == Calibration(20, (0, 1), 2, (1, 2, 3), (4,), 0.1)


@pytest.mark.parametrize("change", [{"scale": None}, {"mystery": 1}])
def test_a_calibration_with_other_keys_is_refused(change):
    values = {"scale": 20, "sharpness": [0], "slope": 2, "none": [1], "taught_none": [4], "pull": 0.1} | change
    values = {key: value for key, value in values.items() if value is not None}

    with pytest.raises(TypeError, match=next(iter(change))):
        Calibration.from_json(values)


@pytest.mark.parametrize("routes", [0, 1, 10, 500])
def test_calibration_knows_the_size_of_a_table_and_its_share_of_bare_names(routes):
    one, size, nameless = features(routes, 0.5)

    assert (one, nameless) == (1, 0.5)
    assert size == pytest.approx(np.log(max(routes, 1) / 10))


def test_sharpness_raises_the_highest_probability():
    sharp = replace(CALIBRATION, sharpness=(1.0, 0.0, 0.0))
    vectors = unit(axes(0) + 0.8 * axes(1))

    assert shares(matcher_of(axes(0, 1), calibration=sharp), vectors).max() > shares(matcher_of(axes(0, 1)), vectors).max()


def test_bare_names_may_make_none_of_these_likelier():
    wary = replace(CALIBRATION, none=(8.0, 0.0, 5.0))
    vectors = unit(axes(0) + axes(5))

    described = shares(matcher_of(axes(0, 1), calibration=wary, nameless=0.0), vectors)
    bare = shares(matcher_of(axes(0, 1), calibration=wary, nameless=1.0), vectors)

    assert bare[0, 2] > described[0, 2]


# Examples


def examples(count, seed=0) -> np.ndarray:
    return np.concatenate([near(axes(0)[0], count, seed), near(axes(1)[0], count, seed + 1)])


def labels(count) -> list[int]:
    return [0] * count + [1] * count


def test_examples_raise_the_probability_of_their_route_for_similar_text():
    matcher = matcher_of(axes(0, 1))
    similar = near(axes(4)[0], 5, seed=9)

    learned = taught(matcher, np.concatenate([near(axes(4)[0], 8), near(axes(5)[0], 8, seed=1)]), [0] * 8 + [1] * 8)

    assert (shares(learned, similar)[:, 0] > shares(matcher, similar)[:, 0]).all()
    assert (learned.logits(similar, none_of(similar))[:, :2].argmax(1) == 0).all()


def test_many_examples_overrule_descriptions():
    matcher = matcher_of(axes(0, 1))
    vectors = np.concatenate([near(axes(0)[0], 40), near(axes(1)[0], 40, seed=1)])

    learned = taught(matcher, vectors, [1] * 40 + [0] * 40)

    assert learned.logits(axes(0), none_of(axes(0)))[0, :2].argmax() == 1


def test_a_strong_pull_keeps_to_the_descriptions():
    vectors = np.concatenate([near(axes(4)[0], 4), near(axes(5)[0], 4, seed=1)])
    labels = [0] * 4 + [1] * 4

    free, held = (
        taught(matcher_of(axes(0, 1), calibration=replace(CALIBRATION, pull=pull)), vectors, labels).lesson.weights
        for pull in (0.01, 100)
    )

    assert np.abs(held).max() < 0.1 * np.abs(free).max()


def test_few_examples_count_for_less_beside_descriptions_and_many_hardly():
    def share_left(count):
        vectors, labels = np.concatenate([near(axes(4)[0], count), near(axes(5)[0], count, seed=1)]), [0] * count + [1] * count
        described, bare = (teach(matcher_of(axes(0, 1), nameless=nameless), vectors, labels) for nameless in (0.0, 1.0))
        return np.linalg.norm(described.weights) / np.linalg.norm(bare.weights)

    assert share_left(2) < 0.7
    assert share_left(200) > 0.9


def test_a_route_without_examples_keeps_what_its_description_says():
    matcher = matcher_of(axes(0, 1, 2))
    vectors = np.concatenate([near(axes(4)[0], 5), near(axes(5)[0], 5, seed=1)])

    learned = taught(matcher, vectors, [0] * 5 + [1] * 5)

    assert not learned.lesson.weights[2].any()
    assert learned.lesson.bias[2] == 0
    assert taught_scores(matcher.scores(axes(2)), axes(2), None, learned.lesson)[0].argmax() == 2


def test_what_all_requests_have_in_common_draws_none_to_the_routes_with_examples():
    common = 2 * axes(7)
    usual = unit(common + axes(4) + axes(5) + axes(6))[0]
    matcher = replace(matcher_of(unit(axes(0, 1, 2) + common)), usual=usual)

    learned = taught(matcher, unit(near(axes(0)[0], 5) + common), [0] * 5)

    for asked in (unit(axes(1) + common), unit(axes(2) + common)):
        assert shares(learned, asked)[0] == pytest.approx(shares(matcher, asked)[0], abs=0.05)


@pytest.mark.parametrize("count", [1, 2, 10])
def test_examples_of_one_route_alone_move_only_text_like_them(count):
    matcher = matcher_of(axes(0, 1, 2))

    learned = taught(matcher, near(axes(4)[0], count), [0] * count)

    assert learned.logits(axes(4), none_of(axes(4)))[0, :3].argmax() == 0
    assert not learned.lesson.bias.any()
    assert shares(learned, axes(1))[0].argmax() == 1
    assert shares(learned, axes(2))[0].argmax() == 2


def test_a_few_examples_of_a_class_weigh_as_much_as_many():
    matcher = matcher_of(axes(0, 1))
    vectors = np.concatenate([near(axes(4)[0], 60), near(axes(5)[0], 2, seed=1)])

    learned = taught(matcher, vectors, [0] * 60 + [1] * 2)

    assert learned.logits(axes(5), none_of(axes(5)))[0, :2].argmax() == 1


@pytest.mark.parametrize("labels", [[0], [1], [0, 1], [0, 0], [1, 0, 0, 0], [2, 2, 2]])
def test_any_number_of_examples_can_be_learned_from(labels):
    vectors = near(axes(4)[0], len(labels))

    found = shares(taught(matcher_of(axes(0, 1, 2)), vectors, labels), axes(0, 4, 6))

    assert np.isfinite(found).all()
    assert found.sum(1) == pytest.approx([1, 1, 1], abs=1e-5)


def test_equal_examples_of_different_routes_are_no_obstacle():
    found = shares(taught(matcher_of(axes(0, 1)), axes(4, 4), [0, 1]), axes(4))

    assert found[0, 0] == pytest.approx(found[0, 1], abs=0.02)


SPELLED = np.eye(2, 3, dtype=np.float32)


def spelled(labels, letters, routes=2) -> Matcher:
    """A table whose examples all have the same vector and differ in their letters only."""
    matcher, vectors = matcher_of(axes(*range(routes))), axes(*[4] * len(labels))
    lesson = teach(matcher, vectors, labels, letters)
    return replace(matcher, lesson=lesson)


def test_wording_decides_between_routes_that_mean_the_same_to_the_encoder():
    learned = spelled([0, 1], SPELLED[:2])

    found = learned.logits(axes(4, 4), none_of(axes(4, 4)), SPELLED[:2])

    assert found[0, 0] > found[0, 1] + 1
    assert found[1, 1] > found[1, 0] + 1


def test_wording_that_texts_share_by_chance_counts_for_nothing():
    learned = spelled([0, 1], SPELLED[:2] * 0.1)

    found = learned.probabilities(axes(4), none_of(axes(4)), SPELLED[:1])

    assert found[0, 0] == pytest.approx(found[0, 1], abs=1e-5)


def test_more_counts_as_chance_where_routes_lack_examples():
    whole, partly = spelled([0, 1], SPELLED[:2]), spelled([0, 1], SPELLED[:2], routes=4)

    given, without = (
        [table.logits(axes(4), none_of(axes(4)), text)[0, 0] / table.lesson.sharpness for table in (whole, partly)]
        for text in (SPELLED[:1] * 0.5, None)
    )

    assert given[0] - without[0] > given[1] - without[1] > 0


def test_without_letters_wording_does_not_count():
    found = spelled([0, 1], SPELLED[:2]).probabilities(axes(4), none_of(axes(4)))

    assert found[0, 0] == pytest.approx(found[0, 1], abs=1e-5)


def test_examples_and_none_of_these_go_together():
    matcher = matcher_of(axes(0, 1), calibration=replace(CALIBRATION, taught_none=(8.0, 1.0, -4.0, 0.0, 0.0)))
    learned = taught(matcher, np.concatenate([near(axes(0)[0], 5), near(axes(1)[0], 5, seed=1)]), [0] * 5 + [1] * 5)

    assert shares(learned, axes(6))[0].argmax() == 2
    assert shares(learned, axes(0))[0].argmax() == 0


def test_likeness_is_that_to_the_nearest_example():
    lesson = taught(matcher_of(axes(0, 1)), axes(4, 5), [0, 1]).lesson

    seen = taught_features(unit(axes(4) + axes(6)), np.array([3.0], np.float32), lesson, 20)[0]

    assert seen == pytest.approx([1, 3, np.sqrt(0.5), np.log(2), lesson.expected], abs=1e-5)


@pytest.mark.parametrize("count", [1, 2, 5])
def test_what_is_expected_of_a_request_is_about_what_examples_score_that_were_not_learned_from(count):
    alike = unit(axes(0, 1) + 0.2 * axes(4))
    clear, vague = (
        taught(matcher_of(alike if close else axes(2, 3)), examples(count), labels(count)) for close in (True, False)
    )
    others = examples(50, seed=90)

    for matcher in (clear, vague):
        scores = taught_scores(matcher.scores(others), others, None, matcher.lesson) * matcher.lesson.sharpness
        assert matcher.lesson.expected == pytest.approx(scores.max(1).mean(), rel=0.35, abs=1)
    assert clear.lesson.expected > 3 * vague.lesson.expected


def test_beside_names_the_more_is_expected_the_less_an_unlike_request_is_taken_for_a_route():
    demanding = replace(CALIBRATION, taught_none=(0.0, 0.0, 0.0, 0.0, 0.8))
    clear = taught(matcher_of(axes(0, 1), calibration=demanding, nameless=1.0), examples(5), labels(5))
    plain = replace(clear, lesson=replace(clear.lesson, expected=0.0))
    doubtful = unit(axes(0) + 1.5 * axes(6))

    assert shares(plain, doubtful)[0].argmax() == 0
    assert shares(clear, doubtful)[0].argmax() == 2
    assert shares(clear, axes(0))[0].argmax() == 0


@pytest.mark.parametrize("seed", range(8))
def test_a_correction_is_near_the_best_one_however_far_its_first_steps_go(seed):
    generator = np.random.default_rng(seed)
    texts = unit(generator.normal(size=(12, 16)))
    labels = np.repeat(np.arange(12), 4)
    directions = unit(texts[labels] + generator.normal(0, 0.3, (48, 16)) + generator.normal(size=16) * 0.3)
    matcher = matcher_of(unit(texts + generator.normal(0, 0.3, (12, 16))), nameless=1.0)

    def slope(vectors, lesson):
        shares = softmax(taught_scores(matcher.scores(vectors), vectors, None, lesson))
        error = (shares - np.eye(12)[labels]) / len(labels)
        return np.linalg.norm(error.T @ ((vectors - lesson.middle) * SPREAD) + CALIBRATION.pull / 12 * lesson.weights)

    for length in np.linspace(0.3, 6, 40, dtype=np.float32):
        lesson = teach(matcher, length * directions, labels.tolist())
        untaught = replace(lesson, weights=0 * lesson.weights, bias=0 * lesson.bias)
        assert slope(length * directions, lesson) < 0.05 * slope(length * directions, untaught)


def test_teaching_is_repeatable():
    vectors, labels = near(axes(4)[0], 9), [0, 1, 2] * 3

    one, other = (taught(matcher_of(axes(0, 1, 2)), vectors, labels).lesson for _ in range(2))

    assert (one.weights == other.weights).all()
    assert one.sharpness == other.sharpness


LESSON = """
import sys, time
import numpy as np
from fingerpost.classifiers.embedded.matcher import Calibration, Matcher, teach

generator = np.random.default_rng(0)
unit = lambda rows: (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)
calibration = Calibration(20.0, (0.0, 0.0, 0.0), 1.0, (8.0, 0.0, 0.0), (8.0, 0.0, 0.0, 0.0), 0.03)
routes = unit(generator.normal(size=(150, 384)))
labels = np.repeat(np.arange(150), 10)
vectors = unit(routes[labels] + generator.normal(0, 0.05, (1500, 384)))
matcher = Matcher(tuple(map(str, range(150))), routes, routes[:0], np.empty(0, np.intp), 0.0, routes[0], calibration)
start = time.process_time()
lesson = teach(matcher, vectors, labels.tolist())
print(time.process_time() - start)
"""


def test_many_routes_with_many_examples_are_learned_in_seconds_on_one_core():
    one_core = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}

    done = subprocess.run([sys.executable, "-c", LESSON], env=one_core, capture_output=True, text=True, check=True)

    assert float(done.stdout) < 10
