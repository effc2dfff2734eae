"""The embedded classifier: a small trained encoder that reads conversations and route descriptions, on one CPU core."""

from __future__ import annotations

import asyncio
import os
import time
from collections import OrderedDict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from threading import Lock

import numpy as np

from fingerpost.chat import Conversation
from fingerpost.classifiers.embedded.batching import Batcher
from fingerpost.classifiers.embedded.encoder import ARTIFACT, BATCH, Array, Encoder
from fingerpost.classifiers.embedded.letters import letters
from fingerpost.classifiers.embedded.matcher import Calibration, Matcher, teach
from fingerpost.classifiers.embedded.reading import read_routes
from fingerpost.classifiers.embedded.spelling import cleaner
from fingerpost.classifiers.embedded.text import Clean, Laid, Turn, lay_out, route_text
from fingerpost.records import Verdict
from fingerpost.routes import OTHER, Route, RouteTable

LOOKALIKE = 0.93
"""Routes whose descriptions are more similar than this are hard to tell apart."""

CUT_NOTE = "the latest message is long: its beginning and its end were read"

_KEPT_TABLES = 64


@dataclass(frozen=True, slots=True)
class _LaidOut:
    """A conversation as the encoder reads it, what it is compared with, and since when it has been worked on."""

    laid: Laid
    matcher: Matcher
    began: float


def _tokens(asked: _LaidOut) -> int:
    return len(asked.laid.ids)


class Embedded:
    """Reads with the trained encoder; what it computes for a table is kept by the table's digest.

    Encoding runs in `threads` worker threads, one for each CPU core unless given, so that a decision never blocks the event
    loop. Conversations that wait for a thread are encoded together; the many texts of a large table are shared among as many.
    Tables that are new are read in a thread of their own, one after the other: hundreds of routes take seconds, which nobody
    else should wait for.
    """

    name = "embedded"
    deadline: float | None = None

    def __init__(self, artifact: Path = ARTIFACT, threads: int | None = None) -> None:
        self._artifact = artifact
        self._threads = threads or cores()
        self._batches = Batcher(self._lay_out, _tokens, self._verdicts, BATCH, self._threads)
        self._reader = ThreadPoolExecutor(1, thread_name_prefix="fingerpost-embedded-routes")
        self._tables: OrderedDict[bytes, tuple[Matcher, Clean]] = OrderedDict()
        self._lock = Lock()
        self._reading = Lock()

    async def prepare(self, table: RouteTable) -> None:
        """Loads the model, encodes the table's routes and learns from its examples."""
        await asyncio.get_running_loop().run_in_executor(self._reader, self.matcher, table)

    async def classify(self, conversation: Conversation, table: RouteTable) -> Verdict:
        """Calibrated probabilities of the table's routes and of `other`."""
        if table.digest not in self._tables:
            await self.prepare(table)
        return await self._batches.ask((conversation, table))

    async def aclose(self) -> None:
        """Stops the worker threads."""
        self._batches.close()
        self._reader.shutdown(wait=False, cancel_futures=True)

    def read(self, conversation: Conversation, table: RouteTable) -> Verdict:
        """What `classify` answers, in the calling thread."""
        [verdict] = self._verdicts([self._lay_out((conversation, table))])
        return verdict

    def _lay_out(self, asked: tuple[Conversation, RouteTable]) -> _LaidOut:
        began = time.perf_counter()
        conversation, table = asked
        matcher, clean = self.matcher(table)
        turns = [Turn(message.role, message.text, message.media) for message in conversation.messages]
        return _LaidOut(lay_out(turns, self._encoder.tokenize, clean), matcher, began)

    def _verdicts(self, several: Sequence[_LaidOut]) -> list[Verdict]:
        encoded = self._encoder.encode([one.laid for one in several])
        return [
            self._verdict(one, encoded.vectors[row : row + 1], encoded.none[row : row + 1]) for row, one in enumerate(several)
        ]

    def _verdict(self, asked: _LaidOut, vector: Array, none: Array) -> Verdict:
        laid, matcher = asked.laid, asked.matcher
        shares = matcher.probabilities(vector, none, letters([laid.said]) if matcher.lesson else None)[0]
        probabilities = dict(zip((*matcher.names, OTHER), shares.tolist(), strict=True))
        return Verdict(probabilities, self.name, time.perf_counter() - asked.began, CUT_NOTE if laid.cut else "")

    def lookalikes(self, table: RouteTable) -> list[tuple[str, str, float]]:
        """Pairs of routes that the model can hardly tell apart, with or without their names, and their similarity."""
        routes = table.described
        whole = [route_text(route.name, route.description) for route in routes]
        nameless = [route_text("", route.description) if route.description else route.name for route in routes]
        with self._reading:
            named, described = self._encoder.encode_routes(whole), self._encoder.encode_routes(nameless)
        alike = np.maximum(named @ named.T, described @ described.T)
        places = np.argwhere(np.triu(alike, 1) > LOOKALIKE)
        return [(routes[one].name, routes[two].name, float(alike[one, two])) for one, two in places.tolist()]

    def matcher(self, table: RouteTable) -> tuple[Matcher, Clean]:
        """A table's routes as the model sees them, and what cleans requests to it."""
        if (found := self._known(table)) is not None:
            return found
        with self._reading:
            found = self._known(table)  # another thread may have read it meanwhile
            if found is None:
                texts = [text for route in table.routes for text in (route.name, route.description, *route.examples)]
                names = [route.name for route in table.routes]
                found = self._match(table.described), cleaner(names, texts, self._encoder.spelling)
                with self._lock:
                    self._tables[table.digest] = found
                    while len(self._tables) > _KEPT_TABLES:
                        self._tables.popitem(last=False)
            return found

    def _known(self, table: RouteTable) -> tuple[Matcher, Clean] | None:
        with self._lock:
            found = self._tables.get(table.digest)
            if found is not None:
                self._tables.move_to_end(table.digest)
            return found

    @cached_property
    def _encoder(self) -> Encoder:
        return Encoder(self._artifact, at_once=self._threads)

    def _match(self, routes: tuple[Route, ...]) -> Matcher:
        calibration = Calibration.from_json(self._encoder.settings["calibration"])
        matcher = read_routes(self._encoder, [(route.name, route.description) for route in routes], calibration)
        examples = [(place, example) for place, route in enumerate(routes) for example in route.examples]
        if not examples:
            return matcher
        mend = self._encoder.spelling.mend
        laid = [lay_out([Turn("user", example)], self._encoder.tokenize, mend) for _, example in examples]
        seen = self._encoder.encode_many(laid).vectors
        places, spelled = [place for place, _ in examples], letters([one.said for one in laid])
        return replace(matcher, lesson=teach(matcher, seen, places, spelled))


def cores() -> int:
    """The number of CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
