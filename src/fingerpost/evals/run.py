"""Deciding the rows of a labelled file."""

from __future__ import annotations

import gzip
import json
import time
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from fingerpost.chat import ChatRequest
from fingerpost.errors import ConfigError, FingerpostError, Problem
from fingerpost.evals.metrics import Judged, summarize
from fingerpost.records import Decision
from fingerpost.router import Router
from fingerpost.routes import OTHER, Route, RouteTable


@dataclass(frozen=True, slots=True)
class Row:
    """A labelled conversation; `right` are the names that are right, `route` first."""

    id: str
    request: ChatRequest
    right: tuple[str, ...]
    group: str | None = None


def read_rows(path: str | Path) -> list[Row]:
    """The rows of a JSON-lines file, plain or .gz.

    Raises:
        ConfigError: a line that is no row; says which, and why.
    """
    file = str(path)
    try:
        # Some editors put a byte order mark before the first line.
        opened = gzip.open(path, "rt", encoding="utf-8-sig") if file.endswith(".gz") else open(path, encoding="utf-8-sig")  # noqa: SIM115
        with opened as lines:
            return [_row(line, file, number) for number, line in enumerate(lines, 1) if line.strip()]
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise ConfigError([Problem("", f"{file} cannot be read: {error}")]) from None


def find_strangers(rows: Sequence[Row], table: RouteTable) -> list[str]:
    """Routes that are right in some rows but not among those to choose from, and so can never be chosen."""
    known = {OTHER, *table.by_name}
    brought = [known if row.request.routes is None else {OTHER, *(route.name for route in row.request.routes)} for row in rows]
    return sorted({row.right[0] for row, names in zip(rows, brought, strict=True) if names.isdisjoint(row.right)})


async def judge(rows: Sequence[Row], router: Router, done: Callable[[], None] = lambda: None) -> list[tuple[Row, Decision]]:
    """Every row with its decision, one after the other; calls `done` after each."""
    decided = []
    for row in rows:
        decided.append((row, await router.decide(row.request)))
        done()
    return decided


async def evaluate(
    rows: Sequence[Row],
    router: Router,
    done: Callable[[], None] = lambda: None,
    *,
    precision: float = 0.95,
    clock: Callable[[], float] = time.perf_counter,
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The figures for these rows, and each row's decision as JSON values."""
    await router.prepare()
    start = clock()
    decided = await judge(rows, router, done)
    seconds = clock() - start
    judged = [_judged(row, decision) for row, decision in decided]
    lines = [
        {"id": row.id, "right": list(row.right), "correct": one.correct, **decision.to_json()}
        for (row, decision), one in zip(decided, judged, strict=True)
    ]
    return summarize(judged, seconds, precision), lines


def _judged(row: Row, decision: Decision) -> Judged:
    probabilities = decision.verdict.probabilities if decision.verdict else {OTHER: 1.0}
    return Judged(
        right=row.right,
        chosen=decision.route or OTHER,
        confidence=decision.confidence or 0.0,
        other=probabilities.get(OTHER, 0.0),
        seconds=decision.elapsed,
        group=row.group,
    )


def _row(line: str, file: str, number: int) -> Row:
    def bad(what: str) -> ConfigError:
        fix = 'A row is {"id", "messages", "route"} with optional routes, also, group'
        return ConfigError([Problem("", what, fix, file=file, line=number)])

    try:
        item = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise bad(f"this is not JSON: {error}") from None
    if not isinstance(item, dict) or not isinstance(item.get("route"), str) or not item["route"]:
        raise bad("a row needs a route")
    also = item.get("also") or []
    if not isinstance(also, list) or not all(isinstance(name, str) for name in also):
        raise bad("also is not a list of route names")
    try:
        request = _request(item)
    except FingerpostError as error:
        raise bad(error.message.splitlines()[0]) from None
    group = item.get("group")
    right = tuple(dict.fromkeys([item["route"], *also]))
    return Row(str(item.get("id", number)), request, right, None if group is None else str(group))


def _request(item: Mapping[str, Any]) -> ChatRequest:
    """The request of a row, with its own routes checked; their backends, if any, do not matter here."""
    request = ChatRequest.parse({"messages": item.get("messages"), "fingerpost": {"routes": item.get("routes")}})
    if request.routes is None:
        return request
    routes = tuple(msgspec.structs.replace(route, backends=()) for route in request.routes)
    RouteTable(tuple(Route(route.name, route.description, route.examples) for route in routes))
    return msgspec.structs.replace(request, routes=routes)
