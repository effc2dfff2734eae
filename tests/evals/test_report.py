from __future__ import annotations

from fingerpost.evals.metrics import Judged, summarize
from fingerpost.evals.report import SHOWN_CONFUSIONS, SHOWN_ROUTES, render

SMALL = [
    Judged(("chat",), "chat", 0.9, 0.1, 0.001, "one"),
    Judged(("chat",), "hard", 0.6, 0.2, 0.002, "one"),
    Judged(("other",), "other", 0.8, 0.8, 0.003, "two"),
]

SMALL_TEXT = """\
3 rows
  accuracy        0.667
  macro F1        0.556
  calibration     0.300 (expected calibration error; 0 is perfect)
  whole groups    0.500 of 2
  other           precision 1.000, recall 1.000, AUROC 1.000 (1 rows)
  time            p50 2.00 ms, p99 2.98 ms, 6 rows/s

routes, the weakest first
         precision  recall     F1  rows  threshold
  hard       0.000   0.000  0.000     0          -
  chat       1.000   0.500  0.667     2      0.000
  other      1.000   1.000  1.000     1          -

most frequent confusions
     1  chat taken for hard"""


def test_a_small_table_is_shown_whole():
    assert render(summarize(SMALL, 0.5)) == SMALL_TEXT


def test_what_was_not_measured_is_left_out():
    text = render(summarize([Judged(("chat",), "chat", 0.9, 0.1)], 0.0))
    assert "whole groups" not in text
    assert "other " not in text
    assert "rows/s" not in text
    assert "confusions" not in text
    assert text == text.rstrip()


def test_other_that_was_never_chosen_has_no_precision():
    text = render(summarize([Judged(("other",), "chat", 0.9, 0.1)], 1.0))
    assert "  other           precision 0.000, recall 0.000, AUROC - (1 rows)" in text


def test_a_big_table_shows_the_weakest_routes_and_the_most_frequent_confusions():
    names = [f"route_{n:02}" for n in range(30)]
    rows = [Judged((name,), name, 0.9, 0.1) for name in names]
    rows += [Judged((name,), names[0], 0.5, 0.1) for n, name in enumerate(names[1:], 1) for _ in range(n)]
    lines = render(summarize(rows, 1.0)).splitlines()
    start, middle = lines.index(f"routes, the weakest first ({SHOWN_ROUTES} of 30)"), lines.index("most frequent confusions")
    assert len(lines[start + 2 : middle - 1]) == SHOWN_ROUTES
    f1s = [float(line.split()[3]) for line in lines[start + 2 : middle - 1]]
    assert f1s == sorted(f1s)
    assert lines[middle + 1] == "    29  route_29 taken for route_00"
    assert len(lines[middle + 1 :]) == SHOWN_CONFUSIONS


def test_confusions_of_equal_number_are_in_alphabetical_order():
    rows = [Judged((right,), "z", 0.5, 0.1) for right in "cab"]
    assert [line.split()[1] for line in render(summarize(rows, 1.0)).splitlines()[-3:]] == ["a", "b", "c"]


def test_the_columns_stay_in_line_whatever_the_names():
    rows = [Judged((name,), name, 0.5, 0.1) for name in ("a", "größe", "a rather long name of a route", "12345")]
    lines = render(summarize(rows, 1.0)).splitlines()
    table = lines[lines.index("routes, the weakest first") + 1 :]
    assert len({len(line) for line in table}) == 1
