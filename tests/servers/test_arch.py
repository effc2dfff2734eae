"""The `arch` classifier against a real vLLM; the toy model decides whether an answer is sensible, never whether it is sound."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import statistics
from pathlib import Path

import pytest

from fingerpost.chat import ChatRequest
from fingerpost.classifiers import ask
from fingerpost.classifiers.arch import CONSTRAINTS, MODEL
from fingerpost.classifiers.arch.prompt import CUT_NOTE, DROPPED_NOTE, render
from fingerpost.errors import ClassifierError
from fingerpost.router import Router
from fingerpost.routes import OTHER, Route, RouteTable
from fingerpost.train.data import read_lines

from .questions import NAMES, TABLE, TEXTS, asked

DATA = Path(__file__).parents[2] / "train/data"


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("constraint", range(len(CONSTRAINTS)))
async def test_every_way_of_asking_gives_a_sound_verdict(server, arch_at, constraint, text):
    """Held to a schema there is always one; free text, and what llama.cpp makes of a choice, may name no route."""
    held = constraint == 1 or (constraint == 0 and server.name == "vllm")
    async with arch_at(server.url, constraints=CONSTRAINTS[constraint : constraint + 1]) as arch:
        verdict, failure = await ask(arch, asked(text), TABLE)
    if verdict is None:
        assert not held
        assert failure == "arch gave no verdict (arch answered without naming a route)"
        return
    assert list(verdict.probabilities) == NAMES
    assert sum(verdict.probabilities.values()) == pytest.approx(1)


async def test_the_model_left_to_itself_answers_mostly_with_valid_json(server):
    valid = 0
    for text in [*TEXTS, *(" ".join(TEXTS[:n]) for n in range(2, 5))]:
        body = {"model": MODEL, "messages": [{"role": "user", "content": render(asked(text), TABLE.described, 2048)[0]}]}
        answer = await asyncio.to_thread(server.post, "/v1/chat/completions", {**body, "temperature": 0, "max_tokens": 64})
        with contextlib.suppress(ValueError):
            valid += isinstance(json.loads(answer["choices"][0]["message"]["content"]).get("route"), str)
    assert valid >= 5


async def test_written_conversations_get_sound_verdicts_better_than_chance(server, arch_at):
    """Two routes and `other`, of sets that the toy has never seen; who guesses one of the three is right on 53 of 160."""
    sets = {row["set"]: row["routes"] for row in read_lines(DATA / "route_sets.jsonl") if row["split"] == "unseen"}
    routes = {(name, route["wordings"][0]["name"]): Route(**route["wordings"][0]) for name in sets for route in sets[name]}
    rows = [row for row in read_lines(DATA / "conversations.jsonl") if (row["set"], row["route"]) in routes]
    rows = [row for row in rows if row["lang"] == "en" and len(str(row["messages"])) < 110]
    rng, right = random.Random(7), 0
    took = []
    async with arch_at(server.url) as arch:
        for row in rng.sample(rows, 160):
            wanted = routes[row["set"], row["route"]]
            stranger = rng.choice([one for (name, _), one in routes.items() if name != row["set"] and one.name != wanted.name])
            table = RouteTable(tuple(rng.sample([wanted, stranger], 2)))
            verdict = await arch.classify(ChatRequest.from_messages(row["messages"]).conversation, table)
            assert sum(verdict.probabilities.values()) == pytest.approx(1)
            right += verdict.route == wanted.name
            took.append(verdict.elapsed * 1e3)
    print(f"{right} of 160 right; a decision takes {statistics.median(took):.0f} ms (median), {max(took):.0f} at most")
    assert right > 80


@pytest.mark.parametrize(
    ("texts", "note"),
    [(["x y z " * 2000], CUT_NOTE), ([f"Turn {n} about the garden." for n in range(300)], DROPPED_NOTE)],
    ids=["one long message", "many turns"],
)
async def test_a_conversation_longer_than_the_model_can_read_is_cut_to_fit(server, arch_at, texts, note):
    async with arch_at(server.url, budget=400) as arch:
        verdict = await arch.classify(asked(*texts), TABLE)
    assert verdict.note == note


async def test_a_prompt_that_the_model_cannot_hold_is_an_error_and_the_server_goes_on(server, arch_at):
    async with arch_at(server.url, budget=100_000) as arch:
        with pytest.raises(ClassifierError, match="arch answered 400"):
            await arch.classify(asked("x y z " * 2000), TABLE)
        assert (await arch.classify(asked("Hi"), TABLE)).route in NAMES
        decision = await Router(TABLE, arch).decide("x y z " * 2000)
    assert decision.route == OTHER
    assert "arch answered 400" in decision.reason


async def test_many_decisions_at_once(server, arch_at):
    async with arch_at(server.url) as arch:
        verdicts = await asyncio.gather(*(arch.classify(asked(f"{TEXTS[n % 3]} ({n})"), TABLE) for n in range(32)))
        again = [await arch.classify(asked(f"{TEXTS[n % 3]} ({n})"), TABLE) for n in range(4)]
    assert all(sum(verdict.probabilities.values()) == pytest.approx(1) for verdict in verdicts)
    # Batched or alone, the same question gets the same answer, up to the rounding of bfloat16.
    for one, other in zip(verdicts, again, strict=False):
        assert one.probabilities == pytest.approx(other.probabilities, abs=0.1)
