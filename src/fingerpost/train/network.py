"""The network in torch: one MiniLM encoder for conversations and routes, whose vectors are compared, and none-of-these."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

from fingerpost.classifiers.embedded.encoder import Array
from fingerpost.classifiers.embedded.text import MARK_WORDS, PAD

WIDTH, HEADS, LAYERS, INNER = 384, 12, 6, 1536


class Layer(nn.Module):
    """One BERT block."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(WIDTH, 3 * WIDTH)
        self.attended = nn.Linear(WIDTH, WIDTH)
        self.attended_norm = nn.LayerNorm(WIDTH, eps=1e-12)
        self.inner = nn.Linear(WIDTH, INNER)
        self.outer = nn.Linear(INNER, WIDTH)
        self.outer_norm = nn.LayerNorm(WIDTH, eps=1e-12)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        rows, length, _ = x.shape
        q, k, v = self.qkv(x).view(rows, length, 3, HEADS, WIDTH // HEADS).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=mask[:, None, None, :])
        mixed = self.attended(mixed.transpose(1, 2).reshape(rows, length, WIDTH))
        x = self.attended_norm(x + mixed)
        fed: Tensor = self.outer(F.gelu(self.inner(x)))
        return self.outer_norm(x + fed)  # type: ignore[no-any-return]


class Encoder(nn.Module):
    """Token ids to word vectors: BERT's embeddings and six layers."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(30522, WIDTH)
        self.positions = nn.Embedding(512, WIDTH)
        self.segments = nn.Embedding(2, WIDTH)
        self.norm = nn.LayerNorm(WIDTH, eps=1e-12)
        self.layers = nn.ModuleList(Layer() for _ in range(LAYERS))

    def forward(self, ids: Tensor, segments: Tensor) -> tuple[Tensor, Tensor]:
        mask = ids != PAD
        positions = torch.arange(ids.shape[1], device=ids.device)
        x = self.norm(self.words(ids) + self.positions(positions) + self.segments(segments))
        for layer in self.layers:
            x = layer(x, mask)
        return x, mask


class Reader(nn.Module):
    """The whole model: encoder, which words count, none-of-these."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = Encoder()
        self.weigh = nn.Linear(WIDTH, 1, bias=False)
        self.none = nn.Linear(WIDTH, 1)
        self.none_per_route = nn.Parameter(torch.tensor(0.3))
        self.log_scale = nn.Parameter(torch.tensor(20.0).log())
        with torch.no_grad():
            self.weigh.weight.zero_()
            self.none.weight.zero_()
            self.none.bias.fill_(6.0)

    def read(self, ids: Tensor, segments: Tensor) -> Tensor:
        """Pooled vectors of laid-out texts (padded with `PAD`): means in which some words count more than others."""
        hidden, mask = self.encoder(ids, segments)
        weight = self.weigh(hidden).masked_fill(~mask.unsqueeze(-1), -torch.inf).softmax(1)
        return F.normalize((hidden * weight).sum(1), dim=-1)

    def scores(self, conversations: Tensor, routes: Tensor, facets: Tensor, owners: Tensor) -> Tensor:
        """Scores of every conversation for every route, conversations x routes.

        A route's similarity is the mean of that with its whole text and that with its best text, where the `facets` (with
        the places of the routes that own them) are further texts.
        """
        whole = conversations @ routes.T
        parts = conversations @ facets.T
        best = whole.scatter_reduce(1, owners.expand(len(parts), -1), parts, "amax", include_self=True)
        return self.log_scale.exp() * (whole + best) / 2  # type: ignore[no-any-return]

    def none_scores(self, conversations: Tensor, counts: Tensor) -> Tensor:
        """Scores of none-of-these, given how many routes each conversation has to choose from."""
        return self.none(conversations).squeeze(-1) + self.none_per_route * (counts.float() / 10).log()  # type: ignore[no-any-return]


def pretrained(weights: str, vocabulary: dict[str, int]) -> Reader:
    """A Reader that starts from all-MiniLM-L6-v2's published weights."""
    found = load_file(weights)
    reader = Reader()
    state = reader.encoder.state_dict()
    for name in state:
        state[name] = _published(name, found)
    for mark, words in MARK_WORDS.items():
        if words:
            state["words.weight"][mark] = state["words.weight"][[vocabulary[w] for w in words]].mean(0)
    reader.encoder.load_state_dict(state)
    return reader


def shipped(reader: Reader, weights: Mapping[str, Array], kept: float, scale: float) -> None:
    """Gives `reader`, which has the published weights, those that an artifact was made of, as far as its int8 matrices tell.

    `kept` is how much of the trained weights the artifact has (the rest are published), `scale` that of its calibration.
    """
    state = reader.state_dict()
    for name, published in reader.encoder.state_dict().items():
        value = published.clone()
        found = torch.tensor(weights[name])
        value[: len(found)] = published[: len(found)].lerp(found, 1 / kept)
        state[f"encoder.{name}"] = value
    state["weigh.weight"], state["none.weight"], state["none.bias"] = (
        torch.tensor(weights[name]) for name in ("weigh", "none.weight", "none.bias")
    )
    state["log_scale"] = torch.tensor(scale).log()
    reader.load_state_dict(state)


def _published(name: str, found: dict[str, Tensor]) -> Tensor:
    kind = name.rsplit(".", 1)[1]
    if not name.startswith("layers."):
        place = {"words": "word_embeddings", "positions": "position_embeddings", "segments": "token_type_embeddings"}
        part = name.split(".")[0]
        return found[f"embeddings.{place.get(part, 'LayerNorm')}.{kind}"].clone()
    _, number, part, _ = name.split(".")
    inside = f"encoder.layer.{number}"
    if part == "qkv":
        return torch.cat([found[f"{inside}.attention.self.{x}.{kind}"] for x in ("query", "key", "value")])
    places = {
        "attended": "attention.output.dense",
        "attended_norm": "attention.output.LayerNorm",
        "inner": "intermediate.dense",
        "outer": "output.dense",
        "outer_norm": "output.LayerNorm",
    }
    return found[f"{inside}.{places[part]}.{kind}"].clone()
