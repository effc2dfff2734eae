"""The encoder at run time: token ids in, unit vectors out, on ONNX Runtime with one thread."""

from __future__ import annotations

import json
import os
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer

from fingerpost.classifiers.embedded.precedents import Precedents
from fingerpost.classifiers.embedded.spelling import Spelling, whole_words
from fingerpost.classifiers.embedded.text import PAD, Laid, Tokenize, lay_out_asked, lay_out_route

# ONNX Runtime for Linux keeps a device id and reports to its maker unless it is told not to before it loads; a gateway speaks
# to its backends and to nobody else.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # noqa: TID251

import onnxruntime

Array = npt.NDArray[np.float32]

ARTIFACT = Path(__file__).with_name("artifact")
"""The trained model that ships in the package."""

FORMAT = 5
"""The artifact format that this code reads."""

BATCH = 160
"""Tokens of a batch: from here on, more of them take a core as much longer as they are more."""

PADDING = 6
"""Tokens by which texts of a batch may differ: padding more takes a core longer than another batch."""

_FEW = 8
_KEPT_TEXTS = 16384


@dataclass(frozen=True, slots=True)
class Encoded:
    """Texts as the model sees them: unit vectors (rows x width) and, for each, the score of none-of-these (rows)."""

    vectors: Array
    none: Array


class Encoder:
    """Runs the trained encoder; `settings` is the artifact's JSON.

    `threads` work on one batch, and up to `at_once` batches are worked on where there are many.

    Raises:
        ValueError: the artifact has a format that this code does not read.
    """

    def __init__(self, artifact: Path = ARTIFACT, threads: int = 1, at_once: int = 1) -> None:
        self.settings: dict[str, Any] = json.loads((artifact / "artifact.json").read_text(encoding="utf-8"))
        if self.settings.get("format") != FORMAT:
            raise ValueError(f"{artifact} has format {self.settings.get('format')}, but this version reads {FORMAT}")
        self._artifact = artifact
        # Tokenizer.from_file does not say which file is missing.
        self._tokenizer = Tokenizer.from_str((artifact / "tokenizer.json").read_text(encoding="utf-8"))
        # "[SEP]" in a message is text like any other.
        self._tokenizer.encode_special_tokens = True
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        # An arena that grows with the largest text and never shrinks costs memory; one text at a time needs little.
        options.enable_cpu_mem_arena = False
        options.log_severity_level = 3
        self._session = onnxruntime.InferenceSession(
            str(artifact / "encoder.onnx"), options, providers=["CPUExecutionProvider"]
        )
        self._at_once = at_once
        self._vectors: OrderedDict[tuple[object, str], Array] = OrderedDict()
        vocabulary = self._tokenizer.get_vocab(with_added_tokens=False)
        self.spelling = Spelling([*whole_words(vocabulary), *(artifact / "words.txt").read_text(encoding="utf-8").split()])

    @cached_property
    def precedents(self) -> Precedents:
        """What users asked of the routes that training knows."""
        return Precedents.load(self._artifact / "precedents.npz")

    def tokenize(self, text: str) -> list[int]:
        """The token ids of a text, without any mark."""
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=False).ids
        return ids

    def encode(self, laid: Sequence[Laid]) -> Encoded:
        """Laid-out texts in their order; those of similar lengths run together, which changes nothing about any of them."""
        vectors, none = self._room(len(laid))
        for places in _batches(laid):
            vectors[places], none[places] = self._run([laid[place] for place in places])
        return Encoded(vectors, none)

    def encode_many(self, laid: Sequence[Laid]) -> Encoded:
        """The same, shared among `at_once` threads where there are many."""
        if self._at_once == 1 or len(laid) <= _FEW:
            return self.encode(laid)
        vectors, none = self._room(len(laid))

        def run(places: list[int]) -> None:
            vectors[places], none[places] = self._run([laid[place] for place in places])

        with ThreadPoolExecutor(self._at_once) as pool:
            list(pool.map(run, _batches(laid)))
        return Encoded(vectors, none)

    def encode_routes(self, texts: Sequence[str]) -> Array:
        """Vectors of route texts; they are kept, for requests that bring their own routes mostly bring the same ones again."""
        return self._kept(texts, lay_out_route)

    def encode_asked(self, phrases: Sequence[str]) -> Array:
        """Vectors of users who ask for what a phrase names; they are kept, too."""
        return self._kept(phrases, lay_out_asked)

    def _kept(self, texts: Sequence[str], lay: Callable[[str, Tokenize], Laid]) -> Array:
        missing = [text for text in dict.fromkeys(texts) if (lay, text) not in self._vectors]
        encoded = self.encode_many([lay(text, self.tokenize) for text in missing])
        self._vectors.update(zip(((lay, text) for text in missing), encoded.vectors, strict=True))
        width = int(self.settings["width"])
        found = np.array([self._vectors[lay, text] for text in texts], np.float32).reshape(len(texts), width)
        while len(self._vectors) > _KEPT_TEXTS:
            self._vectors.popitem(last=False)
        return found

    def _room(self, rows: int) -> tuple[Array, Array]:
        return np.empty((rows, int(self.settings["width"])), np.float32), np.empty(rows, np.float32)

    def _run(self, laid: Sequence[Laid]) -> tuple[Array, Array]:
        longest = max(len(one.ids) for one in laid)
        ids, segments = np.full((len(laid), longest), PAD, np.int32), np.zeros((len(laid), longest), np.int32)
        for row, one in enumerate(laid):
            ids[row, : len(one.ids)], segments[row, : len(one.ids)] = one.ids, one.segments
        vectors, none = self._session.run(None, {"ids": ids, "segments": segments})
        return vectors, none


def _batches(laid: Sequence[Laid]) -> Iterator[list[int]]:
    """The places of texts that run together: of `BATCH` tokens at most, with little padding."""
    batch: list[int] = []
    longest = 0
    for place in sorted(range(len(laid)), key=lambda place: -len(laid[place].ids)):
        length = len(laid[place].ids)
        if batch and ((len(batch) + 1) * longest > BATCH or longest - length > PADDING):
            yield batch
            batch = []
        if not batch:
            longest = length
        batch.append(place)
    if batch:
        yield batch
