"""Where a toy Arch-Router starts from: weights from which routing is near; see `arch_toy.py`.

Left to chance, a network of this size learns to copy a name and never to choose one.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import PreTrainedTokenizerFast, Qwen2ForCausalLM

WIDTH, HEADS, THETA = 128, 2, 1e6
HEAD = WIDTH // HEADS
TOPIC, NAME = list(range(HEAD)), list(range(HEAD, WIDTH))
"""What the halves of a token's vector start as: what it is about, and which one it is."""

SPEEDS = THETA ** (-torch.arange(HEAD // 2) / (HEAD // 2))
"""Radians by which each pair of a head's dimensions turns from one token to the next."""


@torch.no_grad()
def prime(model: Qwen2ForCausalLM, about: torch.Tensor, openers: list[int]) -> None:
    """Sets the weights, by what each token is `about` and the tokens after which a route's name stands.

    The first layer gathers at every token what was said just before it (head 0) and which token stood before it (head 1). In
    the second, the end of a route's description looks at the first token of its name. In the third, the answer looks for the
    description that is about what the conversation is about and takes the name found there (head 0), or goes on with a name
    that has begun (head 1). Training does the rest.
    """
    embedding = model.model.embed_tokens.weight
    embedding[:, TOPIC] = about.to(embedding)
    embedding[:, NAME] *= 0.7
    model.model.norm.weight.fill_(4.0)  # with 1, no token could become probable
    first, second, third = (layer.self_attn for layer in model.model.layers)
    near = (SPEEDS > 0.02) & (SPEEDS < 0.15)
    _look_back(first, 0, 6.0, 2, near)
    _carry(first, 0, TOPIC, TOPIC)
    _look_back(first, 1, 25.0, 1, SPEEDS > 0.1)
    _carry(first, 1, NAME, NAME[::-1])  # turned round, so that it is not taken for the token's own
    _look_back(second, 0, 8.0, 6, (SPEEDS > 0.02) & (SPEEDS < 0.7))
    _carry(second, 0, TOPIC, TOPIC)
    _look_back(second, 1, 8.0, 0, near)
    _look_after(second, 1, embedding[openers][:, NAME], 12.0)
    _carry(second, 1, NAME, NAME)
    _match(third, 0, TOPIC, TOPIC, 1.0)
    _carry(third, 0, NAME, NAME)
    _match(third, 1, NAME[::-1], NAME, 1.5)
    _carry(third, 1, NAME, NAME)


def topics(said: list[str], tokenizer: PreTrainedTokenizerFast) -> torch.Tensor:
    """For each token what it is about: tokens that go with the same routes have like vectors. Rare ones have longer vectors.

    `said` has for each route all that is said about it and with it. The vectors are the principal components of the pointwise
    mutual information of tokens and routes (Levy and Goldberg, NIPS 2014).
    """
    kin: dict[str, int] = {}
    strip = " .,!?'\"()-_\n"
    plain = [i not in tokenizer.added_tokens_decoder for i in range(len(tokenizer))]
    tokens = [tokenizer.decode([i]).strip(strip).lower() if word else "" for i, word in enumerate(plain)]
    rows = torch.tensor([kin.setdefault(token, len(kin)) for token in tokens])
    counts = torch.zeros(len(kin), len(said))
    for column, text in enumerate(said):
        ids = rows[tokenizer.encode(text.lower(), add_special_tokens=False)]
        counts[:, column].index_add_(0, ids, torch.ones(len(ids)))
    expected = counts.sum(1, keepdim=True) * counts.sum(0, keepdim=True) / counts.sum()
    information = (counts / expected.clamp(min=1e-9)).clamp(min=1).log()
    values, vectors = torch.linalg.eigh(information.T @ information)
    found = information @ vectors[:, -HEAD:] * values[-HEAD:].clamp(min=1e-6) ** -0.25
    rarity = (len(said) / (counts > 0).sum(1).clamp(min=1)).log()
    found *= (rarity / rarity.max() / found.norm(dim=1).clamp(min=1e-6))[:, None]
    found[kin[""]] = 0
    # The strongest components stand where rotation by position is slowest.
    return found[:, SPEEDS.repeat(2).argsort(descending=True, stable=True).argsort()][rows]


def part_of(head: int) -> slice:
    return slice(head * HEAD, (head + 1) * HEAD)


def _look_back(attention: Any, head: int, strength: float, lag: int, pairs: torch.Tensor) -> None:
    """Attends to what stands about `lag` tokens before: constant queries and keys, which only rotation tells apart."""
    part = part_of(head)
    size = (strength * HEAD**0.5 / pairs.sum()) ** 0.5 * pairs
    for projection in (attention.q_proj, attention.k_proj):
        projection.weight[part] *= 0.3
    attention.k_proj.bias[part] = torch.cat([size, 0 * size])
    attention.q_proj.bias[part] = torch.cat([size * torch.cos(SPEEDS * lag), -size * torch.sin(SPEEDS * lag)])


def _look_after(attention: Any, head: int, marks: torch.Tensor, score: float) -> None:
    """Attends, in the dimension that hardly turns, to tokens that stand after one whose NAME is among the marks."""
    place = head * HEAD + HEAD // 2 - 1
    attention.q_proj.weight[place] = attention.k_proj.weight[place] = 0
    attention.q_proj.bias[place] = score * HEAD**0.5 / 5
    attention.k_proj.weight[place, NAME[::-1]] = (marks / marks.norm(dim=1, keepdim=True)).sum(0)


def _match(attention: Any, head: int, of_query: list[int], of_key: list[int], scale: float) -> None:
    """Attends to tokens whose `of_key` is like one's own `of_query`."""
    part, one = part_of(head), scale * torch.eye(WIDTH)
    attention.q_proj.weight[part] = 0.2 * attention.q_proj.weight[part] + one[of_query]
    attention.k_proj.weight[part] = 0.2 * attention.k_proj.weight[part] + one[of_key]


def _carry(attention: Any, head: int, source: list[int], target: list[int]) -> None:
    """Brings these dimensions of what is attended to."""
    part, one = part_of(head), torch.eye(WIDTH)
    attention.v_proj.weight[part] = 0.2 * attention.v_proj.weight[part] + one[source]
    attention.o_proj.weight[:, part] = 0.2 * attention.o_proj.weight[:, part] + one[target].T
