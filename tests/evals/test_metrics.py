from __future__ import annotations

import json
import math
from fractions import Fraction

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from fingerpost.evals.metrics import Judged, auroc, by_route, calibration_error, coverage, suggest_thresholds, summarize

ROWS = [
    Judged(("a",), "a", 0.9, 0.0, 0.001, "g1"),
    Judged(("a",), "b", 0.6, 0.2, 0.002, "g1"),
    Judged(("b",), "b", 0.8, 0.1, 0.003, "g2"),
    Judged(("b", "a"), "a", 0.7, 0.1, 0.004, "g2"),
    Judged(("other",), "other", 0.9, 0.9, 0.005),
    Judged(("other",), "a", 0.5, 0.2, 0.100),
]


def test_the_figures_of_a_small_table_are_those_worked_out_by_hand():
    figures = summarize(ROWS, 2.0)
    assert figures["n"] == 6
    assert figures["accuracy"] == pytest.approx(4 / 6)
    assert figures["per_route"] == {
        "a": {"precision": pytest.approx(2 / 3), "recall": pytest.approx(2 / 3), "f1": pytest.approx(2 / 3), "support": 3},
        "b": {"precision": 0.5, "recall": 1.0, "f1": pytest.approx(2 / 3), "support": 1},
        "other": {"precision": 1.0, "recall": 0.5, "f1": pytest.approx(2 / 3), "support": 2},
    }
    assert figures["macro_f1"] == pytest.approx(2 / 3)
    assert figures["confusion"] == {"a": {"a": 2, "b": 1}, "b": {"b": 1}, "other": {"other": 1, "a": 1}}
    # Bins hold 0.9 twice (right, right), and 0.6, 0.8, 0.7, 0.5 once each (wrong, right, right, wrong).
    assert figures["ece"] == pytest.approx((0.1 * 2 + 0.6 + 0.2 + 0.3 + 0.5) / 6)
    assert (figures["group_accuracy"], figures["groups"]) == (0.5, 2)
    # In scope 1.0, 0.8, 0.9, 0.9 against 0.1, 0.8: one tie of eight pairs.
    assert figures["other"] == {"precision": 1.0, "recall": 0.5, "auroc": pytest.approx(7.5 / 8), "support": 2}
    assert figures["latency_ms"] == {"p50": pytest.approx(3.5), "p99": pytest.approx(5 + 95 * 0.95)}
    assert figures["rows_per_s"] == 3.0
    assert figures["thresholds"] == {"a": 0.7, "b": 0.8}


def test_the_figures_are_json_with_the_names_that_tools_rely_on():
    figures = json.loads(json.dumps(summarize(ROWS, 2.0), allow_nan=False))
    wanted = {
        "n",
        "accuracy",
        "macro_f1",
        "per_route",
        "confusion",
        "ece",
        "group_accuracy",
        "other",
        "latency_ms",
        "rows_per_s",
    }
    assert wanted <= figures.keys()


def test_without_rows_there_are_no_figures():
    with pytest.raises(ValueError, match="no rows"):
        summarize([], 1.0)


def test_what_cannot_be_measured_is_none():
    figures = summarize([Judged(("a",), "a", 1.0, 0.0)], 0.0)
    assert figures["group_accuracy"] is None
    assert figures["rows_per_s"] is None
    assert figures["other"] == {"precision": None, "recall": None, "auroc": None, "support": 0}


def test_any_of_the_right_routes_is_right_and_counts_under_itself():
    row = Judged(("b", "a"), "a", 0.7, 0.1)
    assert row.correct
    assert row.route == "a"
    assert Judged(("b", "a"), "c", 0.7, 0.1).route == "b"


def test_a_row_in_which_other_is_also_right_is_no_in_scope_row():
    rows = [Judged(("a", "other"), "a", 0.9, 0.8), Judged(("b",), "b", 0.9, 0.1)]
    assert summarize(rows, 1.0)["other"] == {"precision": None, "recall": None, "auroc": 1.0, "support": 1}


