"""A table of routes as the model sees it: what each route says, what it lists, and how users would ask for that."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fingerpost.classifiers.embedded.encoder import Array, Encoder
from fingerpost.classifiers.embedded.matcher import Calibration, Matcher
from fingerpost.classifiers.embedded.text import facets, route_text, words_of

ASKED = 0.5
"""How much of a short text's vector is that of users who ask for it."""

SHORT = 4
"""Words of a listed thing that a user might ask for; more of them mostly say when the route applies."""


def read_routes(encoder: Encoder, wordings: Sequence[tuple[str, str]], calibration: Calibration) -> Matcher:
    """The matcher of routes, given as names and descriptions.

    A name alone, and a thing that a description lists, are a few words that name something, while a request says what is to
    be done about it. So such a text is also read as the request for it. Then every text is drawn towards what users asked of
    known routes that are like it.
    """
    texts = [route_text(*wording) for wording in wordings]
    bare = [text == route_text(name, "") for text, (name, _) in zip(texts, wordings, strict=True)]
    listed = [(place, name, thing) for place, (name, description) in enumerate(wordings) for thing in facets(description)]
    vectors = encoder.encode_routes([*texts, *(route_text(name, thing) for _, name, thing in listed)])
    short = [words_of(name) if is_bare else None for is_bare, (name, _) in zip(bare, wordings, strict=True)]
    short += [thing if len(thing.split()) <= SHORT else None for _, _, thing in listed]
    vectors = encoder.precedents.draw(_as_asked(encoder, vectors, short), [*bare, *(False for _ in listed)])
    return Matcher(
        names=tuple(name for name, _ in wordings),
        routes=vectors[: len(wordings)],
        facets=vectors[len(wordings) :],
        owners=np.array([place for place, _, _ in listed], np.intp),
        nameless=sum(bare) / max(len(wordings), 1),
        usual=encoder.precedents.usual,
        calibration=calibration,
    )


def _as_asked(encoder: Encoder, vectors: Array, phrases: Sequence[str | None]) -> Array:
    """The vectors, those that have a phrase moved towards requests for it."""
    places = [place for place, phrase in enumerate(phrases) if phrase is not None]
    moved = vectors.copy()
    moved[places] += np.float32(ASKED) * (
        encoder.encode_asked([phrase for phrase in phrases if phrase is not None]) - vectors[places]
    )
    return moved
