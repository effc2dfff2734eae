"""Batches: rows of several route sets that share one pool of route texts, varied as real configurations vary."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field

from fingerpost.classifiers.embedded.text import Turn, facets, route_text, words_of
from fingerpost.train.augment import Padding, augmented
from fingerpost.train.data import RouteSet, Sample, Wording


@dataclass(frozen=True, slots=True)
class Recipe:
    """How many rows of what a batch has, and how its route sets are varied.

    A written set gives a row for every two of its routes, within `least` and `most`. `drop` is the share of rows whose right
    route is taken away (so that none of the rest is right), `merged` the share of sets in which routes are joined into broad
    ones, `bare` that of sets whose routes have names only, `reworded` the share of routes that also come in a second wording.
    """

    sgd_rows: int = 10
    snips_rows: int = 1
    sets: int = 4
    least: int = 7
    most: int = 16
    drop: float = 0.08
    drop_sgd: float = 0.15
    merged: float = 0.15
    bare: float = 0.2
    reworded: float = 0.4
    reworded_sgd: float = 0.15


@dataclass(frozen=True, slots=True)
class Sources:
    """What to train on."""

    sgd: RouteSet
    snips: RouteSet
    written: Sequence[RouteSet]
    padding: Padding


@dataclass(slots=True)
class Row:
    """One training row: its turns, its candidates among the batch's routes, which are right, which belong to other products."""

    turns: tuple[Turn, ...]
    candidates: list[int]
    right: list[int]
    strangers: list[int]
    names: list[str]


@dataclass(slots=True)
class Batch:
    """Rows over one pool of routes.

    `facets` and `reworded` pair the place of a route with a further text of it.
    """

    rows: list[Row] = field(default_factory=list)
    routes: list[str] = field(default_factory=list)
    sets: list[str] = field(default_factory=list)
    facets: list[tuple[int, str]] = field(default_factory=list)
    reworded: list[tuple[int, str]] = field(default_factory=list)


