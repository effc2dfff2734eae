import xml.etree.ElementTree as ET

import pytest
from bench.speed import report
from bench.speed.goals import Goal, check
from bench.speed.lifetime import slope
from bench.speed.load import Load, read_wrk
from bench.speed.measure import Cell, Findings, Memory, Sample, summary


def cell(subject: str, case: str, cpu_us: float, connections: int = 16, **more) -> Cell:
    return Cell(subject, case, connections, cpu_us=cpu_us, rps=500.0, **more)


CELLS = [
    cell("direct", "small", 0.0),
    cell("fingerpost", "small", 90.0),
    cell("fingerpost", "small", 95.0, 256),
    cell("fingerpost-auto", "small", 3000.0),
    cell("fingerpost-cached", "small", 140.0),
    cell("envoy", "small", 80.0),
    cell("switchyard", "small", 200.0),
    Cell("litellm", "small", 16, void="3 errors in 9 requests at 16 connections"),
    cell("fingerpost", "stream", 2000.0),
    cell("envoy", "stream", 2400.0),
]


def sample(cpu: float, requests: int, p50: float = 0.0) -> Sample:
    return Sample(Load(requests, 0, 2.0, p50, 2 * p50), cpu)


def test_a_cell_is_the_median_of_its_rounds_and_latency_is_compared_round_by_round() -> None:
    samples = {
        ("envoy", "small", 1): [sample(1.0, 1000, 0.003), sample(9.0, 1000, 0.013), sample(2.0, 1000, 0.004)],
        ("direct", "small", 1): [sample(0.0, 1000, 0.001), sample(0.0, 1000, 0.011), sample(0.0, 1000, 0.001)],
    }
    found = summary(("envoy", "small", 1), samples, "")
    assert found.cpu_us == 2000
    assert found.rps == 500
    assert found.rps_per_core == 500
    assert found.rounds_cpu_us == (1000, 9000, 2000)
    assert found.added_p50_ms == pytest.approx(2)
    assert found.requests == 3000


@pytest.mark.parametrize(("samples", "why"), [({}, ""), ({("envoy", "small", 1): [sample(1, 1)]}, "5 errors")])
def test_a_cell_with_errors_or_without_rounds_is_void(samples, why: str) -> None:
    found = summary(("envoy", "small", 1), samples, why)
    assert found.void == (why or "not measured")
    assert found.rps_per_core == 0


def test_wrks_last_line_is_read() -> None:
    told = 'Running 1s test\n{"requests": 10, "errors": 1, "us": 1000000, "p50_us": 1500, "p99_us": 9000}\n'
    assert read_wrk(told) == Load(10, 1, 1.0, 0.0015, 0.009)


@pytest.mark.parametrize("told", ["", "unable to connect to 127.0.0.1:1 Connection refused\n"])
def test_where_wrk_got_nowhere_there_is_an_error(told: str) -> None:
    assert read_wrk(told).errors == 1


def test_the_slope_of_memory_leaves_the_first_fifth_out() -> None:
    assert slope([(0, 10), (10_000, 90), (20_000, 100), (60_000, 102), (100_000, 104)]) == pytest.approx(5.0)


def test_goals_are_reached_missed_or_not_measured() -> None:
    extras = {"streams": {"asked": 1000, "right": 999}, "ready_s": {"median": 0.8}}
    marks = [goal.reached for goal in check(Findings(CELLS, decisions_us=[2900.0, 2910.0, 900.0]), extras)]
    assert marks == [False, True, True, None, True, False, None, False, True]


def test_a_goal_says_what_it_is() -> None:
    assert str(Goal("ready", 1.0, 0.5, "s")) == "reached: ready: 0.5 (goal <= 1 s)"
    assert str(Goal("whole", 1000, 999, "streams", least=True)) == "missed: whole: 999 (goal >= 1,000 streams)"
    assert str(Goal("ready", 1.0, None, "s")).startswith("not measured")


def test_without_cells_no_goal_is_taken_for_reached() -> None:
    assert {goal.reached for goal in check(Findings(), {})} == {None}


def test_the_tables_have_ratios_and_say_what_is_void() -> None:
    text = report.about({"CPU": "x"}, check(Findings(CELLS), {}), CELLS, [Memory("envoy", "small", 60.0, 64.4)])
    assert "| fingerpost | 90 | 95 | 1.12 | 0.45 | 11,111 | 500 | 0.00 | 0.00 |" in text
    assert "| litellm | void | - |" in text
    assert "- void: litellm, small chat: 3 errors in 9 requests at 16 connections" in text
    assert "| envoy | small | 60 | 64 |" in text


def test_the_drawing_has_a_bar_for_each_figure() -> None:
    drawn = ET.fromstring(report.drawing(CELLS))
    bars = [node for node in drawn.iter("{http://www.w3.org/2000/svg}rect") if node.get("x")]
    assert len(bars) == 7
    assert all(float(bar.get("width")) > 0 for bar in bars)


def test_a_drawing_of_one_gateway_or_none_is_a_drawing() -> None:
    assert len(list(ET.fromstring(report.drawing([cell("envoy", "small", 80.0)])))) == 5
    assert len(list(ET.fromstring(report.drawing([])))) == 1
