"""Counters and histograms, read back with Prometheus's own parser and compared with its client library's."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Histogram, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from fingerpost.observers.series import Counts, Histograms


def samples_of(registry: CollectorRegistry) -> dict[tuple[str, tuple[str, ...]], float]:
    families = text_string_to_metric_families(generate_latest(registry).decode())
    found = [sample for family in families for sample in family.samples if not sample.name.endswith("_created")]
    return {(sample.name, tuple(sample.labels.values())): sample.value for sample in found}


def test_a_counter_counts_by_its_labels() -> None:
    registry = CollectorRegistry()
    counts = Counts(registry, "tokens", "Tokens.", "backend", "direction")
    counts.add("small", "input", amount=7)
    counts.add("small", "input")
    counts.add('qu"oted\\', "output", amount=0.5)
    assert samples_of(registry) == {
        ("fingerpost_tokens_total", ("small", "input")): 8.0,
        ("fingerpost_tokens_total", ('qu"oted\\', "output")): 0.5,
    }


def test_a_histogram_is_that_of_the_client_library() -> None:
    ours, theirs, bounds = CollectorRegistry(), CollectorRegistry(), (0.001, 0.25, 1.0, 10.0)
    histograms = Histograms(ours, "seconds", "Time.", bounds, "backend")
    histogram = Histogram("fingerpost_seconds", "Time.", ["backend"], buckets=bounds, registry=theirs)
    for backend, seconds in [("a", 0.0), ("a", 0.001), ("a", 0.0011), ("a", 3.0), ("b", 1.0), ("b", 99.0)]:
        histograms.cell(backend).add(seconds)
        histogram.labels(backend).observe(seconds)
    assert samples_of(ours) == samples_of(theirs)
    assert len(samples_of(ours)) == 14


def test_what_was_not_seen_has_no_series() -> None:
    registry = CollectorRegistry()
    Counts(registry, "tokens", "Tokens.", "backend")
    Histograms(registry, "seconds", "Time.", (1.0,), "backend")
    assert samples_of(registry) == {}
