from __future__ import annotations

import asyncio
import gc
import signal
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from itertools import count

import pytest
from pydantic import BaseModel

from fingerpost.chat import ChatRequest
from fingerpost.classifiers.fixed import Fixed
from fingerpost.classifiers.rules import Rule, Rules
from fingerpost.errors import ClassifierError, ConfigError, InvalidRequest, NothingFits, UnknownModel
from fingerpost.records import Verdict
from fingerpost.router import MAX_REQUESTED_EXAMPLES, MAX_REQUESTED_ROUTES, Router
from fingerpost.routes import EVERYTHING, OTHER, Access, Backend, Route, RouteTable
from fingerpost.testing import ScriptedClassifier

SMALL, BIG = Backend("small", "s", "http://s"), Backend("big", "b", "http://b")
TABLE = RouteTable(
    (
        Route("chat", "Chat.", backends=("small",)),
        Route("hard", "Hard.", backends=("big", "small")),
        Route(OTHER, backends=("small",)),
    ),
    {"small": SMALL, "big": BIG},
)
HARD = Verdict({"hard": 0.9, "other": 0.1}, "scripted")
CHAT = Verdict({"chat": 0.8, "other": 0.2}, "scripted")


def router_of(*script, **options) -> tuple[Router, ScriptedClassifier]:
    classifier = ScriptedClassifier(*script)
    return Router(TABLE, classifier, **options), classifier


def bring(*routes, content="hi", **fields):
    return {"messages": [{"role": "user", "content": content}], "fingerpost": {"routes": list(routes)}, **fields}


class Body(BaseModel):
    messages: list[dict[str, str]]


class Broken:
    """A classifier that does whatever `classify` does."""

    name = "broken"

    def __init__(self, classify, deadline=None):
        self.deadline = deadline
        self.classify = classify

    async def prepare(self, table):
        pass

    async def aclose(self):
        pass


# Decisions


async def test_the_classifier_decides():
    router, _ = router_of(HARD)

    decision = await router.decide("Why?")

    assert (decision.route, decision.backends, decision.source) == ("hard", (BIG, SMALL), "scripted")
    assert (decision.confidence, decision.cached) == (0.9, False)


@pytest.mark.parametrize(
    "request_",
    [
        "hi",
        [{"role": "user", "content": "hi"}],
        ({"role": "user", "content": "hi"},),
        {"messages": [{"role": "user", "content": "hi"}]},
        ChatRequest.from_messages("hi"),
        Body(messages=[{"role": "user", "content": "hi"}]),
    ],
)
async def test_a_request_may_come_in_any_form(request_):
    router, classifier = router_of(HARD)

    assert (await router.decide(request_)).route == "hard"
    assert classifier.seen[0].text == "hi"


@pytest.mark.parametrize("request_", [[], {}, [5], {"messages": "hi"}, [{"role": "bot"}]])
async def test_a_request_of_the_wrong_shape_is_refused(request_):
    router, _ = router_of(HARD)

    with pytest.raises(InvalidRequest):
        await router.decide(request_)


async def test_the_whole_conversation_reaches_the_classifier():
    router, classifier = router_of(HARD)
    turns = [{"role": "user", "content": "2+2?"}, {"role": "assistant", "content": "5"}, {"role": "user", "content": "Wrong!"}]

    await router.decide(turns)

    assert [message.text for message in classifier.seen[0].messages] == ["2+2?", "5", "Wrong!"]


@pytest.mark.parametrize(("model", "route", "backend"), [("chat", "chat", SMALL), ("hard", "hard", BIG), ("big", None, BIG)])
async def test_a_hint_is_obeyed_without_asking_the_classifier(model, route, backend):
    router, classifier = router_of(HARD)

    decision = await router.decide(ChatRequest.from_messages("hi", model=model))

    assert (decision.route, decision.backend, decision.source, decision.cached) == (route, backend, "hint", False)
    assert classifier.seen == []


async def test_an_unknown_hint_is_refused():
    router, _ = router_of(HARD)

    with pytest.raises(UnknownModel, match="auto, chat, hard, other, small, big"):
        await router.decide(ChatRequest.from_messages("hi", model="gpt-4"))


async def test_what_no_backend_accepts_is_refused():
    router, _ = router_of(HARD)

    with pytest.raises(NothingFits):
        await router.decide([{"role": "user", "content": [{"type": "image_url"}]}])


