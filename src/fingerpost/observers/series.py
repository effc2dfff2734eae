"""Counters and histograms as plain dictionaries, which Prometheus's client library reads when it is asked.

Its own counters take a lock and check their arguments each time, which for all those of one request takes longer than routing
it. Here only the event loop counts.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from itertools import accumulate

from prometheus_client import CollectorRegistry, Metric
from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily
from prometheus_client.utils import floatToGoString

Labels = tuple[str, ...]


class Counts:
    """A counter: a number for each combination of the values of its labels."""

    def __init__(self, registry: CollectorRegistry, name: str, what: str, *labels: str) -> None:
        self._about = f"fingerpost_{name}", what
        self._labels = labels
        self._cells: dict[Labels, list[float]] = {}
        registry.register(self)

    def add(self, *labels: str, amount: float = 1.0) -> None:
        """Counts `amount` more for these values of the labels."""
        self.cell(*labels)[0] += amount

    def cell(self, *labels: str) -> list[float]:
        """Where these values of the labels are counted: a list with the number in it, for who counts there again and again."""
        cell = self._cells.get(labels)
        if cell is None:
            cell = self._cells[labels] = [0.0]
        return cell

    def collect(self) -> Iterator[Metric]:
        """What Prometheus is told."""
        family = CounterMetricFamily(*self._about, labels=self._labels)
        for labels, (value,) in self._cells.items():
            family.add_metric(labels, value)
        yield family


class Times:
    """How many times were at most as long as each of `bounds` (but longer than the one before), and their sum, in seconds."""

    __slots__ = ("bounds", "counts", "total")

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.total = 0.0

    def add(self, seconds: float) -> None:
        """Counts one time."""
        self.counts[bisect_left(self.bounds, seconds)] += 1
        self.total += seconds


class Histograms:
    """A histogram: for each combination of its labels' values, how many times were at most as long as each of `bounds`."""

    def __init__(self, registry: CollectorRegistry, name: str, what: str, bounds: Sequence[float], *labels: str) -> None:
        self._about = f"fingerpost_{name}", what
        self._bounds = bounds
        self._labels = labels
        self._cells: dict[Labels, Times] = {}
        registry.register(self)

    def cell(self, *labels: str) -> Times:
        """Where these values of the labels are counted."""
        cell = self._cells.get(labels)
        if cell is None:
            cell = self._cells[labels] = Times(self._bounds)
        return cell

    def collect(self) -> Iterator[Metric]:
        """What Prometheus is told."""
        family = HistogramMetricFamily(*self._about, labels=self._labels)
        names = [*map(floatToGoString, self._bounds), "+Inf"]
        for labels, cell in self._cells.items():
            family.add_metric(labels, list(zip(names, accumulate(cell.counts), strict=True)), cell.total)
        yield family
