"""Figures as pictures; needs matplotlib, which the extra `notebooks` brings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from fingerpost.evals.metrics import coverage

WRITTEN_ROUTES = 15
"""Up to so many routes the cells of a confusion matrix have room for their counts."""


def plot_confusion(figures: Mapping[str, Any]) -> Figure:
    """The confusion matrix of what `evaluate` measured: a row for each right route, a column for each chosen one."""
    names = sorted(figures["per_route"])
    counts = np.array([[figures["confusion"].get(right, {}).get(chosen, 0) for chosen in names] for right in names])
    side = max(4.0, 0.55 * len(names) + 2)
    figure = Figure(figsize=(side, side), layout="constrained")
    axes = figure.add_subplot(xlabel="chosen", ylabel="right", title=f"accuracy {figures['accuracy']:.3f}, {figures['n']} rows")
    axes.imshow(counts / np.maximum(counts.sum(1, keepdims=True), 1), cmap="Blues", vmin=0, vmax=1)
    axes.set_xticks(range(len(names)), names, rotation=45, ha="right")
    axes.set_yticks(range(len(names)), names)
    if len(names) <= WRITTEN_ROUTES:
        for (row, column), count in np.ndenumerate(counts):
            if count:
                share = count / counts[row].sum()
                axes.text(column, row, str(count), ha="center", va="center", color="white" if share > 0.5 else "black")
    return figure


def plot_coverage(lines: Sequence[Mapping[str, Any]]) -> Figure:
    """How many of the decisions are right when only the surest are taken; `lines` are the decisions that `evaluate` gives."""
    confidences = [line["confidence"] or 0.0 for line in lines]
    points = coverage(confidences, [line["correct"] for line in lines])
    taken, right = zip(*[(share, accuracy) for _, share, accuracy in points], strict=True)
    figure = Figure(figsize=(5.5, 4), layout="constrained")
    axes = figure.add_subplot(xlabel="share of rows decided", ylabel="accuracy on them", xlim=(0, 1.02), ylim=(0, 1.05))
    axes.plot(taken, right, drawstyle="steps-pre", label="accuracy")
    axes.plot(taken, [least for least, _, _ in points], linestyle=":", label="least confidence")
    axes.legend(loc="lower left")
    return figure


def write_plots(figures: Mapping[str, Any], lines: Sequence[Mapping[str, Any]], folder: str | Path) -> list[Path]:
    """Writes `confusion.png` and `coverage.png` into a folder, which is made, and returns where they are."""
    target = Path(folder)
    target.mkdir(parents=True, exist_ok=True)
    written = []
    for name, figure in (("confusion", plot_confusion(figures)), ("coverage", plot_coverage(lines))):
        figure.savefig(target / f"{name}.png", dpi=120)
        written.append(target / f"{name}.png")
    return written
