"""How long a decision takes, how large the artifact is and how long it takes to load; one thread."""

from __future__ import annotations

import random
import resource
import sys
import time

import numpy as np

from fingerpost.chat import ChatRequest, Conversation
from fingerpost.classifiers.embedded import Embedded
from fingerpost.classifiers.embedded.encoder import ARTIFACT
from fingerpost.routes import Route, RouteTable

GOALS = {10: 2.0, 100: 8.0, 1000: 20.0}
WORDS = [
    "please",
    "could",
    "you",
    "find",
    "the",
    "cheapest",
    "train",
    "from",
    "the",
    "old",
    "harbour",
    "to",
    "my",
    "sister's",
    "house",
    "on",
    "friday",
    "evening",
    "because",
    "our",
    "car",
    "broke",
    "down",
    "and",
    "the",
    "invoice",
    "for",
    "last",
    "month",
    "shows",
    "a",
    "charge",
    "that",
    "nobody",
    "here",
    "understands",
    "while",
    "the",
    "printer",
    "keeps",
    "blinking",
]
SUBJECTS = ("billing", "delivery", "returns", "passwords", "weather", "travel", "recipes", "music", "meetings", "taxes")


def report() -> list[str]:
    """Lines with the figures."""
    start = time.perf_counter()
    embedded = Embedded()
    table = RouteTable(
        tuple(Route(f"{s}_{i}", f"Questions and requests about {s}, kind {i}.") for s in SUBJECTS for i in (1, 2))
    )
    embedded.read(_conversation(10, random.Random(0)), table)
    lines = [f"load and first decision with 20 routes: {time.perf_counter() - start:.2f} s (goal 0.7 to load)"]
    for words, goal in GOALS.items():
        times = _times(embedded, table, words)
        p50, p99 = np.percentile(times, [50, 99])
        lines.append(f"{words} words, 20 routes: p50 {p50:.2f} ms, p99 {p99:.2f} ms (goal {goal:g}, {2 * goal + 2:g})")
    size = sum(file.stat().st_size for file in ARTIFACT.iterdir()) / 1e6
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1e6 if sys.platform == "darwin" else 1e3)
    return [*lines, f"artifact {size:.1f} MB; this process at its peak, benchmark included, {peak:.0f} MB"]


def _times(embedded: Embedded, table: RouteTable, words: int, count: int = 200) -> list[float]:
    rng = random.Random(words)
    times = []
    for _ in range(count):
        conversation = _conversation(words, rng)
        start = time.perf_counter()
        embedded.read(conversation, table)
        times.append((time.perf_counter() - start) * 1e3)
    return times[10:]


def _conversation(words: int, rng: random.Random) -> Conversation:
    return ChatRequest.from_messages(" ".join(rng.choices(WORDS, k=words))).conversation
