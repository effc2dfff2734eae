"""The `arch` classifier against a real vLLM; the toy model decides whether an answer is sensible, never whether it is sound."""

from __future__ import annotations

import asyncio
import json
import math
import random
import statistics
from pathlib import Path

import pytest

from fingerpost.chat import ChatRequest, Conversation
from fingerpost.classifiers.arch import CONSTRAINTS, MODEL
from fingerpost.classifiers.arch.prompt import CUT_NOTE, DROPPED_NOTE, render
from fingerpost.errors import ClassifierError
from fingerpost.router import Router
from fingerpost.routes import OTHER, Route, RouteTable
from fingerpost.train.data import read_lines

DATA = Path(__file__).parents[2] / "train/data"
TABLE = RouteTable(
    (
        Route("weather", "The user asks what the weather will be like somewhere."),
        Route("music", "The user wants to listen to a song, an album or an artist."),
        Route("hard_question", "A question that needs careful reasoning over several steps."),
        Route(OTHER),
    )
)
NAMES = [route.name for route in TABLE.routes]
TEXTS = [
    "Will it rain in Lisbon tomorrow?",
    "put on some jazz",
    "Prove that there are infinitely many primes.",
    "größe? 路 🙂",
    "asdf",
]


def asked(*texts: str) -> Conversation:
    return ChatRequest.from_messages([{"role": "user", "content": text} for text in texts]).conversation


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("constraint", range(len(CONSTRAINTS)))
async def test_every_way_of_asking_gives_a_sound_verdict(vllm, arch_at, constraint, text):
    async with arch_at(vllm.url, constraints=CONSTRAINTS[constraint : constraint + 1]) as arch:
        verdict = await arch.classify(asked(text), TABLE)
    assert list(verdict.probabilities) == NAMES
    assert sum(verdict.probabilities.values()) == pytest.approx(1)


async def test_the_server_takes_the_strictest_constraint_at_the_first_try(vllm, arch_at):
    before = vllm.metric("vllm:request_success_total")
    async with arch_at(vllm.url) as arch:
        await arch.classify(asked("Hi"), TABLE)
    assert vllm.metric("vllm:request_success_total") == before + 1


@pytest.mark.parametrize("text", TEXTS)
async def test_probabilities_are_those_of_a_constrained_decoder(vllm, arch_at, text):
    """Worked out from the model's own scores: of each token with which a name can begin, summed and made to add up to 1."""
    async with arch_at(vllm.url) as arch:
        verdict = await arch.classify(asked(text), TABLE)
    prompt = render(asked(text), TABLE.described, 2048)[0]
    opening = tokens_of(
        vllm,
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
        f'<|im_start|>user\n{prompt}<|im_end|>\n<|im_start|>assistant\n{{"route": "',
    )
    beginnings = {name: [tokens_of(vllm, name[:end]) for end in range(1, len(name) + 1)] for name in NAMES}
    tokens = {ids[0]: name for name, found in beginnings.items() for ids in found if len(ids) == 1}
    body = {"model": MODEL, "prompt": [[*opening, token] for token in tokens], "max_tokens": 1, "prompt_logprobs": 0}
    scored = await asyncio.to_thread(vllm.post, "/v1/completions", body)
    mass = dict.fromkeys(NAMES, 0.0)
    for choice, (token, name) in zip(scored["choices"], tokens.items(), strict=True):
        mass[name] += math.exp(choice["prompt_logprobs"][-1][str(token)]["logprob"])
    expected = {name: mass[name] / sum(mass.values()) for name in NAMES}
    assert verdict.probabilities == pytest.approx(expected, abs=0.02)


def tokens_of(vllm, text: str) -> list[int]:
    return vllm.post("/tokenize", {"model": MODEL, "prompt": text, "add_special_tokens": False})["tokens"]


async def test_the_model_left_to_itself_answers_with_valid_json(vllm, arch_at):
    seen = []
    async with arch_at(vllm.url, constraints=CONSTRAINTS[3:]) as arch:
        for text in [*TEXTS, *(" ".join(TEXTS[:n]) for n in range(2, 5))]:
            body = {"model": MODEL, "messages": [{"role": "user", "content": render(asked(text), TABLE.described, 2048)[0]}]}
            answer = await asyncio.to_thread(vllm.post, "/v1/chat/completions", {**body, "temperature": 0, "max_tokens": 64})
            seen.append(json.loads(answer["choices"][0]["message"]["content"])["route"])
            assert (await arch.classify(asked(text), TABLE)).route in NAMES
    assert all(isinstance(route, str) for route in seen)


