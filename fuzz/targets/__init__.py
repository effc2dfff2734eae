"""What is fuzzed, and what is promised of it."""

from __future__ import annotations

import random
import zlib
from itertools import pairwise


def cuttings(data: bytes) -> list[list[bytes]]:
    """The data in pieces, in a few ways that depend on it alone: byte by byte where it is short, else at random places."""
    places = random.Random(zlib.crc32(data))
    ways = [[data[i : i + 1] for i in range(len(data))]] if len(data) < 120 else []
    for count in (1, 4):
        edges = sorted(places.randrange(len(data) + 1) for _ in range(count))
        ways.append([data[one:two] for one, two in pairwise([0, *edges, len(data)]) if one < two])
    return ways
