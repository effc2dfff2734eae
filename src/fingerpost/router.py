"""The decision for a request: hint, cache, classifier under its deadline, policy. A broken classifier never fails it."""

from __future__ import annotations

import asyncio
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Coroutine, Hashable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Generic, Literal, TypeVar, overload

import msgspec

from fingerpost import policy
from fingerpost.chat import ChatRequest, Conversation, Needs, RequestedRoute
from fingerpost.classifiers import Classifier, ask
from fingerpost.errors import ClassifierError, ConfigError, FingerpostError, InvalidRequest
from fingerpost.records import Decision, Verdict
from fingerpost.routes import AUTO, EVERYTHING, OTHER, Access, Route, RouteTable

MAX_REQUESTED_ROUTES = 500
"""Routes that one request may bring along; embedding them is the most work that a single request can ask for."""

MAX_REQUESTED_EXAMPLES = 2_000
"""Examples of all those routes together, for the same reason."""

Request = ChatRequest | Mapping[str, Any] | Sequence[Any] | str
"""What can be decided: a ChatRequest, a chat body, a list of messages, or one user message as text."""

Value = TypeVar("Value")


class Question(msgspec.Struct, frozen=True, gc=False):
    """What the classifier has to be asked for a decision, and what the decision needs beside its answer."""

    start: float
    conversation: Conversation
    table: RouteTable
    key: Hashable
    needs: Needs
    access: Access


class _Choice(msgspec.Struct, frozen=True, gc=False):
    """A decision, and what the policy made it of beside the verdict."""

    table: RouteTable
    needs: Needs
    access: Access
    decision: Decision


class _Remembered(msgspec.Struct, gc=False):
    """A verdict, and what the policy chose by it the last time: it is pure, so the same again for the same."""

    verdict: Verdict
    last: _Choice | None = None

    def choose(self, table: RouteTable, needs: Needs, access: Access) -> Decision:
        """What `policy.choose` says of the verdict."""
        last = self.last
        if last is None or last.table is not table or last.access is not access or last.needs != needs:
            last = self.last = _Choice(table, needs, access, policy.choose(table, needs, self.verdict, access=access))
        return last.decision


