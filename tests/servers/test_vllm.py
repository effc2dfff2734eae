"""What only vLLM has or says."""

from __future__ import annotations

import asyncio
import math

import pytest

from fingerpost.classifiers.arch import MODEL
from fingerpost.classifiers.arch.prompt import render
from fingerpost.errors import ClassifierError
from fingerpost.routes import Route, RouteTable

from .questions import NAMES, TABLE, TEXTS, asked


async def test_the_server_takes_the_strictest_constraint_at_the_first_try(server, arch_at):
    before = server.metric("vllm:request_success_total")
    async with arch_at(server.url) as arch:
        await arch.classify(asked("Hi"), TABLE)
    assert server.metric("vllm:request_success_total") == before + 1


@pytest.mark.parametrize("text", TEXTS)
async def test_probabilities_are_those_of_a_constrained_decoder(server, arch_at, text):
    """Worked out from the model's own scores: of each token with which a name can begin, summed and made to add up to 1."""
    async with arch_at(server.url) as arch:
        verdict = await arch.classify(asked(text), TABLE)
    prompt = render(asked(text), TABLE.described, 2048)[0]
    opening = tokens_of(
        server,
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
        f'<|im_start|>user\n{prompt}<|im_end|>\n<|im_start|>assistant\n{{"route": "',
    )
    beginnings = {name: [tokens_of(server, name[:end]) for end in range(1, len(name) + 1)] for name in NAMES}
    tokens = {ids[0]: name for name, found in beginnings.items() for ids in found if len(ids) == 1}
    body = {"model": MODEL, "prompt": [[*opening, token] for token in tokens], "max_tokens": 1, "prompt_logprobs": 0}
    scored = await asyncio.to_thread(server.post, "/v1/completions", body)
    mass = dict.fromkeys(NAMES, 0.0)
    for choice, (token, name) in zip(scored["choices"], tokens.items(), strict=True):
        mass[name] += math.exp(choice["prompt_logprobs"][-1][str(token)]["logprob"])
    expected = {name: mass[name] / sum(mass.values()) for name in NAMES}
    assert verdict.probabilities == pytest.approx(expected, abs=0.02)


def tokens_of(server, text: str) -> list[int]:
    return server.post("/tokenize", {"model": MODEL, "prompt": text, "add_special_tokens": False})["tokens"]


async def test_routes_come_first_so_that_the_server_reads_them_once(server, arch_at):
    """Prompts that share their routes differ only after them: all but the ends come from the server's prefix cache."""
    described = "The user speaks about item number {n} of a long catalogue, its price, its delivery or its many colours."
    table = RouteTable(tuple(Route(f"item_{n}", described.format(n=n)) for n in range(24)))
    hits, queries = "vllm:prefix_cache_hits_total", "vllm:prefix_cache_queries_total"
    async with arch_at(server.url) as arch:
        await arch.classify(asked("Hello"), table)
        before = server.metric(hits), server.metric(queries)
        for n in range(10):
            await arch.classify(asked(f"Tell me about number {n}"), table)
        found, looked_up = server.metric(hits) - before[0], server.metric(queries) - before[1]
    print(f"{found:.0f} of {looked_up:.0f} tokens came from the prefix cache")
    assert found > 0.7 * looked_up > 0


async def test_a_model_that_is_not_served_is_an_error(server, arch_at):
    async with arch_at(server.url, model="no-such-model") as arch:
        with pytest.raises(ClassifierError, match="arch answered 404"):
            await arch.classify(asked("Hi"), TABLE)


async def test_a_decision_given_up_is_given_up_by_the_server_too(server, arch_at, eventually):
    aborted = "vllm:num_requests_running"
    async with arch_at(server.url) as arch:
        asking = [asyncio.ensure_future(arch.classify(asked(f"Hi {n}"), TABLE)) for n in range(16)]
        await asyncio.sleep(0.05)
        for task in asking:
            task.cancel()
        await asyncio.gather(*asking, return_exceptions=True)
        await asyncio.to_thread(eventually, lambda: server.metric(aborted) == 0)
        assert (await arch.classify(asked("Hi"), TABLE)).route in NAMES