async def test_a_table_without_other_gets_one():
    router = Router(RouteTable((Route("chat", "Chat."),)), Fixed("chat"))

    assert (await router.decide("hi")).route == "chat"
    assert OTHER in router.table.by_name


async def test_times_come_from_the_clock():
    ticks: Iterator[int] = count()
    router = Router(TABLE, ScriptedClassifier(HARD), clock=lambda: float(next(ticks)))

    decision = await router.decide("hi")

    assert decision.elapsed == 3.0
    assert decision.verdict.elapsed == 1.0


async def test_preparing_prepares_the_classifier_for_the_table():
    router, classifier = router_of(HARD)

    await router.prepare()

    assert classifier.prepared == [router.table]


# Classifiers that fail


async def returns(value, *_):
    return value


async def raises(error, *_):
    raise error


async def wait_for_something_cancelled(*_):
    shared = asyncio.get_running_loop().create_future()
    shared.cancel()
    await shared


@pytest.mark.parametrize(
    ("classify", "why"),
    [
        (lambda *_: raises(ClassifierError("the server answered 500")), "gave no verdict (the server answered 500)"),
        (lambda *_: raises(ValueError("a secret prompt")), "gave no verdict (ValueError)"),
        (lambda *_: raises(TimeoutError()), "gave no verdict (TimeoutError)"),
        (lambda *_: raises(ExceptionGroup("many", [OSError()])), "gave no verdict (ExceptionGroup)"),
        (lambda *_: raises(RecursionError()), "gave no verdict (RecursionError)"),
        (wait_for_something_cancelled, "gave no verdict (something in it was cancelled)"),
        (lambda: returns(HARD), "gave no verdict (TypeError)"),
        (lambda *_: HARD, "gave no verdict (TypeError)"),
        (None, "gave no verdict (TypeError)"),
        (lambda *_: returns(None), "has no opinion"),
        (lambda *_: returns("hard"), "gave no verdict (AttributeError)"),
        (lambda *_: returns({"hard": 1.0}), "gave no verdict (AttributeError)"),
        (lambda *_: returns(Verdict({"hard": "0.9"}, "x")), "gave no verdict (TypeError)"),
        (lambda *_: returns(Verdict({"hard": None}, "x")), "gave no verdict (TypeError)"),
        (lambda *_: returns(Verdict(["hard"], "x")), "gave no verdict (AttributeError)"),
        *(
            (lambda *_, given=given: returns(Verdict(given, "x")), "gave no sound verdict about the routes asked")
            for given in (
                {},
                {"nonsense": 1.0},
                {"hard": 0.5, "nonsense": 0.5},
                {"Hard": 1.0},
                {None: 1.0},
                {"hard": float("nan")},
                {"hard": float("inf")},
                {"hard": -0.5},
                {"hard": 90.0},
            )
        ),
    ],
)
async def test_a_broken_classifier_never_fails_a_request(classify, why):
    router = Router(TABLE, Broken(classify))

    decision = await router.decide("hi")

    assert (decision.route, decision.backend, decision.source, decision.confidence) == (OTHER, SMALL, "default", None)
    assert decision.reason == f"broken {why}: the default route"


async def test_rounding_errors_do_not_make_a_verdict_unsound():
    router, _ = router_of(Verdict({"hard": 1.0000001, "other": -1e-9}, "x"))

    assert (await router.decide("hi")).route == "hard"


async def test_a_verdict_about_other_alone_is_sound():
    router, _ = router_of(Verdict({OTHER: 1.0}, "x"))

    assert (await router.decide("hi")).source == "x"


async def test_a_late_classifier_gives_the_default_route():
    router = Router(TABLE, ScriptedClassifier(HARD, delay=30, deadline=0.02))

    async with asyncio.timeout(5):
        decision = await router.decide("hi")

    assert (decision.route, decision.reason) == (OTHER, "scripted gave no verdict within 0.02 s: the default route")


async def test_a_classifier_within_its_deadline_is_heard():
    router = Router(TABLE, ScriptedClassifier(HARD, delay=0.01, deadline=10))

    assert (await router.decide("hi")).route == "hard"


async def test_a_classifier_that_fails_while_it_is_stopped_counts_as_late():
    async def grumble(*_):
        try:
            await asyncio.sleep(30)
        finally:
            raise ValueError

    decision = await Router(TABLE, Broken(grumble, deadline=0.02)).decide("hi")

    assert "within 0.02 s" in decision.reason


