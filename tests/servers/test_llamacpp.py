"""What llama.cpp does in its own way."""

from __future__ import annotations

import asyncio

from fingerpost.classifiers.arch import CONSTRAINTS, MODEL
from fingerpost.classifiers.arch.prompt import render
from fingerpost.routes import Route, RouteTable

from .questions import NAMES, TABLE, asked


async def test_it_passes_over_a_choice_and_is_asked_for_a_schema_from_then_on(server, tap, arch_at):
    """A model that answers something else is made by a grammar, which llama.cpp does know; it stands for one that rambles."""
    rambling = 'root ::= "perhaps"'
    constraints = (lambda answers: {**CONSTRAINTS[0](answers), "grammar": rambling}, *CONSTRAINTS[1:])
    async with arch_at(tap.url, constraints=constraints) as arch:
        first = await arch.classify(asked("Will it rain?"), TABLE)
        tries = tap.requests
        second = await arch.classify(asked("put on some jazz"), TABLE)
    assert (tries, tap.requests) == (2, 3)
    for verdict in (first, second):
        assert list(verdict.probabilities) == NAMES
        assert '"response_format"' in tap.asked()


async def test_a_schema_leaves_no_other_answer(server):
    """Also where the model would rather name a route that is not there."""
    prompt = render(asked("Will it rain?"), TABLE.described, 2048)[0]
    body = {"model": MODEL, "messages": [{"role": "user", "content": prompt}], "temperature": 0, "max_tokens": 64}
    answers = ['{"route": "xylophone"}', '{"route": "zebra"}']
    answer = await asyncio.to_thread(server.post, "/v1/chat/completions", {**body, **CONSTRAINTS[1](answers)})
    assert answer["choices"][0]["message"]["content"].replace(" ", "") in [one.replace(" ", "") for one in answers]


async def test_routes_come_first_so_that_the_server_reads_them_once(server):
    """Prompts that share their routes differ only after them: of the second, all but the end comes from the slot's cache."""
    described = "The user speaks about item number {n} of a long catalogue, its price, its delivery or its many colours."
    table = RouteTable(tuple(Route(f"item_{n}", described.format(n=n)) for n in range(24)))
    for text in ("Hello", "Tell me about number 7"):
        prompt = render(asked(text), table.described, 2048)[0]
        body = {"model": MODEL, "messages": [{"role": "user", "content": prompt}], "max_tokens": 1}
        usage = (await asyncio.to_thread(server.post, "/v1/chat/completions", body))["usage"]
    found, all_of_them = usage["prompt_tokens_details"]["cached_tokens"], usage["prompt_tokens"]
    print(f"{found} of {all_of_them} tokens came from the cache")
    assert found > 0.7 * all_of_them > 0
