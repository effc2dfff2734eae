from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import pytest
from matplotlib.figure import Figure

from fingerpost.evals.metrics import Judged, summarize
from fingerpost.evals.plots import WRITTEN_ROUTES, plot_confusion, plot_coverage, write_plots

ROWS = [
    Judged(("chat",), "chat", 0.9, 0.1),
    Judged(("chat",), "chat", 0.7, 0.1),
    Judged(("chat",), "hard", 0.6, 0.2),
    Judged(("other",), "other", 0.8, 0.8),
]
FIGURES = summarize(ROWS, 1.0)
LINES: list[dict[str, Any]] = [{"confidence": row.confidence, "correct": row.correct} for row in ROWS]


def labels(figure: Figure) -> list[str]:
    figure.canvas.draw()
    return [label.get_text() for label in figure.axes[0].get_yticklabels()]


def test_the_confusion_matrix_has_a_row_and_a_column_for_each_route_and_its_counts() -> None:
    figure = plot_confusion(FIGURES)
    assert labels(figure) == ["chat", "hard", "other"]
    cells = {text.get_position()[::-1]: text.get_text() for text in figure.axes[0].texts}
    assert cells == {(0, 0): "2", (0, 1): "1", (2, 2): "1"}
    shares = figure.axes[0].images[0].get_array()
    assert shares.tolist() == [[2 / 3, 1 / 3, 0], [0, 0, 0], [0, 0, 1]]


def test_a_large_confusion_matrix_is_drawn_without_counts() -> None:
    rows = [Judged((f"route{i}",), f"route{i}", 0.9, 0.1) for i in range(WRITTEN_ROUTES + 1)]
    figure = plot_confusion(summarize(rows, 1.0))
    assert len(labels(figure)) == WRITTEN_ROUTES + 1
    assert not figure.axes[0].texts


def test_the_curve_tells_accuracy_and_least_confidence_of_the_surest() -> None:
    accuracy, confidence = plot_coverage(LINES).axes[0].lines
    assert list(accuracy.get_xdata()) == list(confidence.get_xdata()) == [0.25, 0.5, 0.75, 1.0]
    assert list(accuracy.get_ydata()) == [1.0, 1.0, 1.0, 0.75]
    assert list(confidence.get_ydata()) == [0.9, 0.8, 0.7, 0.6]


def test_a_decision_without_confidence_counts_as_the_least_sure() -> None:
    lines = [{"confidence": None, "correct": False}, {"confidence": 0.4, "correct": True}]
    accuracy, confidence = plot_coverage(lines).axes[0].lines
    assert list(accuracy.get_ydata()) == [1.0, 0.5]
    assert list(confidence.get_ydata()) == [0.4, 0.0]


@pytest.mark.parametrize("folder", ["plots", "a/new/one"])
def test_both_pictures_are_written_into_a_folder(tmp_path: Path, folder: str) -> None:
    written = write_plots(FIGURES, LINES, tmp_path / folder)
    assert [path.name for path in written] == ["confusion.png", "coverage.png"]
    for path in written:
        content = path.read_bytes()
        assert content.startswith(b"\x89PNG")
        assert min(struct.unpack(">II", content[16:24])) > 300
