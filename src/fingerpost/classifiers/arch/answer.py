"""Reading what a router model answered. Pure: a chat completion in, probabilities or None out."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

CONFIDENCE_WITHOUT_LOGPROBS = 0.93
"""What a bare answer is worth: how often Arch-Router-1.5B is right by its paper (arXiv 2506.16655, table 3)."""

_THINKING = re.compile(r"<think(?:ing)?>.*?(?:</think(?:ing)?>|\Z)", re.DOTALL | re.IGNORECASE)
_OBJECT = re.compile(r"\{[^{}]*\}")
_FIELD = re.compile(r"""["'`]?route["'`]?\s*[:=]\s*["'`]?([^"'`{}\n,]+)""", re.IGNORECASE)


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
    rest = (1 - CONFIDENCE_WITHOUT_LOGPROBS) / max(1, len(names) - 1)
    return {name: CONFIDENCE_WITHOUT_LOGPROBS if name == route else rest for name in names}


def parse_route(text: str, names: Sequence[str]) -> str | None:
    """The one route that a model's answer names, or None.

    Takes JSON, single quotes, code fences, prose around it, thinking, a bare name, other case, spaces for underscores.
    """
    text = _THINKING.sub(" ", text).strip()
    by_key = {_key(name): name for name in names}
    for candidate in [*(_route_of(found) for found in reversed(_OBJECT.findall(text))), text]:
        if candidate is not None and _key(candidate) in by_key:
            return by_key[_key(candidate)]
    stated = {by_key[_key(value)] for value in _FIELD.findall(text) if _key(value) in by_key}
    if len(stated) == 1:
        return stated.pop()
    words = f" {_key(text)} "
    mentioned = {name for key, name in by_key.items() if key and f"_{key}_" in words.replace(" ", "_")}
    longest = {name for name in mentioned if not any(_key(name) in _key(o) for o in mentioned if o != name)}
    return longest.pop() if len(longest) == 1 else None


def _route_of(found: str) -> str | None:
    try:
        value = json.loads(found)
    except ValueError:
        match = _FIELD.search(found)
        return match[1] if match else None
    route = value.get("route") if isinstance(value, dict) else None
    return route if isinstance(route, str) else None


def _key(name: str) -> str:
    """A name's letters and digits in lower case, joined by underscores: what is left when a model spells it its own way."""
    return "_".join(re.findall(r"[^\W_]+", name.casefold()))


def _from_logprobs(logprobs: Any, names: Sequence[str]) -> dict[str, float] | None:
    """The probability of each route by the alternatives at the tokens where the possible answers part.

    Mass that goes to tokens with which no answer begins is left out, as a constrained decoder would have done; mass that
    several answers share is shared equally.
    """
    answers = {json.dumps({"route": name}, ensure_ascii=False): name for name in names}
    mass = dict.fromkeys(names, 0.0)
    path, written, alive = 1.0, "", list(answers)
    try:
        for step in logprobs["content"]:
            for option in step["top_logprobs"]:
                if option["token"] == step["token"]:
                    continue
                fitting = [answer for answer in alive if answer.startswith(written + option["token"])]
                for answer in fitting:
                    mass[answers[answer]] += path * math.exp(option["logprob"]) / len(fitting)
            path *= math.exp(step["logprob"])
            written += step["token"]
            alive = [answer for answer in alive if answer.startswith(written)]
            if len(alive) <= 1:
                break
    except (KeyError, TypeError, ValueError, OverflowError):
        return None
    for answer in alive:
        mass[answers[answer]] += path / len(alive)
    total = sum(mass.values())
    return {name: value / total for name, value in mass.items()} if alive and total > 0 else None
