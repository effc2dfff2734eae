"""What labelled decisions are worth. Pure: rows in, numbers out."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fingerpost.routes import OTHER

ECE_BINS = 15


@dataclass(frozen=True, slots=True)
class Judged:
    """A decided row: `right` are all routes that would have been right, the first of them the row's own.

    `confidence` and `other` (the probability of `other`) are from 0 to 1; `seconds` is the time it took to decide.
    """

    right: tuple[str, ...]
    chosen: str
    confidence: float
    other: float
    seconds: float = 0.0
    group: str | None = None

    @property
    def correct(self) -> bool:
        """Whether the chosen route is among the right ones."""
        return self.chosen in self.right

    @property
    def route(self) -> str:
        """The route to count this row under: the chosen one where that is right, else the row's own."""
        return self.chosen if self.correct else self.right[0]


def summarize(rows: Sequence[Judged], seconds: float, precision: float = 0.95) -> dict[str, Any]:
    """All figures for these rows, which took `seconds` to decide one after the other.

    `precision` is what the suggested thresholds aim at.

    Raises:
        ValueError: there are no rows.
    """
    if not rows:
        raise ValueError("no rows to measure")
    per_route = by_route(rows)
    times = np.array([row.seconds for row in rows]) * 1e3
    confusion: dict[str, Counter[str]] = defaultdict(Counter)
    for row in rows:
        confusion[row.route][row.chosen] += 1
    groups = _groups(rows)
    return {
        "n": len(rows),
        "accuracy": float(np.mean([row.correct for row in rows])),
        "macro_f1": float(np.mean([figures["f1"] for figures in per_route.values()])),
        "ece": calibration_error([row.confidence for row in rows], [row.correct for row in rows]),
        "group_accuracy": float(np.mean(groups)) if groups else None,
        "groups": len(groups),
        "other": _other(rows, per_route),
        "latency_ms": {"p50": float(np.percentile(times, 50)), "p99": float(np.percentile(times, 99))},
        "rows_per_s": len(rows) / seconds if seconds > 0 else None,
        "per_route": per_route,
        "thresholds": suggest_thresholds(rows, precision),
        "confusion": {route: dict(chosen.most_common()) for route, chosen in sorted(confusion.items())},
    }


def by_route(rows: Sequence[Judged]) -> dict[str, dict[str, float]]:
    """Precision, recall, F1 and support of every route that was right or chosen at least once."""
    chosen = Counter(row.chosen for row in rows)
    support = Counter(row.route for row in rows)
    hits = Counter(row.chosen for row in rows if row.correct)
    figures = {}
    for route in sorted(chosen.keys() | support.keys()):
        precision = hits[route] / chosen[route] if chosen[route] else 0.0
        recall = hits[route] / support[route] if support[route] else 0.0
        f1 = 2 * precision * recall / (precision + recall) if precision + recall else 0.0
        figures[route] = {"precision": precision, "recall": recall, "f1": f1, "support": support[route]}
    return figures


def suggest_thresholds(rows: Sequence[Judged], precision: float) -> dict[str, float | None]:
    """For each chosen route, the least confidence from which at least `precision` of its decisions are right.

    None where no confidence gives that; `other` needs no threshold and is left out.
    """
    thresholds: dict[str, float | None] = {}
    for route in sorted({row.chosen for row in rows} - {OTHER}):
        chosen = sorted((row for row in rows if row.chosen == route), key=lambda row: -row.confidence)
        thresholds[route], right = None, 0
        for count, row in enumerate(chosen, 1):
            right += row.correct
            # Rows of equal confidence stand or fall together.
            last_of_its_kind = count == len(chosen) or chosen[count].confidence < row.confidence
            if last_of_its_kind and right / count >= precision:
                thresholds[route] = 0.0 if count == len(chosen) else row.confidence
    return thresholds


def calibration_error(confidences: Sequence[float], correct: Sequence[bool]) -> float:
    """The expected calibration error: |accuracy - confidence| over 15 equally wide bins, weighted by their sizes.

    Guo et al. 2017, "On Calibration of Modern Neural Networks", equation 3.
    """
    confidence, right = np.asarray(confidences, float), np.asarray(correct, float)
    bins = np.minimum((confidence * ECE_BINS).astype(int), ECE_BINS - 1)
    gaps = [abs(right[bins == b].mean() - confidence[bins == b].mean()) * (bins == b).mean() for b in np.unique(bins)]
    return float(sum(gaps))


def coverage(confidences: Sequence[float], correct: Sequence[bool]) -> list[tuple[float, float, float]]:
    """For each confidence that occurs, the highest first: it, the share of rows that reach it, the accuracy on those.

    The risk-coverage curve of El-Yaniv and Wiener 2010, told as accuracy.
    """
    order = np.argsort(-np.asarray(confidences, float), kind="stable")
    confidence, right = np.asarray(confidences, float)[order], np.asarray(correct, float)[order]
    # Rows of equal confidence stand or fall together.
    last = np.flatnonzero(np.append(np.diff(confidence) != 0, True)) if len(order) else order
    accuracy = np.cumsum(right) / np.arange(1, len(order) + 1)
    return [(float(confidence[i]), float((i + 1) / len(order)), float(accuracy[i])) for i in last]


def auroc(positive: Sequence[float], negative: Sequence[float]) -> float | None:
    """The probability that a positive scores above a negative, ties counting half; None without both kinds."""
    if not len(positive) or not len(negative):
        return None
    values = np.concatenate([np.asarray(positive, float), np.asarray(negative, float)])
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[inverse]
    n, m = len(positive), len(negative)
    return float((ranks[:n].sum() - n * (n + 1) / 2) / (n * m))


def _groups(rows: Sequence[Judged]) -> list[bool]:
    groups: dict[str, bool] = {}
    for row in rows:
        if row.group is not None:
            groups[row.group] = groups.get(row.group, True) and row.correct
    return list(groups.values())


def _other(rows: Sequence[Judged], per_route: dict[str, dict[str, float]]) -> dict[str, float | None]:
    """How well `other` is told apart: the score is 1 - p(other), the positives are the rows that are not `other`."""
    figures = per_route.get(OTHER)
    in_scope = [1 - row.other for row in rows if OTHER not in row.right]
    outside = [1 - row.other for row in rows if OTHER in row.right]
    return {
        "precision": figures["precision"] if figures else None,
        "recall": figures["recall"] if figures else None,
        "auroc": auroc(in_scope, outside),
        "support": len(outside),
    }