def test_a_group_is_right_only_when_all_its_rows_are():
    right, wrong = Judged(("a",), "a", 1, 0, group="x"), Judged(("a",), "b", 1, 0, group="x")
    alone = Judged(("a",), "a", 1, 0, group="")
    assert summarize([right, wrong, right, alone], 1.0)["group_accuracy"] == 0.5


def test_a_route_that_is_only_ever_chosen_wrongly_counts_as_zero_in_macro_f1():
    figures = summarize([Judged(("a",), "a", 1, 0), Judged(("a",), "z", 1, 0)], 1.0)
    assert figures["per_route"]["z"] == {"precision": 0.0, "recall": 0.0, "f1": 0.0, "support": 0}
    assert figures["macro_f1"] == pytest.approx((2 / 3) / 2)


@pytest.mark.parametrize(
    ("confidences", "correct", "ece"),
    [
        ([1.0, 1.0], [True, True], 0.0),
        ([1.0, 1.0], [True, False], 0.5),
        ([0.0], [True], 1.0),
        ([0.5, 0.5], [True, False], 0.0),
        ([0.51, 0.52, 0.9], [True, False, True], (abs(0.5 - 0.515) * 2 + 0.1) / 3),
        ([1 / 15, 1 / 15 - 1e-9], [True, False], (14 / 15 + 1 / 15) / 2),
    ],
)
def test_the_calibration_error_is_the_weighted_gap_of_the_bins(confidences, correct, ece):
    assert calibration_error(confidences, correct) == pytest.approx(ece)


@pytest.mark.parametrize(
    ("positive", "negative", "area"),
    [
        ([1, 2], [0], 1.0),
        ([0], [1, 2], 0.0),
        ([1], [1], 0.5),
        ([1, 1, 1], [1, 1], 0.5),
        ([3, 1], [2, 1], 0.625),
        ([], [1], None),
        ([1], [], None),
        ([], [], None),
    ],
)
def test_the_auroc_counts_ties_half(positive, negative, area):
    assert auroc(positive, negative) == area


@pytest.mark.parametrize(
    ("chosen", "precision", "threshold"),
    [
        ([(0.9, True), (0.5, True)], 0.95, 0.0),
        ([(0.9, True), (0.5, False)], 0.95, 0.9),
        ([(0.9, True), (0.5, False)], 0.5, 0.0),
        ([(0.9, False), (0.5, False)], 0.5, None),
        ([(0.9, False), (0.8, True), (0.7, True)], 0.6, 0.0),
        ([(0.9, True), (0.9, False), (0.8, False)], 0.95, None),
        ([(0.9, True), (0.9, True), (0.8, False)], 0.95, 0.9),
    ],
)
def test_a_threshold_is_the_least_confidence_that_gives_the_precision(chosen, precision, threshold):
    rows = [Judged(("a",) if right else ("b",), "a", confidence, 0.0) for confidence, right in chosen]
    assert suggest_thresholds(rows, precision) == {"a": threshold}


def test_other_needs_no_threshold():
    assert suggest_thresholds([Judged(("a",), "other", 0.9, 0.9)], 0.95) == {}


names = st.sampled_from(["a", "b", "c", "other"])
part = st.integers(0, 20).map(lambda n: n / 20) | st.floats(0, 1)
rows = st.builds(
    Judged,
    right=st.lists(names, min_size=1, max_size=3, unique=True).map(tuple),
    chosen=names,
    confidence=part,
    other=part,
    seconds=st.floats(0, 1),
    group=st.none() | st.sampled_from("xy"),
)


