"""Prints the goals table on the development data: `python -m bench.quality --data DIR` (needs the extras train and bench)."""

from __future__ import annotations

import argparse
import asyncio
import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from bench.quality import baselines, timing
from bench.quality.perturb import KINDS, perturbed

from fingerpost.chat import ChatRequest
from fingerpost.classifiers.embedded.encoder import ARTIFACT
from fingerpost.evals.metrics import auroc, calibration_error
from fingerpost.evals.run import Row, evaluate
from fingerpost.router import Router
from fingerpost.routes import OTHER, Route, RouteTable
from fingerpost.train.data import read_lines
from fingerpost.train.measure import boards, classifier_of

GOALS = {
    "seed_routes": 0.97,
    "clinc_domains": 0.90,
    "sgd": 0.94,
    "clinc150_0shot": 0.76,
    "banking77_0shot": 0.68,
    "hwu64_0shot": 0.62,
    "clinc150_5shot": 0.90,
    "banking77_5shot": 0.83,
    "hwu64_5shot": 0.80,
    "clinc150_10shot": 0.925,
    "banking77_10shot": 0.885,
    "hwu64_10shot": 0.85,
}
FLIP_GOALS = {"steering": 0.01, "case_and_unicode": 0.005, "typos": 0.08, "preamble": 0.03, "paste": 0.10}
FLIP_BOARDS = ("seed_routes", "clinc_domains", "sgd", "clinc150_0shot", "clinc150_10shot", "banking77_10shot")

Marks = npt.NDArray[np.float64]
Decisions = list[dict[str, Any]]
Board = tuple[str, RouteTable, list[Row]]


def main() -> None:
    """Measures and prints everything."""
    options = _parse()
    found = [(name, table, _some(rows, options.rows)) for name, table, rows in boards(options.data, options.written)]
    frozen = baselines.frozen_encoder([row.request.conversation.text for _, _, rows in found for row in rows[:50]])
    print("| board | rows | goal | accuracy (95%) | ECE | taken for other | frozen MiniLM | semantic-router | TF-IDF head |")
    print("|---|---|---|---|---|---|---|---|---|")
    decided = {}
    for name, table, rows in found:
        decided[name] = _decide(name, table, rows)
        print(_line(name, table, rows, decided[name], frozen), flush=True)
    print("\n" + "\n".join(_extras(found, decided, _new_turns(options.data))))
    print("\n| changed by | goal | decisions flipped (95%) | worst board |\n|---|---|---|---|")
    for kind in KINDS:
        print(_flip_line(kind, [one for one in found if one[0] in FLIP_BOARDS], decided, options.flips), flush=True)
    print("\n" + "\n".join(timing.report()))


def interval(marks: Marks, rng: np.random.Generator, groups: Sequence[str | None] | None = None) -> tuple[float, float]:
    """The 95% bootstrap interval of a mean; rows of one dialogue are drawn together."""
    if groups and groups[0] is not None:
        kinds, owner = np.unique([str(group) for group in groups], return_inverse=True)
        sums, counts = np.bincount(owner, marks), np.bincount(owner)
        drawn = rng.integers(len(kinds), size=(1000, len(kinds)))
        means = sums[drawn].sum(1) / counts[drawn].sum(1)
    else:
        means = marks[rng.integers(len(marks), size=(1000, len(marks)))].mean(1)
    low, high = np.quantile(means, [0.025, 0.975])
    return float(low), float(high)


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.quality", description=__doc__)
    parser.add_argument("--data", type=Path, required=True, metavar="DIR", help="the development data")
    parser.add_argument(
        "--written", type=Path, default=Path("train/data"), metavar="DIR", help="the written sets (%(default)s)"
    )
    parser.add_argument("--rows", type=int, default=0, metavar="N", help="measure at most N rows of a board (all)")
    parser.add_argument("--flips", type=int, default=150, metavar="N", help="change at most N rows of a board (%(default)s)")
    return parser.parse_args()


def _some(rows: list[Row], limit: int) -> list[Row]:
    return random.Random(1).sample(rows, limit) if 0 < limit < len(rows) else rows


def _decide(name: str, table: RouteTable, rows: Sequence[Row]) -> Decisions:
    return asyncio.run(evaluate(rows, Router(table, classifier_of(name), cache_size=0)))[1]


