"""The figures of an artifact on the development data: accuracy, calibration and what else each row of the goals asks for."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fingerpost.assemble import DEFAULT_FILE, build_table
from fingerpost.chat import ChatRequest
from fingerpost.classifiers import Classifier
from fingerpost.classifiers.chain import Chain, Link
from fingerpost.classifiers.embedded import Embedded
from fingerpost.classifiers.embedded.encoder import ARTIFACT
from fingerpost.classifiers.rules import Rule, Rules
from fingerpost.config import load
from fingerpost.evals.run import Row, evaluate, read_rows
from fingerpost.router import Router
from fingerpost.routes import OTHER, Route, RouteTable
from fingerpost.train.data import read_lines

FEW_SHOT = ("clinc150", "banking77", "hwu64")


def measure(artifact: Path, shared: Path, written: Path) -> dict[str, dict[str, float]]:
    """Figures by board, from the conversations as `fingerpost eval` would decide them."""
    return {name: _figures(classifier_of(name, artifact), table, rows) for name, table, rows in boards(shared, written)}


def boards(shared: Path, written: Path) -> list[tuple[str, RouteTable, list[Row]]]:
    """Name, routes and rows of everything that is measured; rows that bring their own routes have an empty table."""
    own = RouteTable(())
    found = [
        ("seed_routes", default_table(), read_rows(shared / "eval/seed_routes_dev.jsonl")),
        (
            "clinc_domains",
            read_table(shared / "routes/clinc_domains.json"),
            read_rows(shared / "eval/clinc_domains_valid.jsonl"),
        ),
        ("sgd", own, read_rows(shared / "eval/sgd_dev.jsonl.gz")),
        ("sgd_reworded", own, read_rows(shared / "eval/sgd_dev_reworded.jsonl.gz")),
    ]
    for name in FEW_SHOT:
        rows = read_rows(shared / f"eval/{name}_valid.jsonl")
        found += [(f"{name}_{k}shot", read_table(shared / f"routes/{name}_{k}shot.json"), rows) for k in (0, 5, 10)]
    outside = [*read_rows(shared / "eval/clinc150_valid.jsonl"), *read_rows(shared / "eval/clinc150_oos_valid.jsonl")]
    found.append(("clinc150_10shot_oos", read_table(shared / "routes/clinc150_10shot.json"), outside))
    found += [(f"written_{split}", own, written_rows(written, split)) for split in ("unseen", "languages")]
    return found


def classifier_of(board: str, artifact: Path = ARTIFACT) -> Classifier:
    """What decides a board: the artifact, and before it, for the default configuration, that configuration's rules."""
    embedded = Embedded(artifact)
    if board != "seed_routes":
        return embedded
    stated = load(DEFAULT_FILE, {}, deciding_only=True).config.rules
    rules = [Rule(rule.route, rule.image, tuple(rule.keywords), rule.longer_than, rule.tools) for rule in stated]
    return Chain([Link(Rules(rules)), Link(embedded)])


def default_table() -> RouteTable:
    """The routes of the default configuration."""
    return build_table(load(DEFAULT_FILE, {}, deciding_only=True).config)


def read_table(path: Path) -> RouteTable:
    """The routes of a JSON file."""
    routes = json.loads(path.read_text(encoding="utf-8"))
    return RouteTable(tuple(Route(r["name"], r.get("description", ""), tuple(r.get("examples", ()))) for r in routes))


def written_rows(folder: Path, split: str) -> list[Row]:
    """The written conversations of a split, each bringing the first wording of its set's routes along."""
    tables = {
        row["set"]: [route["wordings"][0] for route in row["routes"]]
        for row in read_lines(folder / "route_sets.jsonl")
        if row["split"] == split
    }
    rows = []
    for row in read_lines(folder / "conversations.jsonl"):
        if row["set"] in tables:
            body = {"messages": row["messages"], "fingerpost": {"routes": tables[row["set"]]}}
            rows.append(Row(row["id"], ChatRequest.parse(body), (row["route"], *row["also"])))
    return rows


def score(figures: dict[str, dict[str, float]]) -> float:
    """One number by which artifacts are compared: the mean accuracy over all boards."""
    return sum(board["accuracy"] for board in figures.values()) / len(figures)


def _figures(classifier: Classifier, table: RouteTable, rows: Sequence[Row]) -> dict[str, float]:
    found, lines = asyncio.run(evaluate(rows, Router(table, classifier, cache_size=0)))
    kept: dict[str, Any] = {key: found[key] for key in ("n", "accuracy", "ece", "group_accuracy") if found[key] is not None}
    inside = [line for line, row in zip(lines, rows, strict=True) if OTHER not in row.right]
    kept["taken_for_other"] = sum(line["route"] == OTHER for line in inside) / len(inside)
    if found["other"]["auroc"] is not None:
        kept["other_auroc"] = found["other"]["auroc"]
    return kept
