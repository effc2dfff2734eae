"""Calibration: the few numbers that make probabilities honest, fitted with the shipped encoder on route sets kept for this."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch
from torch.nn import functional as F

from fingerpost.classifiers.embedded.encoder import Array, Encoder
from fingerpost.classifiers.embedded.letters import letters
from fingerpost.classifiers.embedded.matcher import Calibration, features, taught_features, taught_scores, teach
from fingerpost.classifiers.embedded.reading import read_routes
from fingerpost.classifiers.embedded.spelling import cleaner
from fingerpost.classifiers.embedded.text import lay_out, route_text
from fingerpost.train.data import RouteSet, Wording

START = Calibration(20.0, (0.0, 0.0, 0.0), 1.0, (0.0, 0.0, 0.0), (0.0, 1.0, 0.0, 0.0, 0.0), 0.03)
ALIKE = 0.5
EASY_ROWS = 1600
EASY_SHARE, TAUGHT_EASY_SHARE = 0.94, 0.88
EASY_TABLES = 12
OTHER_WEIGHT = 0.08
"""Tables are written for what is asked, so less is `other` in use than here. Chosen by the development boards."""

PLAINER, PLAINER_BARE = 0.23, 0.13
"""How much sharper scores are in use, as the exponent of e, where routes have descriptions and where they have names only: what
most people ask is plainer than what is measured here. Chosen by the calibration errors of the development boards."""


@dataclass(frozen=True, slots=True)
class Case:
    """Rows decided on one table: scores, the learned none score, the right choice (the last: none), what is known of it."""

    scores: Array
    none: Array
    right: npt.NDArray[np.intp]
    known: Array
    weight: float = 1.0


def calibrate(
    encoder: Encoder, sets: Sequence[RouteSet], sgd: RouteSet, others: Sequence[RouteSet], scale: float, slope: float
) -> Calibration:
    """The calibration for an encoder: `sets` and `sgd` are measured, routes of `others` fill tables up as distractors.

    The written sets are harder than what people mostly ask and SGD is nearer to it, so most of the weight is on SGD.
    """
    rng = random.Random(5)
    start = replace(START, scale=scale, none=(0.0, slope, 0.0))
    cases = [case for routes in sets for case in _cases(encoder, routes, others, start, rng)]
    rows = sum(len(case.right) for case in cases)
    easy = [_easy_case(encoder, sgd, others, start, rng) for _ in range(EASY_ROWS)]
    cases += [replace(case, weight=EASY_SHARE / (1 - EASY_SHARE) * rows / EASY_ROWS) for case in easy]
    found = _fit_described(cases, start)
    taught = [case for _ in range(3) for case in _taught_cases(encoder, sets, found, rng)]
    rows = sum(len(case.right) for case in taught)
    simple = [_easy_taught_case(encoder, sgd, found, rng) for _ in range(EASY_TABLES)]
    weight = TAUGHT_EASY_SHARE / (1 - TAUGHT_EASY_SHARE) * rows / sum(len(case.right) for case in simple)
    taught += [replace(case, weight=weight) for case in simple]
    return replace(found, taught_none=_fit_taught(taught, found.slope))


def read_set(encoder: Encoder, routes: RouteSet) -> tuple[Array, Array, Array, list[int]]:
    """Vectors, none scores, runs of letters and right routes (-1: none) of a set's conversations."""
    keys = list(routes.routes)
    wordings = [wording for several in routes.routes.values() for wording in several]
    clean = cleaner((name for name, _ in wordings), (text for wording in wordings for text in wording), encoder.spelling)
    laid = [lay_out(sample.turns, encoder.tokenize, clean) for sample in routes.samples]
    encoded, labels = encoder.encode_many(laid), [keys.index(s.right[0]) if s.right else -1 for s in routes.samples]
    return encoded.vectors, encoded.none, letters([one.said for one in laid]), labels