def _line(name: str, table: RouteTable, rows: Sequence[Row], lines: Decisions, frozen: baselines.Encoder) -> str:
    rng = np.random.default_rng(1)
    marks = np.array([line["correct"] for line in lines], float)
    low, high = interval(marks, rng, [row.group for row in rows])
    ece = calibration_error([line["confidence"] for line in lines], [line["correct"] for line in lines])
    inside = [line["route"] == OTHER for line, row in zip(lines, rows, strict=True) if OTHER not in row.right]
    tables = [_routes_of(table, row) for row in rows]
    taught = all(route.examples for route in tables[0])  # examples are all that these baselines know of a route
    others: list[Callable[[], baselines.Decided] | None] = [
        lambda: baselines.cosine(rows, tables, frozen),
        (lambda: baselines.nearest_examples(rows, tables[0], frozen)) if taught else None,
        (lambda: baselines.tfidf_head(rows, tables[0])) if taught else None,
    ]
    beside = [f"{baselines.hits(other(), rows).mean():.3f}" if other else "-" for other in others]
    goal = f"{GOALS[name]:.3f}" if name in GOALS else "-"
    cells = [
        name,
        str(len(rows)),
        goal,
        f"{marks.mean():.3f} ({low:.3f}-{high:.3f})",
        f"{ece:.3f}",
        f"{np.mean(inside):.3f}",
        *beside,
    ]
    return f"| {' | '.join(cells)} |"


def _routes_of(table: RouteTable, row: Row) -> tuple[Route, ...]:
    brought = row.request.routes
    if brought is None:
        return table.described
    return tuple(Route(route.name, route.description, route.examples) for route in brought if route.name != OTHER)


def _extras(found: Sequence[Board], decided: dict[str, Decisions], new_turns: set[str]) -> list[str]:
    """What the goals ask for beyond accuracy: single routes, new turns, whole dialogues, out-of-scope AUROC."""
    rows_of = {name: rows for name, _, rows in found}
    lines = []
    for name in ("sgd", "sgd_reworded"):
        groups: dict[str, bool] = {}
        for row, line in zip(rows_of[name], decided[name], strict=True):
            groups[str(row.group)] = groups.get(str(row.group), True) and line["correct"]
        new = [line["correct"] for line in decided[name] if line["id"] in new_turns]
        whole = np.mean(list(groups.values()))
        lines.append(f"{name}: new-request turns {np.mean(new):.3f} (goal 0.93), whole dialogues {whole:.3f} (goal 0.72)")
    outside = decided["clinc150_10shot_oos"]
    scores: dict[bool, list[float]] = {True: [], False: []}
    for line in outside:
        scores[OTHER in line["right"]].append(1 - line["probabilities"].get(OTHER, 0.0))
    lines.append(f"clinc150_10shot_oos: AUROC of other {auroc(scores[False], scores[True]) or 0:.3f} (goal 0.965)")
    seed = decided["seed_routes"]
    for route in dict.fromkeys(line["right"][0] for line in seed):
        chosen, right = [line["route"] == route for line in seed], [route in line["right"] for line in seed]
        both = sum(c and r for c, r in zip(chosen, right, strict=True))
        lines.append(f"seed_routes: F1 of {route} {2 * both / max(1, sum(chosen) + sum(right)):.3f} (goal 0.92)")
    return lines


def _new_turns(shared: Path) -> set[str]:
    """Ids of the SGD rows in which the user asks for something new."""
    files = ("eval/sgd_dev.jsonl.gz", "eval/sgd_dev_reworded.jsonl.gz")
    return {row["id"] for file in files for row in read_lines(shared / file) if row["turn"] == "new"}


def _flip_line(kind: str, found: Sequence[Board], decided: dict[str, Decisions], limit: int) -> str:
    rng = random.Random(f"flips {kind}")
    flips: list[bool] = []
    worst = ("", -1.0)
    for name, table, rows in found:
        places = rng.sample(range(len(rows)), min(limit, len(rows)))
        changed = [_changed(rows[place], kind, table, rng) for place in places]
        now = _decide(name, table, changed)
        mine = [line["route"] != decided[name][place]["route"] for line, place in zip(now, places, strict=True)]
        worst = max(worst, (name, float(np.mean(mine))), key=lambda pair: pair[1])
        flips += mine
    low, high = interval(np.array(flips, float), np.random.default_rng(1))
    return f"| {kind} | {FLIP_GOALS[kind]:.3f} | {np.mean(flips):.3f} ({low:.3f}-{high:.3f}) | {worst[0]} {worst[1]:.3f} |"


def _changed(row: Row, kind: str, table: RouteTable, rng: random.Random) -> Row:
    source: Any = row.request.source
    names = [route.name for route in _routes_of(table, row) if route.name not in row.right] or [OTHER]
    body = {**source, "messages": perturbed(source["messages"], kind, names, rng)}
    return replace(row, request=ChatRequest.parse(body))


if __name__ == "__main__":
    if not (ARTIFACT / "artifact.json").exists():
        raise SystemExit(f"there is no artifact in {ARTIFACT}: train one first")
    main()
