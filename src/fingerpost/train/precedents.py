"""The precedents that ship: the routes that training knows, by what they say and by what was asked of them."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Sequence

import numpy as np

from fingerpost.classifiers.embedded.encoder import Array, Encoder
from fingerpost.classifiers.embedded.precedents import Precedents, units
from fingerpost.classifiers.embedded.text import lay_out, route_text
from fingerpost.train.data import RouteSet, Sample, Wording

DIMENSIONS = 224
"""Coordinates of a precedent, of the encoder's 384: fewer bytes, and nothing lost on the boards."""

LEAST, MOST = 3, 60
"""Conversations of a route that is a precedent: with fewer, their mean says little; more are drawn from."""


def gather(encoder: Encoder, sets: Sequence[RouteSet]) -> Precedents:
    """The precedents of route sets: one for each route with conversations of its own."""
    rng = random.Random(0)
    texts, asked = [], []
    for routes in sets:
        conversations: dict[str, list[Sample]] = defaultdict(list)
        for sample in routes.samples:
            for route in sample.right:
                conversations[route].append(sample)
        for route, wordings in routes.routes.items():
            several = conversations[route]
            if len(several) >= LEAST:
                texts.append(_said_of(encoder, wordings))
                asked.append(_asked_of(encoder, rng.sample(several, min(MOST, len(several)))))
    return _compressed(np.array(texts), np.array(asked))


def _said_of(encoder: Encoder, wordings: Sequence[Wording]) -> Array:
    # The first wording is the plainest, as a name alone is; the others are as abstract or hasty as descriptions can be.
    several = encoder.encode_routes([route_text(*wording) for wording in wordings])
    return units(several[0] + several.mean(0))


def _asked_of(encoder: Encoder, samples: Sequence[Sample]) -> Array:
    laid = [lay_out(sample.turns, encoder.tokenize, encoder.spelling.mend) for sample in samples]
    return units(encoder.encode_many(laid).vectors.mean(0))


def _compressed(texts: Array, asked: Array) -> Precedents:
    """In the directions in which they have most of their length."""
    _, directions = np.linalg.eigh(texts.T @ texts + asked.T @ asked)
    basis = np.ascontiguousarray(directions[:, ::-1][:, :DIMENSIONS])
    return Precedents(basis, texts @ basis, asked @ basis)