async def test_a_client_that_leaves_stops_the_deciding():
    stopped = []

    async def wait(*_):
        try:
            await asyncio.sleep(30)
        except asyncio.CancelledError:
            stopped.append(True)
            raise

    deciding = asyncio.ensure_future(Router(TABLE, Broken(wait, deadline=20)).decide("hi"))
    await asyncio.sleep(0.01)
    deciding.cancel()

    with pytest.raises(asyncio.CancelledError):
        await deciding
    assert stopped == [True]


async def test_a_slow_classification_holds_up_no_other():
    router = Router(TABLE, ScriptedClassifier(HARD, delay=0.1), cache_size=0)

    async with asyncio.timeout(5):
        decisions = await asyncio.gather(*(router.decide(f"hi {number}") for number in range(200)))

    assert {decision.route for decision in decisions} == {"hard"}


# What is remembered


async def test_the_same_conversation_is_classified_once():
    router, classifier = router_of(HARD, CHAT)

    first, second = await router.decide("hi"), await router.decide("hi")

    assert (first.cached, second.cached) == (False, True)
    assert (second.route, second.source, second.reason, len(classifier.seen)) == ("hard", "scripted", first.reason, 1)


async def test_what_is_believed_of_another_table_is_remembered():
    router, classifier = router_of(HARD)
    conversation, table = ChatRequest.from_messages("hi").conversation, RouteTable(TABLE.routes[:2], TABLE.backends)

    first, second = await router.believe(conversation, table), await router.believe(conversation, table)

    assert first == second
    assert len(classifier.seen) == 1


async def test_constraints_are_applied_to_a_remembered_verdict_too():
    tiny = Backend("tiny", "t", "http://t", context=50)
    routes = (Route("hard", "Hard.", backends=("tiny",)), Route(OTHER, backends=("small",)))
    router = Router(RouteTable(routes, {"tiny": tiny, "small": SMALL}), ScriptedClassifier(HARD))

    first = await router.decide("hi")
    second = await router.decide(ChatRequest.from_messages("hi", max_tokens=100))

    assert (first.backend, first.cached) == (tiny, False)
    assert (second.backend, second.cached) == (SMALL, True)


@pytest.mark.parametrize(
    "other",
    [
        ChatRequest.from_messages("ho"),
        ChatRequest.from_messages([{"role": "user", "content": [{"type": "text", "text": "hi"}]}]),
        ChatRequest.from_messages([{"role": "system", "content": "x"}, {"role": "user", "content": "hi"}]),
        ChatRequest.from_messages("hi", tools=[{"type": "function", "function": {"name": "f"}}]),
        ChatRequest.from_messages("hi", fingerpost={"routes": [{"name": "hard", "description": "H."}]}),
    ],
)
async def test_another_conversation_or_other_routes_are_classified_anew(other):
    router, classifier = router_of(HARD)
    await router.decide("hi")

    assert not (await router.decide(other)).cached
    assert len(classifier.seen) == 2


async def test_what_a_classifier_cannot_see_does_not_matter_to_what_is_remembered():
    router, _ = router_of(HARD)
    await router.decide("hi")

    assert (await router.decide(ChatRequest.from_messages("hi", temperature=1, metadata={"a": "b"}, stream=True))).cached


async def test_at_most_the_given_number_of_verdicts_is_remembered_and_the_oldest_goes_first():
    router, classifier = router_of(HARD, cache_size=2)
    for text in ("one", "two", "one", "three"):
        await router.decide(text)

    assert (await router.decide("one")).cached
    assert (await router.decide("three")).cached
    assert not (await router.decide("two")).cached
    assert len(classifier.seen) == 4


async def test_what_a_remembered_verdict_comes_to_depends_on_what_is_needed_and_allowed_now():
    tight = replace(BIG, context=1_000)
    router = Router(RouteTable(TABLE.routes, {"small": SMALL, "big": tight}), ScriptedClassifier(HARD))
    short, long = ChatRequest.from_messages("hi"), ChatRequest.from_messages("hi", max_tokens=2_000)
    without_big = Access(backends=frozenset({"small"}))

    for request, access, backends in [
        (short, EVERYTHING, (tight, SMALL)),
        (short, EVERYTHING, (tight, SMALL)),
        (long, EVERYTHING, (SMALL,)),
        (short, without_big, (SMALL,)),
        (short, EVERYTHING, (tight, SMALL)),
    ]:
        decision = await router.decide(request, access)
        assert (decision.route, decision.backends) == ("hard", backends)
    assert decision.cached


