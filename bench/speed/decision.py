"""The classifier alone: `python -m bench.speed.decision` prints its CPU time in microseconds a decision."""

from __future__ import annotations

import json
import statistics
import time

import yaml
from bench.speed.cases import CASES
from bench.speed.peers import fingerpost_config

from fingerpost.assemble import build_table
from fingerpost.chat import ChatRequest
from fingerpost.classifiers.embedded import Embedded
from fingerpost.config.shape import Config


def decision_us(count: int = 300) -> float:
    """The median CPU time to read a new small conversation, with the default routes."""
    table = build_table(Config.model_validate(yaml.safe_load(fingerpost_config(1, 1))))
    embedded, body = Embedded(), CASES["small"].body("auto")
    times = []
    for number in range(count + 20):
        conversation = ChatRequest.parse(body.before + body.number(number) + body.after).conversation
        start = time.process_time_ns()
        embedded.read(conversation, table)
        times.append((time.process_time_ns() - start) / 1e3)
    return statistics.median(times[20:])


if __name__ == "__main__":
    print(json.dumps(decision_us()))
