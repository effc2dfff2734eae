"""Figures as text for a person."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

SHOWN_ROUTES = 20
SHOWN_CONFUSIONS = 10


def render(figures: Mapping[str, Any]) -> str:
    """A readable report of what `evaluate` measured: totals, the weakest routes, the most frequent confusions."""
    other, latency, speed = figures["other"], figures["latency_ms"], figures["rows_per_s"]
    lines = [
        f"{figures['n']} rows",
        f"  accuracy        {figures['accuracy']:.3f}",
        f"  macro F1        {figures['macro_f1']:.3f}",
        f"  calibration     {figures['ece']:.3f} (expected calibration error; 0 is perfect)",
    ]
    if figures["group_accuracy"] is not None:
        lines.append(f"  whole groups    {figures['group_accuracy']:.3f} of {figures['groups']}")
    if other["support"]:
        lines.append(
            f"  other           precision {_number(other['precision'])}, recall {_number(other['recall'])}, "
            f"AUROC {_number(other['auroc'])} ({other['support']} rows)"
        )
    lines += [
        f"  time            p50 {latency['p50']:.2f} ms, p99 {latency['p99']:.2f} ms"
        + ("" if speed is None else f", {speed:.0f} rows/s"),
        "",
        *_route_lines(figures["per_route"], figures["thresholds"]),
        "",
        *_confusion_lines(figures["confusion"]),
    ]
    return "\n".join(lines).rstrip()


def _route_lines(per_route: Mapping[str, Mapping[str, float]], thresholds: Mapping[str, float | None]) -> list[str]:
    ranked = sorted(per_route.items(), key=lambda item: item[1]["f1"])
    width = max(len(name) for name in per_route)
    title = "routes, the weakest first" + (f" ({SHOWN_ROUTES} of {len(ranked)})" if len(ranked) > SHOWN_ROUTES else "")
    return [title, f"  {'':{width}}  precision  recall     F1  rows  threshold"] + [
        f"  {name:{width}}  {f['precision']:9.3f}  {f['recall']:6.3f}  {f['f1']:5.3f}  {f['support']:4d}"
        f"  {_number(thresholds.get(name)):>9}"
        for name, f in ranked[:SHOWN_ROUTES]
    ]


def _confusion_lines(confusion: Mapping[str, Mapping[str, int]]) -> list[str]:
    wrong = [(count, right, chosen) for right, row in confusion.items() for chosen, count in row.items() if chosen != right]
    if not wrong:
        return []
    worst = sorted(wrong, key=lambda one: (-one[0], *one[1:]))[:SHOWN_CONFUSIONS]
    return ["most frequent confusions"] + [f"  {count:4d}  {right} taken for {chosen}" for count, right, chosen in worst]


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
