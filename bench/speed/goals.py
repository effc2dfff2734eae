"""What fingerpost is to reach, checked against one run's figures."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from bench.speed.cases import CHUNKS
from bench.speed.measure import CONNECTIONS, Findings


@dataclass(frozen=True, slots=True)
class Goal:
    """A figure, and the most that it may be (the least, if `least`); None: it was not measured."""

    what: str
    limit: float | None
    measured: float | None
    unit: str
    least: bool = False

    @property
    def reached(self) -> bool | None:
        """Whether it is reached, or None where something is missing."""
        if self.measured is None or self.limit is None:
            return None
        return self.measured >= self.limit if self.least else self.measured <= self.limit

    def __str__(self) -> str:
        word = {True: "reached", False: "missed", None: "not measured"}[self.reached]
        sign = ">=" if self.least else "<="
        figures = [f"{value:,.4g}" if value is not None else "?" for value in (self.measured, self.limit)]
        return f"{word}: {self.what}: {figures[0]} (goal {sign} {figures[1]} {self.unit})"


def check(findings: Findings, extras: Mapping[str, Any]) -> list[Goal]:
    """All goals; `extras` holds `ready_s`, `soak` and `streams` as far as they were measured."""
    told = (cell for cell in findings.cells if cell.connections == CONNECTIONS and not cell.void)
    cost = {(cell.subject, cell.case): cell.cpu_us for cell in told}
    decision = statistics.median(findings.decisions_us) if findings.decisions_us else None

    def of(subject: str, case: str, factor: float = 1.0) -> float | None:
        found = cost.get((subject, case))
        return None if found is None else found * factor

    def more(*parts: float | None) -> float | None:
        return None if None in parts else sum(part for part in parts if part is not None)

    soak, streams, ready = extras.get("soak") or {}, extras.get("streams") or {}, extras.get("ready_s") or {}
    pinned, each = of("fingerpost", "small"), 1 / CHUNKS
    return [
        Goal("small chat to a named backend, beside Envoy", of("envoy", "small"), pinned, "us CPU"),
        Goal("small chat to a named backend, beside half of switchyard", of("switchyard", "small", 0.5), pinned, "us CPU"),
        Goal("each chunk of a stream, beside Envoy", of("envoy", "stream", each), of("fingerpost", "stream", each), "us CPU"),
        Goal("image of 10 MB, beside twice Envoy", of("envoy", "10mb", 2.0), of("fingerpost", "10mb"), "us CPU"),
        Goal(
            "a new conversation for auto, beside a named backend and the classifier alone and 60 us",
            more(pinned, decision, 60.0),
            of("fingerpost-auto", "small"),
            "us CPU",
        ),
        Goal("a known conversation for auto", more(pinned, 40.0), of("fingerpost-cached", "small"), "us CPU"),
        Goal("growth of memory", 1.0, soak.get("mb_per_100k"), "MB per 100,000 requests"),
        Goal("streams at once that came whole", streams.get("asked"), streams.get("right"), "streams", least=True),
        Goal("ready after the start, median of five", 1.0, ready.get("median"), "s"),
    ]
