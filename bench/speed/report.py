"""Figures as people read them: Markdown tables and a drawing."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any
from xml.sax.saxutils import escape

from bench.speed.cases import CASES, CHUNKS
from bench.speed.goals import Goal
from bench.speed.measure import CONNECTIONS, DIRECT, Cell, Memory

_COLUMNS = ("x Envoy", "x switchyard", "requests/s per core", "requests/s", "added p50 ms", "added p99 ms")


def tables(cells: Sequence[Cell], memory: Sequence[Memory]) -> str:
    """A table for each case: CPU time per request at each number of connections, the rest at 16; then memory."""
    parts = []
    for name in dict.fromkeys(cell.case for cell in cells):
        mine = [cell for cell in cells if cell.case == name]
        counts = list(dict.fromkeys(cell.connections for cell in mine))
        rows = [_row(subject, mine, counts) for subject in dict.fromkeys(cell.subject for cell in mine)]
        head = ["gateway", *(f"CPU us at {count}" for count in counts), *_COLUMNS]
        note = f" CPU is that of the whole stream; a chunk is 1/{CHUNKS} of it." if CASES[name].stream else ""
        parts.append(f"### {CASES[name].title}\n\n{markdown(head, rows)}{note and chr(10) * 2 + note.strip()}")
    sizes = [(one.subject, one.upstream, f"{one.before_mb:.0f}", f"{one.after_mb:.0f}") for one in memory]
    if sizes:
        parts.append(f"### Memory\n\n{markdown(('gateway', 'upstream', 'RSS MB before', 'after'), sizes)}")
    return "\n\n".join(parts) + "\n"


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _row(subject: str, cells: Sequence[Cell], counts: Sequence[int]) -> list[str]:
    at = {cell.connections: cell for cell in cells if cell.subject == subject}
    cpu = [_cpu(at.get(count)) for count in counts]
    cell = at.get(CONNECTIONS)
    if cell is None or cell.void or subject == DIRECT:
        direct = cell is not None and not cell.void
        return [subject, *cpu, "-", "-", "-", f"{cell.rps:,.0f}" if cell and direct else "-", "-", "-"]
    others = {one.subject: one.cpu_us for one in cells if one.connections == CONNECTIONS and not one.void}
    ratios = [f"{cell.cpu_us / others[peer]:.2f}" if others.get(peer) else "-" for peer in ("envoy", "switchyard")]
    rates = [f"{cell.rps_per_core:,.0f}", f"{cell.rps:,.0f}"]
    return [subject, *cpu, *ratios, *rates, f"{cell.added_p50_ms:.2f}", f"{cell.added_p99_ms:.2f}"]


def _cpu(cell: Cell | None) -> str:
    if cell is None:
        return "-"
    return "void" if cell.void else f"{cell.cpu_us:,.0f}" if cell.cpu_us else "-"


def voids(cells: Sequence[Cell]) -> list[str]:
    """Why cells are void, each reason once."""
    return list(dict.fromkeys(f"{cell.subject}, {CASES[cell.case].title}: {cell.void}" for cell in cells if cell.void))


def about(machine: Mapping[str, Any], goals: Sequence[Goal], cells: Sequence[Cell], memory: Sequence[Memory]) -> str:
    """The whole report in Markdown."""
    facts = "\n".join(f"- {name}: {value}" for name, value in machine.items())
    empty = "".join(f"- void: {line}\n" for line in voids(cells))
    reached = "\n".join(f"- {goal}" for goal in goals)
    return f"## Machine\n\n{facts}\n\n## Goals\n\n{reached}\n\n## Figures\n\n{tables(cells, memory)}\n{empty}"


_BAR, _LEFT, _WIDTH, _HEAD = 18, 150, 380, 30


def drawing(cells: Sequence[Cell]) -> str:
    """An SVG: for each case a bar of CPU time per request for each gateway, on a logarithmic scale."""
    kept = [cell for cell in cells if cell.connections == CONNECTIONS and cell.cpu_us]
    top, parts = 0, []
    for name in dict.fromkeys(cell.case for cell in kept):
        mine = sorted((cell for cell in kept if cell.case == name), key=lambda cell: cell.cpu_us)
        low, high = mine[0].cpu_us / 2, mine[-1].cpu_us
        title = f"{CASES[name].title}: CPU time per request, us (logarithmic)"
        parts.append(f'<text x="0" y="{top + 18}" font-weight="bold">{escape(title)}</text>')
        for place, cell in enumerate(mine):
            y = top + _HEAD + place * _BAR
            width = _WIDTH * math.log(cell.cpu_us / low) / math.log(high / low)
            colour = "#c2410c" if cell.subject.startswith("fingerpost") else "#64748b"
            parts.append(f'<text x="{_LEFT - 6}" y="{y + 12}" text-anchor="end">{escape(cell.subject)}</text>')
            parts.append(f'<rect x="{_LEFT}" y="{y + 2}" width="{width:.0f}" height="{_BAR - 5}" fill="{colour}"/>')
            parts.append(f'<text x="{_LEFT + width + 5:.0f}" y="{y + 12}">{cell.cpu_us:,.0f}</text>')
        top += _HEAD + len(mine) * _BAR + 12
    frame = f'<svg xmlns="http://www.w3.org/2000/svg" width="620" height="{top}" font-family="sans-serif" font-size="12">'
    ground = '<rect width="100%" height="100%" fill="#ffffff"/>'
    return "\n".join([frame, ground, *parts, "</svg>"]) + "\n"