def _cases(
    encoder: Encoder, routes: RouteSet, others: Sequence[RouteSet], start: Calibration, rng: random.Random
) -> list[Case]:
    vectors, none, _, labels = read_set(encoder, routes)
    own = list(routes.routes.values())
    tables: list[tuple[list[Wording], int]] = [
        ([wordings[0] for wordings in own], 0),
        ([rng.choice(wordings) for wordings in own], 0),
        ([(rng.choice(wordings)[0], "") for wordings in own], 0),
    ]
    cases = []
    for wordings, extra in tables:
        table = [*wordings, *_distractors(encoder, wordings, others, extra, start, rng)]
        matcher = read_routes(encoder, table, start)
        # With distractors, an `other` conversation may have become somebody's: those rows are left out.
        rows = [i for i, label in enumerate(labels) if label >= 0 or not extra]
        right = np.array([labels[i] if labels[i] >= 0 else len(table) for i in rows])
        cases.append(Case(matcher.scores(vectors[rows]), none[rows], right, features(len(table), matcher.nameless)))
    return cases


def _easy_case(encoder: Encoder, sgd: RouteSet, others: Sequence[RouteSet], start: Calibration, rng: random.Random) -> Case:
    """One turn of a dialogue about services that training has not seen; in one case of six its routes are left out."""
    sample = next(drawn for drawn in iter(lambda: rng.choice(sgd.samples), None) if len(drawn.right) == 1)
    left_out = rng.random() < 0.17
    near = [] if left_out else list(dict.fromkeys((*sample.right, *sample.near)))
    free = [key for key in sgd.routes if key not in sample.blurred]
    keys = [*near, *rng.sample(free, min(len(free), max(0, 10 - len(near))))]
    bare = rng.random() < 0.15
    own = [(name, "" if bare else description) for name, description in (rng.choice(sgd.routes[key]) for key in keys)]
    extra = rng.choice([0, 0, 0, 25, 120]) if near else 0
    table = [*own, *_distractors(encoder, own, others, extra, start, rng)]
    matcher = read_routes(encoder, table, start)
    read = encoder.encode([lay_out(sample.turns, encoder.tokenize, encoder.spelling.mend)])
    right = np.array([keys.index(sample.right[0]) if near else len(table)])
    return Case(matcher.scores(read.vectors), read.none, right, features(len(table), matcher.nameless))


def _distractors(
    encoder: Encoder, own: Sequence[Wording], others: Sequence[RouteSet], count: int, start: Calibration, rng: random.Random
) -> list[Wording]:
    """Routes of other products that say something else than any of `own`."""
    if not count:
        return []
    pool = [rng.choice(wordings) for routes in others for wordings in routes.routes.values()]
    drawn = rng.sample(pool, min(count * 2, len(pool)))
    if not any(description for _, description in own):
        drawn = [(name, "") for name, _ in drawn]
    alike = (_texts(encoder, drawn) @ _texts(encoder, own).T).max(1)
    return [wording for wording, likeness in zip(drawn, alike, strict=True) if likeness < ALIKE][:count]


def _texts(encoder: Encoder, wordings: Sequence[Wording]) -> Array:
    return encoder.encode_routes([route_text(*wording) for wording in wordings])


def _taught_cases(encoder: Encoder, sets: Sequence[RouteSet], start: Calibration, rng: random.Random) -> list[Case]:
    """Tables of one to four sets whose routes have names and one to five examples; the other conversations are measured.

    Where routes have descriptions, none-of-these hardly listens to the examples.
    """
    chosen = rng.sample(list(sets), len(sets))
    groups = [chosen[:1], chosen[1:3], chosen[3:]] if len(chosen) > 3 else [chosen]
    cases = []
    for group in groups:
        wordings = [(w[0][0], "") for s in group for w in s.routes.values()]
        read = [read_set(encoder, routes) for routes in group]
        offsets = np.cumsum([0, *(len(routes.routes) for routes in group)])
        vectors, none, spelled = (np.concatenate([r[part] for r in read]) for part in range(3))
        labels = np.concatenate([[x + o if x >= 0 else -1 for x in r[3]] for r, o in zip(read, offsets[:-1], strict=True)])
        count, seen = rng.choice([1, 2, 3, 5]), []
        for route in range(len(wordings)):
            mine = np.flatnonzero(labels == route).tolist()
            seen += rng.sample(mine, min(count, len(mine)))
        matcher = read_routes(encoder, wordings, start)
        lesson = teach(matcher, vectors[seen], labels[seen].tolist(), spelled[seen])
        rest = np.setdiff1d(np.arange(len(labels)), seen)
        scores = taught_scores(matcher.scores(vectors[rest]), vectors[rest], spelled[rest], lesson)
        scores *= np.float32(lesson.sharpness)
        known = taught_features(vectors[rest], none[rest], lesson, len(wordings))
        cases.append(Case(scores, none[rest], np.where(labels[rest] < 0, len(wordings), labels[rest]), known))
    return cases