async def test_written_conversations_get_sound_verdicts(vllm, arch_at):
    """Two routes and `other`; how many are right is printed and not asserted: that is the toy's matter."""
    sets = {row["set"]: row["routes"] for row in read_lines(DATA / "route_sets.jsonl") if row["split"] == "unseen"}
    routes = {(name, route["wordings"][0]["name"]): Route(**route["wordings"][0]) for name in sets for route in sets[name]}
    rows = [row for row in read_lines(DATA / "conversations.jsonl") if (row["set"], row["route"]) in routes]
    rows = [row for row in rows if row["lang"] == "en" and len(str(row["messages"])) < 110]
    rng, right = random.Random(7), 0
    took = []
    async with arch_at(vllm.url) as arch:
        for row in rng.sample(rows, 160):
            wanted = routes[row["set"], row["route"]]
            stranger = rng.choice([one for (name, _), one in routes.items() if name != row["set"] and one.name != wanted.name])
            table = RouteTable(tuple(rng.sample([wanted, stranger], 2)))
            verdict = await arch.classify(ChatRequest.from_messages(row["messages"]).conversation, table)
            assert sum(verdict.probabilities.values()) == pytest.approx(1)
            right += verdict.route == wanted.name
            took.append(verdict.elapsed * 1e3)
    print(f"{right} of 160 right; a decision takes {statistics.median(took):.0f} ms (median), {max(took):.0f} at most")
    assert len(took) == 160


async def test_routes_come_first_so_that_the_server_reads_them_once(vllm, arch_at):
    """Prompts that share their routes differ only after them: all but the ends come from the server's prefix cache."""
    described = "The user speaks about item number {n} of a long catalogue, its price, its delivery or its many colours."
    table = RouteTable(tuple(Route(f"item_{n}", described.format(n=n)) for n in range(24)))
    hits, queries = "vllm:prefix_cache_hits_total", "vllm:prefix_cache_queries_total"
    async with arch_at(vllm.url) as arch:
        await arch.classify(asked("Hello"), table)
        before = vllm.metric(hits), vllm.metric(queries)
        for n in range(10):
            await arch.classify(asked(f"Tell me about number {n}"), table)
        found, looked_up = vllm.metric(hits) - before[0], vllm.metric(queries) - before[1]
    print(f"{found:.0f} of {looked_up:.0f} tokens came from the prefix cache")
    assert found > 0.7 * looked_up > 0


@pytest.mark.parametrize(
    ("texts", "note"),
    [(["x y z " * 2000], CUT_NOTE), ([f"Turn {n} about the garden." for n in range(300)], DROPPED_NOTE)],
    ids=["one long message", "many turns"],
)
async def test_a_conversation_longer_than_the_model_can_read_is_cut_to_fit(vllm, arch_at, texts, note):
    async with arch_at(vllm.url, budget=400) as arch:
        verdict = await arch.classify(asked(*texts), TABLE)
    assert verdict.note == note


async def test_a_prompt_that_the_model_cannot_hold_is_an_error_and_the_server_goes_on(vllm, arch_at):
    async with arch_at(vllm.url, budget=100_000) as arch:
        with pytest.raises(ClassifierError, match="arch answered 400"):
            await arch.classify(asked("x y z " * 2000), TABLE)
        assert (await arch.classify(asked("Hi"), TABLE)).route in NAMES
        decision = await Router(TABLE, arch).decide("x y z " * 2000)
    assert decision.route == OTHER
    assert "arch answered 400" in decision.reason


async def test_a_model_that_is_not_served_is_an_error(vllm, arch_at):
    async with arch_at(vllm.url, model="no-such-model") as arch:
        with pytest.raises(ClassifierError, match="arch answered 404"):
            await arch.classify(asked("Hi"), TABLE)


async def test_many_decisions_at_once(vllm, arch_at):
    async with arch_at(vllm.url) as arch:
        verdicts = await asyncio.gather(*(arch.classify(asked(f"{TEXTS[n % 3]} ({n})"), TABLE) for n in range(32)))
        again = [await arch.classify(asked(f"{TEXTS[n % 3]} ({n})"), TABLE) for n in range(4)]
    assert all(sum(verdict.probabilities.values()) == pytest.approx(1) for verdict in verdicts)
    # Batched or alone, the same question gets the same answer, up to the rounding of bfloat16.
    for one, other in zip(verdicts, again, strict=False):
        assert one.probabilities == pytest.approx(other.probabilities, abs=0.1)


async def test_a_decision_given_up_is_given_up_by_the_server_too(vllm, arch_at, eventually):
    aborted = "vllm:num_requests_running"
    async with arch_at(vllm.url) as arch:
        asking = [asyncio.ensure_future(arch.classify(asked(f"Hi {n}"), TABLE)) for n in range(16)]
        await asyncio.sleep(0.05)
        for task in asking:
            task.cancel()
        await asyncio.gather(*asking, return_exceptions=True)
        await asyncio.to_thread(eventually, lambda: vllm.metric(aborted) == 0)
        assert (await arch.classify(asked("Hi"), TABLE)).route in NAMES