async def test_a_router_that_takes_verdicts_over_chooses_by_its_own_table():
    first, _ = router_of(HARD)
    for _ in range(2):
        assert (await first.decide("hi")).route == "hard"
    strict = tuple(replace(route, threshold=0.95) if route.name == "hard" else route for route in TABLE.routes)
    second = Router(RouteTable(strict, TABLE.backends), ScriptedClassifier())
    second.remember(first)

    decision = await second.decide("hi")

    assert (decision.route, decision.cached) == (OTHER, True)


async def test_a_cache_of_size_zero_remembers_nothing():
    router, classifier = router_of(HARD, cache_size=0)

    for _ in range(2):
        assert not (await router.decide(bring({"name": "hard"}))).cached
    assert len(classifier.seen) == 2


@pytest.mark.parametrize("failure", [None, ClassifierError("down"), ValueError(), Verdict({}, "x")])
async def test_a_failure_is_not_remembered(failure):
    router, _ = router_of(failure, HARD)

    assert (await router.decide("hi")).route == OTHER
    assert (await router.decide("hi")).route == "hard"


async def test_conversations_that_differ_in_keyed_metadata_are_told_apart():
    rules = Rules([Rule("hard", metadata={"tier": "gold"}), Rule("chat")])
    router = Router(TABLE, rules, keyed_metadata=["tier"])

    async def route(**metadata):
        decision = await router.decide(ChatRequest.from_messages("hi", metadata=metadata))
        return decision.route, decision.cached

    assert await route(tier="gold") == ("hard", False)
    assert await route(tier="iron") == ("chat", False)
    assert await route() == ("chat", False)
    assert await route(tier="gold", user="ann") == ("hard", True)


# Routes that a request brings along


async def test_a_request_may_bring_its_own_routes():
    router, classifier = router_of(Verdict({"poem": 0.9}, "x"))

    decision = await router.decide(
        bring({"name": "poem", "description": "A poem.", "examples": ["Roses"], "backends": ["big"]})
    )

    assert (decision.route, decision.backend) == ("poem", BIG)
    assert classifier.seen[0].text == "hi"


async def test_a_brought_route_without_backends_gets_those_of_its_configured_namesake_or_of_other():
    router, _ = router_of(Verdict({"hard": 0.9}, "x"), Verdict({"poem": 0.9}, "x"), None)
    routes = [{"name": "hard", "description": "Mine."}, {"name": "poem", "description": "A poem."}]

    assert (await router.decide(bring(*routes, content="1"))).backends == (BIG, SMALL)
    assert (await router.decide(bring(*routes, content="2"))).backends == (SMALL,)
    assert (await router.decide(bring(*routes, content="3"))).route == OTHER


async def test_a_request_may_bring_other_with_backends_of_its_own():
    router, _ = router_of(None)

    assert (await router.decide(bring({"name": "other", "backends": ["big"]}))).backends == (BIG,)


async def test_a_verdict_about_a_configured_route_that_was_not_brought_is_not_taken():
    router, _ = router_of(HARD)

    assert (await router.decide(bring({"name": "poem", "description": "A poem."}))).route == OTHER


async def test_a_hint_means_the_routes_that_were_brought():
    router, _ = router_of(HARD)

    assert (await router.decide(bring({"name": "poem", "backends": ["big"]}, model="poem"))).route == "poem"
    with pytest.raises(UnknownModel, match="auto, poem, other, small, big"):
        await router.decide(bring({"name": "poem"}, model="chat"))


async def test_an_empty_list_of_routes_leaves_other():
    router, _ = router_of(HARD)

    assert (await router.decide(bring())).route == OTHER


async def test_the_table_of_repeated_routes_is_built_once():
    tables = []

    async def classify(conversation, table):
        tables.append(table)
        return Verdict({"poem": 1.0}, "x")

    router = Router(TABLE, Broken(classify))
    for content in ("1", "2"):
        await router.decide(bring({"name": "poem", "description": "A poem."}, content=content))

    assert tables[0] is tables[1]


