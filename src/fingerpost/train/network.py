"""The network in torch: one MiniLM encoder for conversations and routes, whose vectors are compared, and none-of-these."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

from fingerpost.classifiers.embedded.encoder import Array
from fingerpost.classifiers.embedded.text import CLS, MARK_WORDS, PAD, Laid

WIDTH, HEADS, LAYERS, INNER = 384, 12, 6, 1536

IMPOSSIBLE = -1e4
"""The score of what must not be chosen."""


MULTIPLE = 1024
"""In training, tokens are filled up to a multiple of this: for each new number of them a CPU's kernels are made anew."""


@dataclass(frozen=True, slots=True)
class Group:
    """Texts of similar length, padded: token ids and segments, both rows x length."""

    ids: Tensor
    segments: Tensor

    @property
    def mask(self) -> Tensor:
        """Which tokens are there, rows x length."""
        return self.ids != PAD


def padded(laid: Sequence[Laid], rows: int, length: int, device: torch.device) -> Group:
    """Laid-out texts as a group of this shape; rows that are left over hold a text of no words."""
    ids = [[*one.ids, *[PAD] * (length - len(one.ids))] for one in laid]
    segments = [[*one.segments, *[0] * (length - len(one.ids))] for one in laid]
    empty = rows - len(laid)
    ids += [[CLS, *[PAD] * (length - 1)]] * empty
    segments += [[0] * length] * empty
    return Group(torch.tensor(ids, device=device), torch.tensor(segments, device=device))


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

    def forward(self, x: Tensor, masks: Sequence[Tensor]) -> Tensor:
        """The next vectors of all groups' tokens (tokens x width): only attention has to know where a text ends."""
        *parts, rest = self.qkv(x).split(_sizes(masks, len(x)))
        seen = [_attend(part, mask) for part, mask in zip(parts, masks, strict=True)]
        mixed = self.attended(torch.cat([*seen, rest[:, :WIDTH]]))
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

    def forward(self, groups: Sequence[Group], multiple: int = 1) -> list[Tensor]:
        """For each group the vectors of its tokens, rows x length x width; with others they are a `multiple` of tokens."""
        # All groups go through each matrix together: large products are quick, and the gradient of the words is made once.
        masks = [group.mask for group in groups]
        ids = torch.cat([group.ids.flatten() for group in groups])
        segments = torch.cat([group.segments.flatten() for group in groups])
        positions = torch.cat([torch.arange(mask.shape[1], device=ids.device).repeat(len(mask)) for mask in masks])
        x = self.norm(self.words(ids) + self.positions(positions) + self.segments(segments))
        x = F.pad(x, (0, 0, 0, -len(x) % multiple))
        for layer in self.layers:
            x = layer(x, masks)
        parts = x.split(_sizes(masks, len(x)))[:-1]
        return [part.view(*mask.shape, WIDTH) for part, mask in zip(parts, masks, strict=True)]


def _sizes(masks: Sequence[Tensor], tokens: int) -> list[int]:
    """How many of the tokens are each group's, and how many nobody's."""
    sizes = [mask.numel() for mask in masks]
    return [*sizes, tokens - sum(sizes)]


def _attend(qkv: Tensor, mask: Tensor) -> Tensor:
    rows, length = mask.shape
    q, k, v = qkv.view(rows, length, 3, HEADS, WIDTH // HEADS).permute(2, 0, 3, 1, 4)
    # Written out: in bfloat16 on CPUs, torch's own attention takes several times as long backwards.
    scores = (q @ k.transpose(-1, -2)) * (WIDTH // HEADS) ** -0.5
    mixed: Tensor = scores.masked_fill(~mask[:, None, None, :], IMPOSSIBLE).softmax(-1).to(v.dtype) @ v
    return mixed.transpose(1, 2).reshape(-1, WIDTH)


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

    def read(self, groups: Sequence[Group]) -> list[Tensor]:
        """Each group's pooled vectors (rows x width, single precision): means in which some words count more than others."""
        pooled = []
        for hidden, group in zip(self.encoder(groups, MULTIPLE), groups, strict=True):
            weight = self.weigh(hidden).masked_fill(~group.mask.unsqueeze(-1), -torch.inf).softmax(1)
            pooled.append(F.normalize((hidden * weight).sum(1).float(), dim=-1))
        return pooled

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
