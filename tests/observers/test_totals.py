"""Metrics of several processes added up."""

from __future__ import annotations

import re

from prometheus_client.parser import text_string_to_metric_families

from fingerpost.observers.metrics import Metrics
from fingerpost.observers.totals import lasting, total
from fingerpost.records import Attempt, Exchange


def report(*statuses: int, in_flight: int = 0, reload_ok: bool = True, route: str = "chat") -> str:
    metrics = Metrics([route])
    for status in statuses:
        attempts = (Attempt("b\u2028\u00e9 0", status, "", 0.1),)
        metrics.observe(Exchange("id", "completed", status, False, 0.2, attempts=attempts, first_byte=status / 1000))
    if not reload_ok:
        metrics.reloaded(ok=False)
    return metrics.render(in_flight).decode()


def values(text: str) -> dict[str, float]:
    return {line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in text.split("\n") if line and line[0] != "#"}


def test_counters_and_histograms_add_up_to_what_one_process_would_say() -> None:
    apart = total([report(200, 200, 502), report(200), report(404, 200)])
    assert values(apart) == values(report(200, 200, 502, 200, 404, 200))


def test_the_sum_is_valid_and_each_metric_is_there_once() -> None:
    summed = total([report(200), report(502)])
    families = list(text_string_to_metric_families(summed))
    assert len({family.name for family in families}) == len(families)
    helped = re.findall(r"^# HELP (\S+)", summed, re.MULTILINE)
    assert len(set(helped)) == len(helped) > 10
    assert summed.endswith("\n")


def test_gauges_are_sums_but_for_states_which_are_as_bad_as_the_worst() -> None:
    circuit = (
        '# HELP fingerpost_circuit_state x\n# TYPE fingerpost_circuit_state gauge\nfingerpost_circuit_state{{url="u"}} {}\n'
    )
    summed = values(total([
        report(in_flight=2) + circuit.format("0.0"), report(in_flight=3, reload_ok=False) + circuit.format("2.0"),
    ]))  # fmt: skip
    assert summed["fingerpost_in_flight"] == 5
    assert summed["fingerpost_config_last_reload_ok"] == 0
    assert summed["fingerpost_certificate_last_reload_ok"] == 1
    assert summed['fingerpost_circuit_state{url="u"}'] == 2


def test_what_lasts_is_what_was_counted() -> None:
    left = values(lasting(report(200, in_flight=1)))
    assert "fingerpost_in_flight" not in left
    assert "fingerpost_config_last_reload_ok" not in left
    counted = {series: value for series, value in left.items() if series.startswith("fingerpost_requests_total")}
    assert list(counted.values()) == [1.0]
    again = values(total([lasting(report(200)), report(200)]))
    assert [again[series] for series in counted] == [2.0]


def test_nothing_adds_up_to_nothing() -> None:
    assert total([]) == total([""]) == lasting("") == ""
