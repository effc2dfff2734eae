"""Changing an input without losing its shape: tokens are moved, doubled, dropped and replaced, not only bytes."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Sequence

_TOKEN = re.compile(rb'"(?:[^"\\]|\\.)*"|[A-Za-z0-9_]+|\r\n|\s+|.', re.DOTALL)

Change = Callable[[list[bytes], random.Random, Sequence[bytes]], None]


def mutated(data: bytes, longest: int, random_: random.Random, words: Sequence[bytes]) -> bytes:
    """The input with one to four changes at its tokens, at most `longest` bytes of it."""
    tokens = _TOKEN.findall(data) or [b""]
    for _ in range(random_.choice((1, 1, 2, 4))):
        random_.choice(_CHANGES)(tokens, random_, words)
    return b"".join(tokens)[:longest]


def _some(tokens: Sequence[bytes], random_: random.Random) -> slice:
    start = random_.randrange(len(tokens) + 1)
    return slice(start, start + random_.choice((0, 1, 1, 2, 3, 5, 8, 20)))


def _drop(tokens: list[bytes], random_: random.Random, words: Sequence[bytes]) -> None:
    del tokens[_some(tokens, random_)]


def _double(tokens: list[bytes], random_: random.Random, words: Sequence[bytes]) -> None:
    place = random_.randrange(len(tokens) + 1)
    tokens[place:place] = tokens[_some(tokens, random_)] * random_.choice((1, 1, 1, 2, 30))


def _replace(tokens: list[bytes], random_: random.Random, words: Sequence[bytes]) -> None:
    tokens[_some(tokens, random_)] = [random_.choice(words)]


def _insert(tokens: list[bytes], random_: random.Random, words: Sequence[bytes]) -> None:
    tokens.insert(random_.randrange(len(tokens) + 1), random_.choice(words))


def _swap(tokens: list[bytes], random_: random.Random, words: Sequence[bytes]) -> None:
    one, two = _some(tokens, random_), _some(tokens, random_)
    tokens[one], tokens[two] = tokens[two], tokens[one]


def _spell(tokens: list[bytes], random_: random.Random, words: Sequence[bytes]) -> None:
    """Writes a letter of a token as a JSON escape, in the other case, or as another byte."""
    if not tokens:
        return
    place = random_.randrange(len(tokens))
    token = tokens[place]
    if token:
        at = random_.randrange(len(token))
        other = random_.choice((b"\\u%04x" % token[at], token[at : at + 1].swapcase(), bytes([random_.randrange(256)])))
        tokens[place] = token[:at] + other + token[at + 1 :]


_CHANGES: tuple[Change, ...] = (_drop, _double, _replace, _insert, _swap, _spell)