@pytest.mark.parametrize(
    ("routes", "path"),
    [
        ([{"name": "auto"}], "fingerpost.routes[0].name"),
        ([{"name": ""}], "fingerpost.routes[0].name"),
        ([{"name": "a"}, {"name": "a"}], "fingerpost.routes[1].name"),
        ([{"name": "a\nb"}], "fingerpost.routes[0].name"),
        ([{"name": "a", "backends": ["none"]}], "fingerpost.routes[0].backends[0]"),
        ([{"name": f"r{number}"} for number in range(MAX_REQUESTED_ROUTES + 1)], "fingerpost.routes"),
        ([{"name": "a", "examples": ["x"] * (MAX_REQUESTED_EXAMPLES + 1)}], "fingerpost.routes"),
    ],
)
async def test_brought_routes_that_cannot_be_used_are_refused_with_their_path(routes, path):
    router, _ = router_of(HARD)

    with pytest.raises(InvalidRequest) as raised:
        await router.decide(bring(*routes))

    assert (raised.value.status, raised.value.param) == (400, path)
    assert raised.value.message.startswith(f"{path}: ")


async def test_as_many_brought_routes_as_allowed_are_fine():
    router, _ = router_of(Verdict({"r7": 1.0}, "x"))

    decision = await router.decide(bring(*({"name": f"r{number}"} for number in range(MAX_REQUESTED_ROUTES))))

    assert decision.route == "r7"


def test_a_table_whose_other_has_no_backend_is_refused_at_once():
    with pytest.raises(ConfigError, match="'other' has no backend"):
        Router(RouteTable((Route("a", "A.", backends=("small",)),), {"small": SMALL}), Fixed("a"))


# Without an event loop


@pytest.fixture
def sync_router():
    router, classifier = router_of(HARD)
    yield router, classifier
    asyncio.run(router.aclose())


def test_deciding_works_without_an_event_loop(sync_router):
    router, _ = sync_router

    assert router.decide_sync("hi").route == "hard"
    assert router.decide_sync("hi").cached


async def test_deciding_synchronously_works_beside_a_running_loop():
    router, _ = router_of(HARD)

    assert router.decide_sync("hi").route == "hard"
    assert (await router.decide("hi")).cached
    await router.aclose()


def test_errors_come_out_of_deciding_synchronously(sync_router):
    with pytest.raises(UnknownModel):
        sync_router[0].decide_sync(ChatRequest.from_messages("hi", model="x"))


def test_many_threads_may_decide_at_once_and_share_one_loop():
    router = Router(TABLE, ScriptedClassifier(HARD), cache_size=3)
    start = threading.Barrier(16)
    routes = []

    def decide(number):
        start.wait(5)
        routes.extend(router.decide_sync(f"hi {turn % 5}").route for turn in range(number, number + 50))

    threads = [threading.Thread(target=decide, args=(number,)) for number in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    loops = [thread for thread in threading.enumerate() if thread.name == "fingerpost-sync"]
    asyncio.run(router.aclose())

    assert routes == ["hard"] * 800
    assert len(loops) == 1


def test_loops_of_many_threads_may_share_what_is_remembered():
    router = Router(TABLE, ScriptedClassifier(HARD), cache_size=1)
    failures = []

    async def decide():
        for turn in range(300):
            await router.decide(f"hi {turn % 3}")

    def work():
        try:
            asyncio.run(decide())
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)

    assert failures == []


# The end


def test_closing_closes_the_classifier_in_each_loop_that_used_it_and_ends_the_thread():
    router, classifier = router_of(HARD)
    router.decide_sync("hi")

    asyncio.run(router.aclose())
    gc.collect()

    assert classifier.closed == 2
    assert "fingerpost-sync" not in [thread.name for thread in threading.enumerate()]


async def test_closing_without_synchronous_callers_closes_the_classifier_once():
    router, classifier = router_of(HARD)

    await router.aclose()

    assert classifier.closed == 1


def test_the_thread_ends_even_when_the_classifier_cannot_be_closed():
    class Stuck(ScriptedClassifier):
        async def aclose(self):
            raise OSError("stuck")

    router = Router(TABLE, Stuck(HARD))
    router.decide_sync("hi")

    with pytest.raises(OSError, match="stuck"):
        asyncio.run(router.aclose())
    assert "fingerpost-sync" not in [thread.name for thread in threading.enumerate()]


def test_a_closed_router_may_decide_again():
    router, _ = router_of(HARD)
    router.decide_sync("hi")
    asyncio.run(router.aclose())

    assert router.decide_sync("hi").cached
    asyncio.run(router.aclose())