def sample_batch(sources: Sources, recipe: Recipe, rng: random.Random) -> Batch:
    """A batch of SGD rows, snips rows and rows of some written sets."""
    batch, written = Batch(), sources.written
    chosen: dict[str, RouteSet] = {}
    while len(chosen) < min(recipe.sets, len(written)):
        drawn = rng.choices(written, [routes.weight for routes in written])[0]
        chosen[drawn.name] = drawn
    counts = [(sources.sgd, recipe.sgd_rows), (sources.snips, recipe.snips_rows)]
    counts += [(routes, min(max(len(routes.routes) // 2, recipe.least), recipe.most)) for routes in chosen.values()]
    views = [(_view(routes, recipe, rng), count) for routes, count in counts]
    pools = {routes.name: _add_routes(batch, routes, recipe, rng) for routes, _ in views}
    for routes, count in views:
        for sample in rng.sample(routes.samples, min(count, len(routes.samples))):
            _add_row(batch, routes, sample, pools, recipe, sources.padding, rng)
    return batch


def worded(wording: Wording, rng: random.Random) -> Wording:
    """A wording as a user might have written it: mostly both parts, sometimes only one."""
    name, description = wording
    chance = rng.random()
    if chance < 0.1:
        return name, ""
    return ("", description) if chance < 0.2 else (name, description)


def _view(routes: RouteSet, recipe: Recipe, rng: random.Random) -> RouteSet:
    """The set as one product might have it: SGD with some of its services, others sometimes with broader routes."""
    if routes.name == "sgd":
        services = sorted({key.split("/")[0] for key in routes.routes})
        kept = set(rng.sample(services, 14))
        drawn = rng.sample(routes.samples, recipe.sgd_rows * 4)
        fitting = [s for s in drawn if all(near.split("/")[0] in kept for near in s.near)]
        return RouteSet(routes.name, routes.topic, {k: w for k, w in routes.routes.items() if k.split("/")[0] in kept}, fitting)
    if routes.name == "snips" or rng.random() > recipe.merged or len(routes.routes) < 5:
        return routes
    return _merged(routes, rng)


def _merged(routes: RouteSet, rng: random.Random) -> RouteSet:
    keys = list(routes.routes)
    rng.shuffle(keys)
    where: dict[str, str] = {}
    joined: dict[str, list[Wording]] = {}
    while keys:
        size = rng.choice([1, 1, 2, 3, 4])
        group, keys = keys[:size], keys[size:]
        name = "+".join(group)
        where |= dict.fromkeys(group, name)
        joined[name] = routes.routes[group[0]] if len(group) == 1 else [_broad(routes, group, rng)]
    samples = [Sample(s.turns, tuple(dict.fromkeys(where[r] for r in s.right))) for s in routes.samples]
    return RouteSet(routes.name, routes.topic, joined, samples)


def _broad(routes: RouteSet, group: list[str], rng: random.Random) -> Wording:
    parts = [rng.choice(routes.routes[key]) for key in group]
    names = [words_of(name) for name, _ in parts]
    shorts = [min(routes.routes[key], key=lambda w: len(w[1]))[1].rstrip(".").lower() for key in group]
    style = rng.random()
    if style < 0.4:
        listed = names
    elif style < 0.8:
        listed = shorts
    else:
        listed = [rng.choice(pair) for pair in zip(names, shorts, strict=True)]
    both = "_and_".join(name.replace(" ", "_") for name in names[:2])
    description = rng.choice([", ", "; "]).join(listed)
    return rng.choice([parts[0][0], both]), f"{description[0].upper()}{description[1:]}."


def _add_routes(batch: Batch, routes: RouteSet, recipe: Recipe, rng: random.Random) -> dict[str, int]:
    places = {}
    share = recipe.reworded_sgd if routes.name == "sgd" else recipe.reworded
    bare = rng.random() < recipe.bare
    for key, wordings in routes.routes.items():
        place = places[key] = len(batch.routes)
        first, *rest = rng.sample(wordings, len(wordings))
        name, description = (first[0], "") if bare else worded(first, rng)
        batch.routes.append(route_text(name, description))
        batch.sets.append(routes.name)
        listed = [route_text(name, thing) for thing in facets(description)]
        batch.facets += [(place, text) for text in rng.sample(listed, min(len(listed), 6))]
        if rest and rng.random() < share:
            batch.reworded.append((place, route_text(*worded(rest[0], rng))))
    return places


def _add_row(
    batch: Batch,
    routes: RouteSet,
    sample: Sample,
    pools: dict[str, dict[str, int]],
    recipe: Recipe,
    padding: Padding,
    rng: random.Random,
) -> None:
    own = pools[routes.name]
    dropped = bool(sample.right) and rng.random() < (recipe.drop_sgd if routes.name == "sgd" else recipe.drop)
    candidates = [own[key] for key in _candidates(routes, sample, dropped, rng)]
    strangers: list[int] = []
    if routes.name != "sgd" and sample.right and not dropped:
        # A stranger may happen to fit an `other` conversation, so those see only their own set.
        pool = [
            place for name, places in pools.items() if name not in (routes.name, "sgd", "snips") for place in places.values()
        ]
        strangers = rng.sample(pool, min(rng.choice([0, 0, 0, 4, 10, 40]), len(pool)))
    if not candidates:
        return
    right = [] if dropped else [own[key] for key in sample.right if key in own]
    names = [batch.routes[place].split(":")[0] for place in candidates]
    batch.rows.append(Row(augmented(sample.turns, names, padding, rng), [*candidates, *strangers], right, strangers, names))


def _candidates(routes: RouteSet, sample: Sample, dropped: bool, rng: random.Random) -> list[str]:
    fixed = [] if dropped else [key for key in dict.fromkeys((*sample.right, *sample.near)) if key in routes.routes]
    taken = {*sample.right, *sample.near, *sample.blurred}
    free = [key for key in routes.routes if key not in taken]
    if routes.name == "sgd":
        count = rng.choice([4, 8, 10, 10, 10, 10, 20, 40]) - len(fixed)
    else:
        count = len(free) if rng.random() < 0.7 else rng.randint(min(1, len(free)), len(free))
    return [*fixed, *rng.sample(free, max(0, min(count, len(free))))]
