"""What numbers go into the encoder's matrices on texts like those it will read, so that they can be rounded to eight bits."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from fingerpost.classifiers.embedded.text import Clean, Laid, Tokenize, lay_out, lay_out_route, route_text
from fingerpost.train.data import RouteSet
from fingerpost.train.graph import Ranges
from fingerpost.train.network import Reader, padded

CONVERSATIONS, ROUTES = 8, 4
"""How many of each a route set gives to look at; a set as large as the SGD's counts as many sets."""

_LARGE = 400


def typical(sets: Iterable[RouteSet], tokenize: Tokenize, clean: Clean) -> list[Laid]:
    """Conversations and route texts of all sets, the same ones each time."""
    rng = random.Random(0)
    laid = []
    for routes in sets:
        several = max(1, len(routes.samples) // _LARGE)
        samples = rng.sample(routes.samples, min(CONVERSATIONS * several, len(routes.samples)))
        laid += [lay_out(sample.turns, tokenize, clean) for sample in samples]
        wordings = [rng.choice(routes.routes[key]) for key in rng.sample(list(routes.routes), min(ROUTES, len(routes.routes)))]
        laid += [lay_out_route(route_text(*wording), tokenize) for wording in wordings]
    return laid


@torch.no_grad()
def ranges_of(reader: Reader, laid: Sequence[Laid]) -> Ranges:
    """The least and the greatest number in each channel of what goes into each matrix of the encoder's layers."""
    found: dict[str, tuple[Tensor, Tensor]] = {}

    def watch(name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def look(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            rows = inputs[0].flatten(0, -2)
            least, greatest = rows.amin(0), rows.amax(0)
            if name in found:
                least, greatest = torch.minimum(least, found[name][0]), torch.maximum(greatest, found[name][1])
            found[name] = least, greatest

        return look

    matrices = [(name, part) for name, part in reader.encoder.named_modules() if isinstance(part, nn.Linear)]
    watches = [part.register_forward_pre_hook(watch(name)) for name, part in matrices]
    device = next(reader.parameters()).device
    for one in laid:
        reader.encoder([padded([one], 1, len(one.ids), device)])
    for handle in watches:
        handle.remove()
    return {name: (np.array(least.cpu()), np.array(greatest.cpu())) for name, (least, greatest) in found.items()}
