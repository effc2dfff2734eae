"""From vectors to probabilities: what a table's routes look like to the model, what its examples teach, calibration.

A route's score is the scaled similarity of its texts to the conversation. Examples add a linear correction: a logistic
regression that starts from those scores and is drawn to zero, so few examples change little and many decide; and how like the
nearest of them is in wording.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float32]

SPREAD = 8.0
"""Centred unit vectors are multiplied by this before the regression, so that `pull` works on numbers near one."""

WHOLE = 0.4
"""How much of a route's score is its description as a whole; the rest is the best of that and of what it lists."""

WORDING, CHANCE = 4.0, 0.15
"""What likeness in wording to an example adds to a route's score, and how like texts are by chance.

Where routes lack examples, and so cannot answer likeness with likeness, up to twice as much counts as chance.
"""

DESCRIBED = 100.0
"""How much more strongly the correction is drawn to zero where routes have descriptions, shared among a route's examples and
two more: few examples say less than a description, and many say more."""

PARTIAL = 60.0
"""How much more strongly it is drawn to zero the larger the share of routes that have no examples: nothing answers for them."""

BOLDNESS = 8
"""How much longer than the safe step the first one of the regression is."""

ENOUGH, ENOUGH_STEPS = 0.01, 4
"""The regression ends when so many steps, one after the other, have each lowered the loss by less than this share of it: one
alone may be small because it was too long."""

_MOST_STEPS = 80
_SHARPNESSES = np.exp(np.linspace(-1.2, 0.8, 41)).astype(np.float32)


@dataclass(frozen=True, slots=True)
class Calibration:
    """Numbers that turn scores into probabilities, fitted on route sets that training has not seen.

    With x = (1, log(routes / 10), share of routes without a description), scores are multiplied by exp(sharpness . x); the
    score of none-of-these is slope * learned + none . x. In tables with examples that score is taught_none . (1, learned,
    likeness to the nearest example, log(routes / 10), what the lesson expects); `pull` is how strongly the examples'
    correction is drawn to zero.
    """

    scale: float
    sharpness: tuple[float, ...]
    slope: float
    none: tuple[float, ...]
    taught_none: tuple[float, ...]
    pull: float

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Calibration:
        """The calibration in an artifact's JSON."""
        fields: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}
        return cls(**fields)


@dataclass(frozen=True, slots=True)
class Lesson:
    """What examples taught: a linear correction of the scores, how sharp the sum is, and the examples themselves.

    `expected` is the mean best score, in logits, of examples that the correction had not seen: what a request for a route may
    be expected to have. `share` is the share of the routes that have examples, `heard` how much those decide over
    none-of-these; `examples` are their vectors, `letters` (None where wording is not compared) their runs of letters,
    `labels` the routes they belong to.
    """

    middle: Array
    weights: Array
    bias: Array
    sharpness: float
    expected: float
    examples: Array
    letters: Array | None
    labels: npt.NDArray[np.intp]
    share: float
    heard: float


@dataclass(frozen=True)
class Matcher:
    """The routes of one table as vectors (routes x width), with further texts (`facets`) and the routes that own them.

    `usual` (width) is what users ask on average, of any product.
    """

    names: tuple[str, ...]
    routes: Array
    facets: Array
    owners: npt.NDArray[np.intp]
    nameless: float
    usual: Array
    calibration: Calibration
    lesson: Lesson | None = field(default=None)

    @cached_property
    def sharpness(self) -> float:
        """What scores by description are multiplied by."""
        return float(np.exp(features(len(self.names), self.nameless) @ self.calibration.sharpness))

    @cached_property
    def _none(self) -> float:
        """What the score of none-of-these has from the table."""
        return float(features(len(self.names), self.nameless) @ self.calibration.none)

    def scores(self, vectors: Array) -> Array:
        """Scores of conversations (rows x width) by the descriptions alone, rows x routes."""
        whole = vectors @ self.routes.T
        best = whole
        if len(self.owners):
            best = whole.copy()
            np.maximum.at(best.T, self.owners, (vectors @ self.facets.T).T)
        scores: Array = (np.float32(WHOLE) * whole + np.float32(1 - WHOLE) * best) * np.float32(self.calibration.scale)
        return scores

    def logits(self, vectors: Array, none: Array, letters: Array | None = None) -> Array:
        """What a softmax turns into probabilities, rows x (routes and, last, none of these).

        `letters` are those of the latest turns; without them, likeness in wording to the examples does not count.
        """
        lesson, scores = self.lesson, self.scores(vectors)
        sharpness = np.float32(self.sharpness if lesson is None else lesson.sharpness)
        other = (self.calibration.slope * none + self._none) * sharpness
        if lesson is not None:
            scores = taught_scores(scores, vectors, letters, lesson)
            taught = taught_features(vectors, none, lesson, len(self.names)) @ self.calibration.taught_none
            other = lesson.heard * taught + (1 - lesson.heard) * other
        scores = scores * sharpness
        return np.concatenate([scores, other[:, None].astype(np.float32)], 1)

    def probabilities(self, vectors: Array, none: Array, letters: Array | None = None) -> Array:
        """Probabilities of the routes and, last, of none of these."""
        return softmax(self.logits(vectors, none, letters))


