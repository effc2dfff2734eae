"""Precedents: what users asked of the routes that training knows, so that a new route is read as what will be asked of it.

Among the vectors, a description lies beside the requests for it, and where they lie from there differs from subject to
subject. So each text of a route is drawn towards the mean request of known routes whose texts are like it: the
Nadaraya-Watson estimate, or attention with known texts as keys and their requests as values.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float32]

SHARE, SHARE_BARE = 0.3, 0.6
"""How much of the requests expected is added to a text's own vector, and to that of a name alone, which says less."""

FOCUS = 60.0
"""How much more a likeness of one weighs than one of zero, as the exponent of e: few precedents decide."""


@dataclass(frozen=True)
class Precedents:
    """Known routes (rows) by what they say and what was asked of them, as coordinates in a `basis` (width x dimensions)."""

    basis: Array
    texts: Array
    asked: Array

    @classmethod
    def load(cls, path: Path) -> Precedents:
        """The precedents of an artifact."""
        with np.load(path, allow_pickle=False) as stored:
            basis, step = stored["basis"].astype(np.float32), np.float32(stored["step"])
            return cls(basis, stored["texts"] * step, stored["asked"] * step)

    def save(self, path: Path) -> None:
        """Writes them with a byte for each coordinate."""
        step = np.float32(max(np.abs(self.texts).max(), np.abs(self.asked).max()) / 127)
        texts, asked = (np.rint(rows / step).astype(np.int8) for rows in (self.texts, self.asked))
        np.savez(path, basis=self.basis.astype(np.float16), texts=texts, asked=asked, step=step)

    @cached_property
    def usual(self) -> Array:
        """What users ask on average (width)."""
        mean: Array = units(self.asked @ self.basis.T).mean(0)
        return mean

    def draw(self, vectors: Array, bare: Sequence[bool]) -> Array:
        """Unit vectors of route texts (rows x width), drawn towards what is probably asked of such a route.

        `bare` says which are names alone.
        """
        said, shares = units(vectors), np.where(np.array(bare, bool), SHARE_BARE, SHARE).astype(np.float32)[:, None]
        likeness = said @ self.basis @ self.texts.T
        weights = np.exp((likeness - likeness.max(1, keepdims=True)) * np.float32(FOCUS))
        return units(said + shares * units(weights @ self.asked @ self.basis.T))


def units(vectors: Array) -> Array:
    """The vectors (along the last axis) at a length of one; one of no length stays as it is."""
    scaled: Array = vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-6)
    return scaled
