"""Likeness in wording: texts as counts of their runs of letters, so that words the encoder blurs still tell routes apart.

Runs are hashed with a sign into a fixed number of places (Weinberger et al. 2009, "Feature Hashing for Large Scale Multitask
Learning"), so a text needs no dictionary and a product of two vectors is their likeness, up to a little noise.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float32]

PLACES = 512
RUNS = (3, 4)
_MIX, _SCRAMBLE = np.uint32(0x9E3779B1), np.uint32(0x85EBCA77)


def letters(texts: Sequence[str]) -> Array:
    """Unit vectors of the texts, rows x `PLACES`; zeros for a text without a run of letters."""
    counts = np.array([_counts(text) for text in texts], np.float32).reshape(len(texts), PLACES)
    units: Array = counts / np.maximum(np.linalg.norm(counts, axis=1, keepdims=True), 1e-6)
    return units


def _counts(text: str) -> npt.NDArray[Any]:
    codes = np.frombuffer(f" {' '.join(text.lower().split())} ".encode("utf-32-le", "replace"), np.uint32)
    hashes = [_hashes(codes, length) for length in RUNS if len(codes) >= length]
    found = np.unique(np.concatenate(hashes)) if hashes else np.empty(0, np.uint32)
    found ^= found >> np.uint32(13)
    signs = np.where((found >> np.uint32(16)) & np.uint32(1), 1.0, -1.0)
    return np.bincount(found % np.uint32(PLACES), weights=signs, minlength=PLACES)


def _hashes(codes: npt.NDArray[np.uint32], length: int) -> npt.NDArray[np.uint32]:
    count = len(codes) - length + 1
    mixed = np.zeros(count, np.uint32)
    for offset in range(length):
        mixed = (mixed ^ codes[offset : offset + count]) * _MIX
        mixed ^= mixed >> np.uint32(15)
    return mixed * _SCRAMBLE ^ np.uint32(length)