def features(routes: int, nameless: float) -> Array:
    """What calibration knows of a table."""
    return np.array([1.0, np.log(max(routes, 1) / 10), nameless], np.float32)


def taught_features(vectors: Array, none: Array, lesson: Lesson, routes: int) -> Array:
    """What the score of none-of-these is made of where there are examples, rows x 5."""
    nearest = (vectors @ lesson.examples.T).max(1)
    size, expected = np.full_like(none, np.log(max(routes, 1) / 10)), np.full_like(none, lesson.expected)
    return np.stack([np.ones_like(none), none, nearest, size, expected], 1)


def softmax(logits: Array) -> Array:
    """Rows that sum to one."""
    raised = np.exp(logits - logits.max(1, keepdims=True))
    shares: Array = (raised / raised.sum(1, keepdims=True)).astype(np.float32, copy=False)
    return shares


def taught_scores(scores: Array, vectors: Array, letters: Array | None, lesson: Lesson) -> Array:
    """The descriptions' scores with what the examples add."""
    inputs = (vectors - lesson.middle) * np.float32(SPREAD)
    corrected: Array = (scores + inputs @ lesson.weights.T + lesson.bias).astype(np.float32, copy=False)
    if letters is None or lesson.letters is None:
        return corrected
    return corrected + _wording(letters, lesson.letters, lesson.labels, scores.shape[1], lesson.share)


def _wording(letters: Array, examples: Array, labels: npt.NDArray[np.intp], routes: int, share: float) -> Array:
    """What likeness in wording to the nearest of their examples adds to the routes' scores."""
    chance = np.float32(CHANCE * (2 - share))
    nearest = np.full((routes, len(letters)), chance)
    np.maximum.at(nearest, labels, examples @ letters.T)
    added: Array = (nearest.T - chance) * np.float32(WORDING)
    return added


def teach(matcher: Matcher, vectors: Array, labels: Sequence[int], letters: Array | None = None) -> Lesson:
    """What examples (rows x width, the routes they belong to, their runs of letters) teach.

    The sharpness is the one that suits examples which a correction fitted on the other half of them has not seen; with few
    examples it stays near the matcher's, which suits the descriptions, and where routes lack examples it is never above that.
    """
    targets, scores = np.asarray(labels), matcher.scores(vectors)
    absent = np.setdiff1d(np.arange(scores.shape[1]), targets)
    share = 1 - len(absent) / scores.shape[1]
    trust = 1 + (1 - matcher.nameless) * _trust(targets)
    pull = matcher.calibration.pull * (trust + PARTIAL * (1 - share))
    # Routes without examples are stood in for by what they say, and only what sets a request apart from others may move one:
    # else every request would be drawn to the routes that have examples, since all requests have much in common.
    whole = share == 1
    middle = vectors.mean(0) if whole else matcher.usual
    stand_ins = matcher.routes[absent]

    def fit(rows: npt.NDArray[np.bool_]) -> tuple[Array, Array]:
        inputs = (np.concatenate([vectors[rows], stand_ins]) - middle) * np.float32(SPREAD)
        known = np.concatenate([scores[rows], matcher.scores(stand_ins)])
        weights, bias = _fit(inputs, np.concatenate([targets[rows], absent]), known, pull, whole)
        weights[absent] = 0
        return weights, bias

    weights, bias = fit(np.ones(len(targets), bool))
    half = _halves(targets)
    held = np.empty_like(scores)
    for part in (0, 1):
        unseen = half == part
        part_weights, part_bias = fit(~unseen)
        held[unseen] = scores[unseen] + (vectors[unseen] - middle) * np.float32(SPREAD) @ part_weights.T + part_bias
        if letters is not None:
            held[unseen] += _wording(letters[unseen], letters[~unseen], targets[~unseen], scores.shape[1], share)
    found = _best_sharpness(held, targets, matcher.sharpness)
    sharpness = found if whole else min(found, matcher.sharpness)
    expected = float(held.max(1).mean()) * sharpness
    return Lesson(middle, weights, bias, sharpness, expected, vectors, letters, targets, share, share**2 / trust)