class Router:
    """Decides where requests go.

    `cache_size` bounds the remembered verdicts (0: remember none); `keyed_metadata` names the metadata that rules look at,
    so that conversations which differ in it are told apart.
    """

    def __init__(
        self,
        table: RouteTable,
        classifier: Classifier,
        *,
        cache_size: int = 10_000,
        keyed_metadata: Sequence[str] = (),
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        if OTHER not in table.by_name:
            table = RouteTable((*table.routes, Route(OTHER)), table.backends)
        self.table = table
        self.classifier = classifier
        self._keyed_metadata = tuple(keyed_metadata)
        self._remembered: _Cache[_Remembered] = _Cache(cache_size)
        self._tables: _Cache[RouteTable] = _Cache(min(cache_size, 256))
        self._clock = clock
        self._thread: _LoopThread | None = None
        self._starting = threading.Lock()

    @classmethod
    def from_file(cls, path: str | Path | None = None, environ: Mapping[str, str] | None = None) -> Router:
        """A router that decides by a configuration file, or by the default routes; needs none of the file's API keys.

        `environ` replaces the process's environment for `${NAME}`.

        Raises:
            ConfigError: everything that is wrong with the file.
        """
        # What builds from a configuration knows all classes and stands further out; this name is where users look for it.
        from fingerpost import assemble

        return assemble.load_router(path or assemble.DEFAULT_FILE, environ)

    async def prepare(self) -> None:
        """Gets the classifier ready for this router's routes, so that the first request does not wait for it."""
        await self.classifier.prepare(self.table)

    def remember(self, other: Router) -> None:
        """Takes over the verdicts that another router remembers; it must have the same classifier. Tables are told apart."""
        # Not what was chosen by them: that would keep tables of long ago.
        for key, remembered in other._remembered.items():
            self._remembered.put(key, _Remembered(remembered.verdict))

    async def decide(self, request: Request, access: Access = EVERYTHING) -> Decision:
        """The decision for a request: a ChatRequest, a chat body, a list of messages, or one user message as text.

        What the client may use (`access`) is looked at after the verdict, so that clients can share remembered verdicts.

        Raises:
            InvalidRequest: the request, or a route that it brings along, has the wrong shape.
            UnknownModel: it names a model that is neither a route nor a backend.
            NothingFits: constraints leave no backend that could serve it.
            Refused: `access` leaves none.
        """
        found = self.look_up(_as_request(request), access)
        return found if isinstance(found, Decision) else await self.settle(found)

    def look_up(self, request: ChatRequest, access: Access = EVERYTHING) -> Decision | Question:
        """The decision for a request that names a route or a backend, or whose verdict is remembered; else what to `settle`.

        Raises what `decide` does.
        """
        start, table = self._clock(), self.table
        if request.routes is not None:
            table, access = self._scope(request.routes, access)
        if request.model != AUTO:
            decision = policy.obey(table, request.needs, request.model, access)
            return decision.timed(self._clock() - start, cached=False)
        conversation = request.conversation
        key = self._key(conversation, table)
        remembered = self._remembered.get(key)
        if remembered is None:
            return Question(start, conversation, table, key, request.needs, access)
        decision = remembered.choose(table, request.needs, access)
        return decision.timed(self._clock() - start, cached=True)

    async def settle(self, question: Question) -> Decision:
        """The decision that the classifier has to be asked for.

        Raises what `decide` does.
        """
        verdict, why_not = await self._ask(question.conversation, question.table, question.key)
        decision = policy.choose(question.table, question.needs, verdict, why_not, question.access)
        return decision.timed(self._clock() - question.start, cached=False)

    def _scope(self, requested: tuple[RequestedRoute, ...], access: Access) -> tuple[RouteTable, Access]:
        """The table of routes that a request brings along, and what its client may use of it."""
        # Their names are the client's own to choose; which backends it may reach by them is not.
        return self._table_of(requested), Access(backends=access.backends)

    async def believe(self, conversation: Conversation, table: RouteTable) -> Verdict:
        """What the classifier believes about the routes of a table that is not this router's own; nothing is decided.

        Raises:
            ClassifierError: it has no verdict.
        """
        key = self._key(conversation, table)
        remembered = self._remembered.get(key)
        if remembered is not None:
            return remembered.verdict
        verdict, why_not = await self._ask(conversation, table, key)
        if verdict is None:
            raise ClassifierError(why_not)
        return verdict

    def decide_sync(self, request: Request) -> Decision:
        """`decide` for code without an event loop; works beside a running one too (a notebook's, for example)."""
        return self._beside().run(self.decide(request))

    @overload
    def decide_many(
        self, requests: Iterable[Request], *, concurrency: int = ..., return_errors: Literal[False] = ...
    ) -> list[Decision]: ...

    @overload
    def decide_many(
        self, requests: Iterable[Request], *, concurrency: int = ..., return_errors: bool
    ) -> list[Decision | FingerpostError]: ...

    def decide_many(
        self, requests: Iterable[Request], *, concurrency: int = 16, return_errors: bool = False
    ) -> Sequence[Decision | FingerpostError]:
        """The decisions for many requests in their order, `concurrency` at a time: rows of a file, a data frame's column.

        Waits for them like `decide_sync`. With `return_errors` a row that cannot be decided has its error in its place.

        Raises:
            FingerpostError: what `decide` raises, for the first such row; its message names the row, counted from 0. All
                rows are read before the first is decided.
        """
        if isinstance(requests, str | Mapping):
            raise InvalidRequest("this is one request and not many; decide_sync takes one")
        read = [_try_as_request(request, row) for row, request in enumerate(requests)]
        wrong = [result for result in read if isinstance(result, FingerpostError)]
        if wrong and not return_errors:
            raise wrong[0]
        return self._beside().run(self._decide_all(read, concurrency, return_errors))

    async def aclose(self) -> None:
        """Closes the classifier."""
        if self._thread is not None:
            thread, self._thread = self._thread, None
            thread.close(self.classifier.aclose())  # what it opened in that thread's loop, it can only close there
        await self.classifier.aclose()

    def _beside(self) -> _LoopThread:
        with self._starting:
            thread = self._thread = self._thread or _LoopThread()
        return thread

    async def _decide_all(
        self, read: list[ChatRequest | FingerpostError], concurrency: int, return_errors: bool
    ) -> list[Decision | FingerpostError]:
        results: dict[int, Decision | FingerpostError] = {}
        rows = iter(enumerate(read))

        async def work() -> None:
            for row, request in rows:
                if isinstance(request, FingerpostError):
                    results[row] = request
                    continue
                try:
                    results[row] = await self.decide(request)
                except FingerpostError as error:
                    results[row] = _of_row(error, row)
                    if not return_errors:
                        raise

        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(min(concurrency, len(read))):
                    group.create_task(work())
        except ExceptionGroup as failed:
            raise failed.exceptions[0] from None
        return [results[row] for row in range(len(read))]

    def _key(self, conversation: Conversation, table: RouteTable) -> Hashable:
        """What a verdict is remembered by."""
        keyed, metadata = self._keyed_metadata, conversation.metadata
        seen = tuple([metadata.get(key) for key in keyed]) if keyed else ()
        return conversation.digest, table.digest, seen

    async def _ask(self, conversation: Conversation, table: RouteTable, key: Hashable) -> tuple[Verdict | None, str]:
        """The classifier's verdict, remembered from now on, or why there is none."""
        start = self._clock()
        verdict, failure = await ask(self.classifier, conversation, table)
        if verdict is None:
            return None, failure or f"{self.classifier.name} has no opinion"
        verdict = msgspec.structs.replace(verdict, elapsed=self._clock() - start)
        if not verdict.provisional:
            self._remembered.put(key, _Remembered(verdict))
        return verdict, ""

    def _table_of(self, requested: tuple[RequestedRoute, ...]) -> RouteTable:
        table = self._tables.get(requested)
        if table is None:
            table = _build_table(requested, self.table)
            self._tables.put(requested, table)
        return table


def _try_as_request(request: Request, row: int) -> ChatRequest | FingerpostError:
    try:
        return _as_request(request)
    except FingerpostError as error:
        return _of_row(error, row)


def _of_row(error: FingerpostError, row: int) -> FingerpostError:
    """The error, saying which row it is about."""
    error.message = f"row {row}: {error.message}"
    error.args = (error.message,)
    return error


def _as_request(request: Request) -> ChatRequest:
    if isinstance(request, ChatRequest):
        return request
    if isinstance(request, Mapping) or hasattr(request, "model_dump"):
        return ChatRequest.parse(request)  # type: ignore[arg-type]
    return ChatRequest.from_messages(request)


def _build_table(requested: tuple[RequestedRoute, ...], configured: RouteTable) -> RouteTable:
    """A table of the routes that a request brought; one without backends gets those of its configured namesake or `other`."""
    if len(requested) > MAX_REQUESTED_ROUTES:
        raise InvalidRequest(f"fingerpost.routes: more than {MAX_REQUESTED_ROUTES} routes", param="fingerpost.routes")
    if sum(len(route.examples) for route in requested) > MAX_REQUESTED_EXAMPLES:
        raise InvalidRequest(f"fingerpost.routes: more than {MAX_REQUESTED_EXAMPLES} examples", param="fingerpost.routes")
    default = configured.by_name[OTHER].backends
    routes = []
    for route in requested:
        known = configured.by_name.get(route.name)
        backends = route.backends or (known.backends if known else default)
        routes.append(Route(route.name, route.description, route.examples, backends))
    if all(route.name != OTHER for route in routes):
        routes.append(Route(OTHER, backends=default))
    try:
        return RouteTable(tuple(routes), configured.backends)
    except ConfigError as error:
        problem = error.problems[0]
        path = f"fingerpost.{problem.path}"
        raise InvalidRequest(f"{path}: {problem.what}. {problem.fix}", param=path) from None


class _Cache(Generic[Value]):
    """The most recently used `size` values; one is shared by the threads of `decide` and `decide_sync`."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._values: OrderedDict[Hashable, Value] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: Hashable) -> Value | None:
        with self._lock:
            value = self._values.get(key)
            if value is not None:
                self._values.move_to_end(key)
            return value

    def put(self, key: Hashable, value: Value) -> None:
        with self._lock:
            self._values[key] = value
            if len(self._values) > self._size:
                self._values.popitem(last=False)

    def items(self) -> list[tuple[Hashable, Value]]:
        """All of them, the one that was used last at the end."""
        with self._lock:
            return list(self._values.items())


class _LoopThread:
    """An event loop in a daemon thread, for synchronous callers."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._serve, name="fingerpost-sync", daemon=True)
        self._thread.start()

    def run(self, work: Coroutine[Any, Any, Value]) -> Value:
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result()
        except BaseException:  # Ctrl-C, say: nobody waits for the rest
            future.cancel()
            raise

    def close(self, work: Coroutine[Any, Any, None]) -> None:
        try:
            self.run(work)
        finally:
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()

    def _serve(self) -> None:
        self._loop.run_forever()
        self._loop.close()