@given(st.lists(rows, min_size=1, max_size=25))
def test_the_figures_are_those_of_a_slow_and_obvious_count(rows):
    figures = summarize(rows, 1.0)
    assert figures["accuracy"] == pytest.approx(sum(row.chosen in row.right for row in rows) / len(rows))
    labels = [row.chosen if row.chosen in row.right else row.right[0] for row in rows]
    f1s = []
    for route in {*labels, *(row.chosen for row in rows)}:
        hits = sum(row.chosen == label == route for row, label in zip(rows, labels, strict=True))
        chosen, support = sum(row.chosen == route for row in rows), labels.count(route)
        measured = figures["per_route"][route]
        assert measured["support"] == support
        assert measured["precision"] == pytest.approx(hits / chosen if chosen else 0)
        assert measured["recall"] == pytest.approx(hits / support if support else 0)
        f1s.append(Fraction(2 * hits, chosen + support))
        assert measured["f1"] == pytest.approx(float(f1s[-1]))
    assert len(figures["per_route"]) == len(f1s)
    assert figures["macro_f1"] == pytest.approx(float(sum(f1s) / len(f1s)))
    pairs = [(row.chosen, label) for row, label in zip(rows, labels, strict=True)]
    assert {(chosen, label): n for label, row in figures["confusion"].items() for chosen, n in row.items()} == {
        pair: pairs.count(pair) for pair in pairs
    }


@given(st.lists(rows, min_size=1, max_size=25))
def test_groups_and_other_are_those_of_a_slow_and_obvious_count(rows):
    figures = summarize(rows, 1.0)
    groups = {row.group for row in rows} - {None}
    right = [all(row.chosen in row.right for row in rows if row.group == group) for group in groups]
    assert figures["groups"] == len(groups)
    assert figures["group_accuracy"] == (pytest.approx(sum(right) / len(right)) if right else None)
    inside = [1 - row.other for row in rows if "other" not in row.right]
    outside = [1 - row.other for row in rows if "other" in row.right]
    wins = [1 if a > b else 0.5 if a == b else 0 for a in inside for b in outside]
    assert figures["other"]["auroc"] == (pytest.approx(sum(wins) / len(wins)) if wins else None)


@given(st.lists(rows, min_size=1, max_size=25))
@example([Judged(("a",), "a", 1.0, 0.0), Judged(("a",), "a", 0.0, 0.0)])
def test_the_calibration_error_is_that_of_a_slow_and_obvious_count(rows):
    total = 0.0
    for b in range(15):
        inside = [row for row in rows if min(math.floor(row.confidence * 15), 14) == b]
        if inside:
            accuracy = sum(row.correct for row in inside) / len(inside)
            total += abs(accuracy - sum(row.confidence for row in inside) / len(inside)) * len(inside) / len(rows)
    assert summarize(rows, 1.0)["ece"] == pytest.approx(total)


@given(st.lists(rows, max_size=25), st.floats(0.1, 1))
def test_a_threshold_gives_its_precision_and_no_lower_confidence_does(rows, precision):
    for route, threshold in suggest_thresholds(rows, precision).items():
        mine = [row for row in rows if row.chosen == route]

        def reached(limit, mine=mine):
            kept = [row.correct for row in mine if row.confidence >= limit]
            return sum(kept) / len(kept) >= precision

        good = [row.confidence for row in mine if reached(row.confidence)]
        if threshold is None:
            assert not good
        else:
            assert reached(threshold)
            assert threshold in {0.0, min(good)}


@given(st.lists(rows, min_size=1))
def test_every_figure_of_a_route_is_between_zero_and_one(rows):
    for figures in by_route(rows).values():
        assert all(0 <= figures[name] <= 1 for name in ("precision", "recall", "f1"))


def test_coverage_counts_the_surest_rows_first_and_equal_ones_together():
    assert coverage([0.5, 0.9, 0.5, 0.7], [False, True, True, True]) == [(0.9, 0.25, 1.0), (0.7, 0.5, 1.0), (0.5, 1.0, 0.75)]
    assert coverage([], []) == []


@given(st.lists(st.tuples(st.sampled_from([0.1, 0.2, 0.5, 0.9, 1.0]), st.booleans()), min_size=1, max_size=30))
def test_coverage_is_that_of_a_slow_and_obvious_count(rows):
    confidences, correct = [one for one, _ in rows], [one for _, one in rows]
    expected = []
    for least in sorted(set(confidences), reverse=True):
        taken = [right for confidence, right in rows if confidence >= least]
        expected.append((least, len(taken) / len(rows), sum(taken) / len(taken)))
    assert [pytest.approx(point) for point in coverage(confidences, correct)] == expected