def _easy_taught_case(encoder: Encoder, sgd: RouteSet, start: Calibration, rng: random.Random) -> Case:
    """A table of twenty SGD intents by name with two to ten examples each; turns about other services are none of these."""
    services = sorted({key.split("/")[0] for key in sgd.routes})
    away = set(rng.sample(services, 5))
    keys = [key for key in sgd.routes if key.split("/")[0] not in away]
    first = [s for s in rng.sample(sgd.samples, len(sgd.samples)) if len(s.turns) == 1 and len(s.right) == 1]
    inside = {key: [s for s in first if s.right[0] == key] for key in keys}
    domains = {key.split("_")[0] for key in keys}
    outside = [s for s in first if s.right[0].split("/")[0] in away and s.right[0].split("_")[0] not in domains]
    count = rng.choice([2, 3, 5, 10])
    wordings = [(rng.choice(sgd.routes[key])[0], "") for key in keys]
    seen = [(sample, place) for place, key in enumerate(keys) for sample in inside[key][:count]]
    rest = [(sample, place) for place, key in enumerate(keys) for sample in inside[key][count : count + 10]]
    rest += [(sample, len(keys)) for sample in outside[: max(1, len(rest) // 5)]]
    mend = encoder.spelling.mend
    laid = [[lay_out(s.turns, encoder.tokenize, mend) for s, _ in part] for part in (seen, rest)]
    examples, asked = (encoder.encode_many(part) for part in laid)
    spelled, asked_spelled = (letters([one.said for one in part]) for part in laid)
    matcher = read_routes(encoder, wordings, start)
    places = [place for _, place in seen]
    lesson = teach(matcher, examples.vectors, places, spelled)
    scores = taught_scores(matcher.scores(asked.vectors), asked.vectors, asked_spelled, lesson)
    scores *= np.float32(lesson.sharpness)
    known = taught_features(asked.vectors, asked.none, lesson, len(wordings))
    return Case(scores, asked.none, np.array([place for _, place in rest]), known)


def _fit_described(cases: Sequence[Case], start: Calibration) -> Calibration:
    # The learned score hardly varies from request to request: a slope fitted beside the constant would run away with it.
    sharpness = torch.zeros(3, requires_grad=True)
    none = torch.tensor(start.none, requires_grad=True)

    def logits(case: Case) -> torch.Tensor:
        known = torch.from_numpy(case.known)
        other = start.slope * torch.from_numpy(case.none) + known @ none
        return torch.cat([torch.from_numpy(case.scores), other[:, None]], 1) * (known @ sharpness).exp()

    _minimise([sharpness, none], logits, cases)
    constant, size, nameless = sharpness.tolist()
    return replace(start, sharpness=(constant + PLAINER, size, nameless + PLAINER_BARE - PLAINER), none=tuple(none.tolist()))


def _fit_taught(cases: Sequence[Case], slope: float) -> tuple[float, ...]:
    free = torch.zeros(4, requires_grad=True)

    def logits(case: Case) -> torch.Tensor:
        known = torch.from_numpy(case.known)
        other = known[:, [0, 2, 3, 4]] @ free + slope * known[:, 1]
        return torch.cat([torch.from_numpy(case.scores), other[:, None]], 1)

    _minimise([free], logits, cases)
    constant, *others = free.tolist()
    return constant, slope, *others


def _minimise(parameters: list[torch.Tensor], logits: Callable[[Case], torch.Tensor], cases: Sequence[Case]) -> None:
    """Fits parameters to the mean negative log-likelihood of the right choices."""
    optimizer = torch.optim.LBFGS(parameters, max_iter=200, line_search_fn="strong_wolfe")
    weights = torch.cat([_weights(case) for case in cases])

    def loss() -> torch.Tensor:
        optimizer.zero_grad()
        each = torch.cat([F.cross_entropy(logits(case), torch.from_numpy(case.right), reduction="none") for case in cases])
        mean = (each * weights).sum() / weights.sum()
        mean.backward()  # type: ignore[no-untyped-call]
        return mean

    optimizer.step(loss)  # type: ignore[no-untyped-call]


def _weights(case: Case) -> torch.Tensor:
    other = torch.from_numpy(case.right) == case.scores.shape[1]
    return case.weight * torch.where(other, OTHER_WEIGHT, 1.0)