def _fit(inputs: Array, targets: npt.NDArray[np.intp], scores: Array, pull: float, biased: bool) -> tuple[Array, Array]:
    """Weights and bias of the correction: class-balanced cross-entropy by Nesterov's method (the problem is convex)."""
    rows, routes = scores.shape
    counts = np.bincount(targets, minlength=routes)
    share = (1.0 / counts[targets] / max(int(np.count_nonzero(counts)), 1)).astype(np.float32)[:, None]
    wanted = np.zeros((rows, routes), np.float32)
    wanted[np.arange(rows), targets] = 1
    shrink = np.float32(pull / routes)
    # A step of the safe rate never goes too far, whatever the shares are. It is far too short nearly always: a much longer one
    # is tried, and shortened where it makes things worse, as momentum then starts again (O'Donoghue and Candes, 2015).
    safe = np.float32(1 / (0.25 * _steepness(inputs * np.sqrt(share)) + 0.25 + shrink))
    rate = safe * np.float32(BOLDNESS)
    # A route without examples keeps what its description says.
    free = (counts > 0).astype(np.float32)[:, None]
    weights, bias = np.zeros((routes, inputs.shape[1]), np.float32), np.zeros(routes, np.float32)
    ahead, bias_ahead, momentum, before, short = weights, bias, 1.0, np.inf, 0
    for _ in range(_MOST_STEPS if rows else 0):
        shares = softmax(scores + inputs @ ahead.T + bias_ahead)
        loss = -float(np.log(shares[wanted > 0] + 1e-9) @ share[:, 0]) + float(shrink) / 2 * float(np.vdot(ahead, ahead))
        if loss > before and rate > safe:
            rate, ahead, bias_ahead, momentum, before = max(rate / 2, safe), weights, bias, 1.0, np.inf
            continue
        short = short + 1 if 0 <= before - loss < ENOUGH * loss else 0
        if short == ENOUGH_STEPS:
            break
        before, error = loss, (shares - wanted) * share
        new = ahead - rate * free * (error.T @ inputs + shrink * ahead)
        new_bias = bias_ahead - rate * free[:, 0] * error.sum(0) * biased
        following = (1 + np.sqrt(1 + 4 * momentum**2)) / 2
        push = np.float32((momentum - 1) / following)
        ahead, bias_ahead = new + push * (new - weights), new_bias + push * (new_bias - bias)
        weights, bias, momentum = new, new_bias, following
    return weights, bias


def _trust(targets: npt.NDArray[np.intp]) -> float:
    """How much descriptions are trusted beside so many examples."""
    return DESCRIBED / (len(targets) / max(len(np.unique(targets)), 1) + 2)


def _steepness(rows: Array) -> float:
    """The square of the spectral norm."""
    # From the smaller Gram matrix: NumPy's norm decomposes all rows, holding the interpreter for seconds where they are many.
    short = rows if len(rows) < rows.shape[1] else rows.T
    return float(np.linalg.eigvalsh(short @ short.T)[-1]) if short.size else 0.0


def _halves(targets: npt.NDArray[np.intp]) -> npt.NDArray[np.intp]:
    """0 or 1 for each example, so that every route with two or more has some in both halves."""
    seen: dict[int, int] = {}
    half = np.empty(len(targets), np.intp)
    for place, target in enumerate(targets):
        seen[int(target)] = seen.get(int(target), int(target)) + 1
        half[place] = seen[int(target)] % 2
    return half


def _best_sharpness(scores: Array, targets: npt.NDArray[np.intp], expected: float) -> float:
    rows = np.arange(len(targets))
    losses = [-np.log(softmax(scores * s)[rows, targets] + 1e-9).sum() for s in _SHARPNESSES]
    doubts = 10 * np.log(_SHARPNESSES / expected) ** 2
    return float(_SHARPNESSES[int(np.argmin(losses + doubts))])
