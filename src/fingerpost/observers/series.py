"""Counters and histograms as plain dictionaries, which Prometheus's client library reads when it is asked.

Its own counters take a lock and check their arguments each time, which for all those of one request takes longer than routing
it. Here only the event loop counts.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Sequence

from prometheus_client import CollectorRegistry, Metric
from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily
from prometheus_client.utils import floatToGoString

Labels = tuple[str, ...]


class Counts:
    """A counter: a number for each combination of the values of its labels."""

    def __init__(self, registry: CollectorRegistry, name: str, what: str, *labels: str) -> None:
        self._about = f"fingerpost_{name}", what
        self._labels = labels
        self._values: dict[Labels, float] = {}
        registry.register(self)

    def add(self, *labels: str, amount: float = 1.0) -> None:
        """Counts `amount` more for these values of the labels."""
        self._values[labels] = self._values.get(labels, 0.0) + amount

    def collect(self) -> Iterator[Metric]:
        """What Prometheus is told."""
        family = CounterMetricFamily(*self._about, labels=self._labels)
        for labels, value in self._values.items():
            family.add_metric(labels, value)
        yield family


class Histograms:
    """A histogram: for each combination of its labels' values, how many times were at most as long as each of `bounds`."""

    def __init__(self, registry: CollectorRegistry, name: str, what: str, bounds: Sequence[float], *labels: str) -> None:
        self._about = f"fingerpost_{name}", what
        self._bounds = bounds
        self._labels = labels
        self._values: dict[Labels, tuple[list[int], list[float]]] = {}
        registry.register(self)

    def add(self, seconds: float, *labels: str) -> None:
        """Counts one time for these values of the labels."""
        found = self._values.get(labels)
        if found is None:
            found = self._values[labels] = ([0] * (len(self._bounds) + 1), [0.0])
        counts, total = found
        counts[bisect_left(self._bounds, seconds)] += 1
        total[0] += seconds

    def collect(self) -> Iterator[Metric]:
        """What Prometheus is told."""
        family = HistogramMetricFamily(*self._about, labels=self._labels)
        names = [*map(floatToGoString, self._bounds), "+Inf"]
        for labels, (counts, total) in self._values.items():
            below = [sum(counts[: place + 1]) for place in range(len(counts))]
            family.add_metric(labels, list(zip(names, below, strict=True)), total[0])
        yield family
