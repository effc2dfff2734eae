"""Reading what a router model answered. Pure: a chat completion in, probabilities or None out."""

from __future__ import annotations

import json
import math
import re
import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

CONFIDENCE_WITHOUT_LOGPROBS = 0.93
"""What a bare answer is worth: how often Arch-Router-1.5B is right by its paper (arXiv 2506.16655, table 3)."""

MAX_ANSWER = 10_000
"""Characters of an answer that are looked at, its last ones: a server that rambles must not cost more than that."""

_THINKING = re.compile(
    # A block, an open one included, or one whose start stood in the server's prompt template.
    r"<think(?:ing)?>.*?(?:</think(?:ing)?>|\Z)|\A(?:(?!<think).)*?</think(?:ing)?>",
    re.DOTALL | re.IGNORECASE,
)
_OBJECT = re.compile(r"\{[^{}]*\}")
_FIELD = re.compile(r"""["'`]?route["'`]?\s*[:=]\s*["'`]?([^"'`{}\n,]+)""", re.IGNORECASE)
_OPENING = re.compile(r"""["']route["']\s*:\s*(["'])""", re.IGNORECASE)


def believe(completion: Mapping[str, Any], names: Sequence[str]) -> dict[str, float] | None:
    """Probabilities of the route names by a chat completion: from its log probabilities where it has them.

    None when the answer names no route, or more than one.
    """
    try:
        choice = completion["choices"][0]
        text = choice["message"]["content"]
    except (KeyError, IndexError, TypeError):
        return None
    route = parse_route(text, names) if isinstance(text, str) else None
    if route is None:
        return None
    read = _from_logprobs(choice.get("logprobs"), names)
    if read is not None and max(read, key=lambda name: read[name]) == route:
        return read
    sure = CONFIDENCE_WITHOUT_LOGPROBS if len(names) > 1 else 1.0
    rest = (1 - sure) / max(1, len(names) - 1)
    return {name: sure if name == route else rest for name in names}


def parse_route(text: str, names: Sequence[str]) -> str | None:
    """The one route that a model's answer names, or None.

    Takes JSON, single quotes, code fences, prose around it, thinking, a bare name, other case, spaces for underscores.
    """
    text = _THINKING.sub(" ", text[-MAX_ANSWER:]).strip()
    keys = Counter(map(_key, names))
    # Names that only differ in what a key leaves out (c, c++) are known by their exact spelling alone.
    by_key = {_key(name): name for name in names if keys[_key(name)] == 1 and _key(name)}

    def known(value: str) -> str | None:
        return value.strip() if value.strip() in names else by_key.get(_key(value))

    objects = [value for found in _OBJECT.findall(text) if (value := _route_of(found)) is not None]
    stated = {name for value in objects or _FIELD.findall(text) if (name := known(value)) is not None}
    if objects or stated:
        return stated.pop() if len(stated) == 1 else None
    return known(text) or _mentioned(text, by_key)


def _route_of(found: str) -> str | None:
    try:
        route = json.loads(found).get("route")
    except (ValueError, RecursionError):
        return None
    return route if isinstance(route, str) else None


def _mentioned(text: str, by_key: Mapping[str, str]) -> str | None:
    """The one name that occurs in a text; where one is part of another (book, book_flight), the longer one counts."""
    if not by_key:
        return None
    anyone = "|".join(re.escape(key) for key in sorted(by_key, key=len, reverse=True))
    found = set(re.findall(rf"(?<![^_])(?:{anyone})(?![^_])", _key(text)))
    return by_key[found.pop()] if len(found) == 1 else None


def _key(name: str) -> str:
    """A name's letters and digits in lower case, joined by underscores: what is left when a model spells it its own way."""
    return "_".join(re.findall(r"[^\W_]+", unicodedata.normalize("NFKC", name).casefold()))


@dataclass(frozen=True, slots=True)
class _Step:
    """One generated token, its probability, and the probabilities of the other tokens that could have stood there."""

    token: str
    probability: float
    others: Mapping[str, float]


def _from_logprobs(logprobs: Any, names: Sequence[str]) -> dict[str, float] | None:
    """The probability of each route by the alternatives at the tokens where the possible answers part.

    The possible answers are the one that was written, with each name in the place of the one that was chosen.
    """
    try:
        steps = [_step(step) for step in logprobs["content"]]
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError):
        return None
    written = "".join(step.token for step in steps)
    openings = list(_OPENING.finditer(written))
    if not openings:
        return None
    start, quote = written[: openings[-1].end()], openings[-1][1]
    mass = _spread(steps, {f"{start}{json.dumps(name, ensure_ascii=False)[1:-1]}{quote}": name for name in names})
    total = sum(mass.values())
    return {name: mass[name] / total for name in names} if math.isfinite(total) and total > 0 else None


def _step(step: Mapping[str, Any]) -> _Step:
    others = {option["token"]: _probability(option["logprob"]) for option in step.get("top_logprobs") or ()}
    token = step["token"]
    others.pop(token, None)
    return _Step("" + token, _probability(step["logprob"]), {"" + other: value for other, value in others.items()})


def _probability(logprob: float) -> float:
    if math.isnan(logprob):
        raise ValueError("not a number")
    return math.exp(min(0.0, logprob))


def _spread(steps: Sequence[_Step], answers: Mapping[str, str]) -> dict[str, float]:
    """How much of the probability goes to each name; nothing when something else than an answer was written.

    Mass that goes to tokens with which no answer goes on is left out, as a constrained decoder would have done; mass that
    several answers share is shared equally, as is the rest where a server does not say what the other tokens were.
    """
    mass = dict.fromkeys(answers.values(), 0.0)
    path, written, alive = 1.0, "", list(answers)
    for step in steps:
        going_on = _going_on(alive, written + step.token)
        taken = step.probability
        for token, probability in step.others.items():
            fitting = _going_on(alive, written + token)
            if fitting == going_on:
                taken += probability
                continue
            for answer in fitting:
                mass[answers[answer]] += path * probability / len(fitting)
        if not step.others:
            left = [answer for answer in alive if answer not in going_on]
            for answer in left:
                mass[answers[answer]] += path * (1 - taken) / len(left)
        path, written, alive = path * taken, written + step.token, going_on
        if len(alive) <= 1:
            break
    if not alive:
        return {}
    for answer in alive:
        mass[answers[answer]] += path / len(alive)
    return mass


def _going_on(answers: Sequence[str], written: str) -> list[str]:
    """The answers that begin with what is written, or that it completes."""
    return [answer for answer in answers if answer.startswith(written) or written.startswith(answer)]