def test_a_router_comes_from_a_file_and_needs_none_of_its_keys(tmp_path) -> None:
    path = tmp_path / "routes.yaml"
    path.write_text(
        "backends: [{name: b, model: m, url: 'http://b', key: '${NOT_SET}'}]\n"
        "routes: [{name: chat, description: Chat., backends: [b]}, {name: other, backends: [b]}]\n"
        "classifier: {use: fixed, route: chat}\n"
    )
    assert Router.from_file(path, {}).decide_sync("hi").route == "chat"
    assert "chit_chat" in Router.from_file(environ={}).table.by_name
    path.write_text("backends: 3")
    with pytest.raises(ConfigError):
        Router.from_file(path)


def test_many_are_decided_in_their_order_whatever_they_are() -> None:
    def classify(conversation, table):
        return asyncio.sleep(0.02 if conversation.text == "slow" else 0, HARD if conversation.text == "slow" else CHAT)

    router = Router(TABLE, Broken(classify))
    body = {"messages": [{"role": "user", "content": "hi"}], "model": "hard"}
    rows = [
        "slow",
        [{"role": "user", "content": "hi"}],
        body,
        ChatRequest.from_messages("slow"),
        Body(messages=body["messages"]),
    ]
    assert [d.route for d in router.decide_many(rows)] == ["hard", "chat", "hard", "hard", "chat"]
    assert [d.route for d in router.decide_many(iter(["hi", "slow"]), concurrency=1)] == ["chat", "hard"]
    assert router.decide_many([]) == []
    asyncio.run(router.aclose())


def test_many_run_beside_each_other_up_to_the_bound() -> None:
    running, most = 0, 0

    async def classify(conversation, table):
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0.001)
        running -= 1
        return CHAT

    router = Router(TABLE, Broken(classify), cache_size=0)
    assert len(router.decide_many([f"hi {i}" for i in range(40)], concurrency=8)) == 40
    assert most == 8
    asyncio.run(router.aclose())


async def test_many_are_decided_in_a_running_loop_as_in_a_notebook() -> None:
    router, _ = router_of(CHAT)
    assert [decision.route for decision in router.decide_many(["hi", "ho"])] == ["chat", "chat"]
    await router.aclose()


def test_a_wrong_row_is_named_before_anything_is_decided() -> None:
    router, classifier = router_of(CHAT)
    with pytest.raises(InvalidRequest, match=r"^row 2: messages\[0\]\.role: ") as caught:
        router.decide_many(["hi", "ho", [{"role": "nobody", "content": "hi"}], float("nan")])
    assert caught.value.param == "messages[0].role"
    assert caught.value.message == str(caught.value)
    assert classifier.seen == []


def test_a_row_that_cannot_be_decided_is_named() -> None:
    router, _ = router_of(CHAT)
    with pytest.raises(UnknownModel, match=r"^row 1: there is no model 'nope'"):
        router.decide_many(["hi", {"messages": [{"role": "user", "content": "hi"}], "model": "nope"}, "ho"])
    asyncio.run(router.aclose())


def test_errors_can_stand_in_the_place_of_their_rows() -> None:
    router, _ = router_of(CHAT)
    body = {"messages": [{"role": "user", "content": "hi"}], "model": "nope"}
    first, second, third, last = router.decide_many(["hi", None, body, "ho"], return_errors=True)
    assert first.route == last.route == "chat"
    assert isinstance(second, InvalidRequest)
    assert second.message.startswith("row 1: ")
    assert isinstance(third, UnknownModel)
    assert third.message.startswith("row 2: ")
    asyncio.run(router.aclose())


@pytest.mark.parametrize("one", ["hi", {"messages": [{"role": "user", "content": "hi"}]}])
def test_one_request_is_not_many(one) -> None:
    with pytest.raises(InvalidRequest, match="decide_sync"):
        router_of(CHAT)[0].decide_many(one)


def test_who_stops_waiting_stops_the_work() -> None:
    stopped = threading.Event()
    started = threading.Event()

    async def classify(conversation, table):
        started.set()
        try:
            await asyncio.sleep(60)
        finally:
            stopped.set()

    router = Router(TABLE, Broken(classify))

    def interrupt() -> None:
        started.wait(20)
        time.sleep(0.5)  # until the caller waits for the result; it has only just handed the work over
        signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    with pytest.raises(KeyboardInterrupt):
        router.decide_many(["hi"])
    thread.join()
    assert stopped.wait(20)
    asyncio.run(router.aclose())
