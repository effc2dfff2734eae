"""The training loop: seeds fixed, checkpoints kept, resumed where it stopped; on a GPU where there is one."""

from __future__ import annotations

import copy
import math
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from fingerpost.classifiers.embedded.spelling import Spelling, cleaner
from fingerpost.classifiers.embedded.text import Laid, Tokenize, as_it_is, lay_out, lay_out_route
from fingerpost.train.batches import Batch, Recipe, Row, Sources, sample_batch
from fingerpost.train.network import IMPOSSIBLE, Reader, padded

ALIKE = 0.5

GROUP = 720
"""Tokens of the texts that attention sees together, padding counted."""


@dataclass(frozen=True, slots=True)
class Plan:
    """How long and how fast to train.

    The learning rate climbs and comes down once for each number of steps; the model is the mean of what it comes to each time
    (Huang et al. 2017, "Snapshot ensembles"; Izmailov et al. 2018, "Averaging weights leads to wider optima").
    """

    steps: tuple[int, ...] = (3400, 1800)
    rate: float = 1e-4
    fresh_rate: float = 7e-4
    average: float = 0.99
    rewording: float = 0.3
    seed: int = 1
    keep_every: int = 50


def fit(
    reader: Reader,
    sources: Sources,
    tokenize: Tokenize,
    spelling: Spelling,
    plan: Plan,
    recipe: Recipe,
    out: Path,
    watch: Callable[[int, Reader], None] = lambda step, reader: None,
) -> Reader:
    """The averaged model after all of `plan.steps`; calls `watch` with the running average whenever it has been saved."""
    average = copy.deepcopy(reader).eval()
    optimizer = _optimizer(reader, plan)
    ends: list[dict[str, Tensor]] = []
    first = _resume(out / "checkpoint.pt", reader, average, optimizer, ends)
    last = set(accumulate(plan.steps))
    loss_sum, hit_sum, began = 0.0, 0.0, time.perf_counter()
    for step in range(first, sum(plan.steps) + 1):
        # Each step has its own seed, so a resumed run sees the batches that an unbroken one would have seen.
        rng = random.Random(plan.seed * 1_000_003 + step)
        torch.manual_seed(plan.seed * 1_000_003 + step)
        for group in optimizer.param_groups:
            group["lr"] = group["peak"] * _share(step, plan.steps)
        reader.train()
        batch = sample_batch(sources, recipe, rng)
        loss, hits = batch_loss(reader, batch, tokenize, spelling, rng, plan.rewording)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(reader.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        _follow(average, reader, min(plan.average, step / (step + 10)))
        loss_sum, hit_sum = loss_sum + float(loss.detach()), hit_sum + hits
        if step % 20 == 0:
            pace = (time.perf_counter() - began) / (step - first + 1)
            print(f"step {step} loss {loss_sum / 20:.3f} right {hit_sum / 20:.3f} seconds a step {pace:.2f}", flush=True)
            loss_sum = hit_sum = 0.0
        if step in last:
            ends.append(copy.deepcopy(average.state_dict()))
        if step % plan.keep_every == 0 or step in last:
            _keep(out / "checkpoint.pt", step, reader, average, optimizer, ends)
            watch(step, average)
    ends = ends or [average.state_dict()]  # a checkpoint may be further than the plan
    average.load_state_dict({name: torch.stack([end[name] for end in ends]).mean(0) for name in ends[0]})
    return average


def batch_loss(
    reader: Reader, batch: Batch, tokenize: Tokenize, spelling: Spelling, rng: random.Random, rewording: float
) -> tuple[Tensor, float]:
    """The loss of a batch and the share of its rows that the model gets right.

    Each row's loss is a softmax over its candidates and none-of-these; added to it is one over all routes of the batch, in
    which every reworded route must find itself.
    """
    device = next(reader.parameters()).device
    texts = [*batch.routes, *(text for _, text in [*batch.facets, *batch.reworded])]
    # Half of the rows are read as at run time, the others with what addresses the router, and slips, left in.
    laid = [
        lay_out(row.turns, tokenize, cleaner(row.names, row.names, spelling) if rng.random() < 0.5 else as_it_is)
        for row in batch.rows
    ]
    vectors = read_all(reader, [*(lay_out_route(text, tokenize) for text in texts), *laid])
    counts = [len(batch.routes), len(batch.facets), len(batch.reworded), len(batch.rows)]
    routes, facets, reworded, rows = vectors.split(counts)
    alike = (routes.detach() @ routes.detach().T) > ALIKE
    owners = torch.tensor([place for place, _ in batch.facets], dtype=torch.long, device=device)
    allowed, right = _targets(batch.rows, alike)
    scores = reader.scores(rows, routes, facets, owners).masked_fill(~allowed, IMPOSSIBLE)
    logits = torch.cat([scores, reader.none_scores(rows, allowed.sum(1))[:, None]], 1)
    loss = (logits.logsumexp(1) - logits.masked_fill(~right, IMPOSSIBLE).logsumexp(1)).mean()
    if batch.reworded:
        loss = loss + rewording * _rewording_loss(batch, routes, reworded, alike)
    hits = right.gather(1, logits.detach().argmax(1, keepdim=True)).sum()
    return loss, int(hits) / len(batch.rows)


def read_all(reader: Reader, laid: Sequence[Laid]) -> Tensor:
    """The vectors of all texts in their order; the encoder works in bfloat16 where the device is made for it."""
    device = next(reader.parameters()).device
    groups = _grouped(laid)
    with torch.autocast(device.type, torch.bfloat16, enabled=_in_halves(device)):
        read = reader.read([padded([laid[place] for place in places], *shape, device) for places, shape in groups])
    places = torch.tensor([place for group, _ in groups for place in group], device=device)
    vectors = torch.cat([part[: len(group)] for part, (group, _) in zip(read, groups, strict=True)])
    return vectors[places.argsort()]


def _grouped(laid: Sequence[Laid]) -> list[tuple[list[int], tuple[int, int]]]:
    """The places of texts that attention sees together, and the shape (rows, length) to which they are padded.

    There are few shapes: for each new one a CPU's kernels are made anew, which takes longer than a few tokens more.
    """
    groups: list[tuple[list[int], tuple[int, int]]] = []
    for place in sorted(range(len(laid)), key=lambda place: -len(laid[place].ids)):
        if not groups or len(groups[-1][0]) == groups[-1][1][0]:
            length = math.ceil(len(laid[place].ids) / 8) * 8
            groups.append(([], (GROUP // length, length)))
        groups[-1][0].append(place)
    return groups


def _in_halves(device: torch.device) -> bool:
    # Without AMX a CPU takes longer for bfloat16 than for single precision.
    return torch.cuda.is_bf16_supported() if device.type == "cuda" else bool(torch.cpu.get_capabilities().get("amx_bf16"))


def _targets(rows: Sequence[Row], alike: Tensor) -> tuple[Tensor, Tensor]:
    """Which routes each row may choose, and which choices (the last one: none of these) are right."""
    allowed = torch.zeros(len(rows), len(alike), dtype=torch.bool)
    right = torch.zeros(len(rows), len(alike) + 1, dtype=torch.bool)
    for i, row in enumerate(rows):
        allowed[i, row.candidates] = True
        right[i, row.right or [-1]] = True
        # Another product's route that says much the same is not wrong, so it is no candidate.
        if row.right:
            allowed[i, [place for place in row.strangers if bool(alike[place, row.right].any())]] = False
    return allowed.to(alike.device), right.to(alike.device)


def _rewording_loss(batch: Batch, routes: Tensor, reworded: Tensor, alike: Tensor) -> Tensor:
    own = torch.tensor([place for place, _ in batch.reworded], device=routes.device)
    same_set = torch.tensor([[batch.sets[place] == name for name in batch.sets] for place, _ in batch.reworded])
    blurred = alike[own] & ~same_set.to(routes.device)
    return F.cross_entropy((20 * reworded @ routes.T).masked_fill(blurred, IMPOSSIBLE), own)


def _optimizer(reader: Reader, plan: Plan) -> torch.optim.AdamW:
    encoder = list(reader.encoder.parameters())
    fresh = [value for name, value in reader.named_parameters() if not name.startswith("encoder.")]
    groups = [
        {"params": encoder, "peak": plan.rate, "weight_decay": 0.01},
        {"params": fresh, "peak": plan.fresh_rate, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=plan.rate, betas=(0.9, 0.98), fused=True)


def _share(step: int, parts: Sequence[int]) -> float:
    """The share of the peak learning rate: a short climb, then a cosine down, in each part of the plan."""
    for steps in parts:
        if step <= steps:
            break
        step -= steps
    climb = max(20, steps // 20)
    return min(1.0, step / climb) * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * step / steps)))


@torch.no_grad()
def _follow(average: Reader, reader: Reader, share: float) -> None:
    for mine, theirs in zip(average.parameters(), reader.parameters(), strict=True):
        mine.lerp_(theirs, 1 - share)


def _keep(
    path: Path, step: int, reader: Reader, average: Reader, optimizer: torch.optim.AdamW, ends: list[dict[str, Tensor]]
) -> None:
    state = {
        "step": step,
        "reader": reader.state_dict(),
        "average": average.state_dict(),
        "optimizer": optimizer.state_dict(),
        "ends": ends,
    }
    torch.save(state, path.with_suffix(".new"))
    path.with_suffix(".new").replace(path)


def _resume(path: Path, reader: Reader, average: Reader, optimizer: torch.optim.AdamW, ends: list[dict[str, Tensor]]) -> int:
    """The step to begin with, after loading a checkpoint where there is one."""
    if not path.exists():
        return 1
    state = torch.load(path, weights_only=True)
    reader.load_state_dict(state["reader"])
    average.load_state_dict(state["average"])
    optimizer.load_state_dict(state["optimizer"])
    ends.extend(state["ends"])
    return int(state["step"]) + 1
