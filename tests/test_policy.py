from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fingerpost.chat import Needs
from fingerpost.errors import NothingFits, Refused, UnknownModel
from fingerpost.policy import choose, find_constraints, obey, usable_names
from fingerpost.records import Constraint, Verdict
from fingerpost.routes import OTHER, Access, Backend, Route, RouteTable

TEXT, IMAGE, VIDEO = Needs(), Needs(frozenset({"text", "image"})), Needs(frozenset({"text", "video"}))
SMALL = Backend("small", "s", "http://s", context=1000)
SEES = Backend("sees", "v", "http://v", accepts=frozenset({"text", "image"}))
BIG = Backend("big", "b", "http://b")


def table_of(*routes, backends=(SMALL, SEES, BIG)):
    return RouteTable(routes, {backend.name: backend for backend in backends})


TABLE = table_of(
    Route("chat", "Chat.", backends=("small", "big")),
    Route("look", "Look.", backends=("sees",), threshold=0.6),
    Route("hard", "Hard.", backends=("big", "sees")),
    Route(OTHER, backends=("small",)),
)


def believe(**probabilities):
    return Verdict(probabilities, "tested")


def names(decision):
    return [backend.name for backend in decision.backends]


def test_the_most_probable_route_wins_with_its_backends_in_order():
    verdict = believe(chat=0.2, hard=0.7, other=0.1)

    decision = choose(TABLE, TEXT, verdict)

    assert (decision.route, names(decision), decision.confidence) == ("hard", ["big", "sees"], 0.7)
    assert (decision.source, decision.verdict, decision.reason) == ("tested", verdict, "tested is 70% sure")
    assert not decision.constraints


@pytest.mark.parametrize(("confidence", "route"), [(0.6, "look"), (0.59, OTHER), (1.0, "look")])
def test_a_route_below_its_threshold_gives_way_to_other(confidence, route):
    verdict = believe(look=confidence, other=0.1)

    decision = choose(TABLE, TEXT, verdict)

    assert decision.route == route
    assert decision.confidence == verdict.probabilities[route]


def test_giving_way_to_other_is_explained():
    assert choose(TABLE, TEXT, believe(look=0.5)).reason == "tested is only 50% sure of look, which asks for 60%"


def test_what_limits_the_verdict_is_in_the_reason():
    cut = Verdict({"chat": 0.9}, "tested", note="only the last 100 tokens were read")
    unsure = Verdict({"look": 0.5}, "tested", note="only the last 100 tokens were read")

    assert choose(TABLE, TEXT, cut).reason.endswith("sure (only the last 100 tokens were read)")
    assert choose(TABLE, TEXT, unsure).reason.endswith("60% (only the last 100 tokens were read)")


@pytest.mark.parametrize(("why", "said"), [("it is late", "it is late"), ("", "no verdict")])
def test_without_a_verdict_the_default_route_is_taken(why, said):
    decision = choose(TABLE, TEXT, None, why)

    assert (decision.route, names(decision), decision.source, decision.confidence) == (OTHER, ["small"], "default", None)
    assert decision.reason == f"{said}: the default route"


def test_a_backend_that_cannot_serve_is_struck_out_of_the_route_and_named():
    decision = choose(TABLE, IMAGE, believe(hard=0.9))

    assert names(decision) == ["sees"]
    assert Constraint("big", "does not accept image") in decision.constraints


def test_when_nothing_of_the_route_fits_the_next_best_route_lends_its_backends():
    decision = choose(TABLE, IMAGE, believe(chat=0.8, hard=0.15, look=0.05))

    assert (decision.route, names(decision), decision.confidence) == ("chat", ["sees"], 0.8)
    assert decision.reason == (
        "tested is 80% sure; no backend of chat can serve it"
        " (small does not accept image; big does not accept image), hard's can"
    )


def test_without_a_verdict_the_first_route_that_can_lends_its_backends():
    decision = choose(TABLE, IMAGE, None, "late")

    assert (decision.route, names(decision)) == (OTHER, ["sees"])
    assert "look's can" in decision.reason


def test_a_route_that_never_had_a_backend_borrows_too():
    table = RouteTable((Route("a", "A.", backends=("big",)),), {"big": BIG})

    decision = choose(table, TEXT, believe(b=1.0))

    assert (decision.route, names(decision)) == ("b", ["big"])
    assert "(it has none)" in decision.reason


def test_when_nothing_fits_at_all_each_backend_is_named_with_its_reason():
    with pytest.raises(NothingFits) as raised:
        choose(TABLE, Needs(frozenset({"text", "image", "tools"}), 5), believe(chat=1.0))

    assert raised.value.status == 422
    assert raised.value.message.endswith(": small does not accept image; sees does not accept tools; big does not accept image")


def test_a_table_without_backends_decides_only_on_a_route():
    decision = choose(RouteTable((Route("a", "A."), Route(OTHER))), IMAGE, believe(a=1.0))

    assert (decision.route, decision.backends, decision.constraints) == ("a", (), ())


def test_several_missing_features_are_named_in_order():
    needs = Needs(frozenset({"text", "tools", "image", "audio"}))

    assert find_constraints(TABLE, needs, [SMALL]) == (Constraint("small", "does not accept audio, image"),)


@pytest.mark.parametrize(("tokens", "struck"), [(1000, False), (1001, True), (0, False)])
def test_a_context_that_is_too_short_strikes_a_backend_out(tokens, struck):
    found = find_constraints(TABLE, Needs(tokens=tokens))

    assert found == ((Constraint("small", f"about {tokens} tokens do not fit into 1000"),) if struck else ())


def test_a_feature_that_no_configuration_states_strikes_nothing_out():
    assert find_constraints(TABLE, VIDEO) == ()


def test_a_feature_that_one_backend_states_strikes_the_others_out():
    films = Backend("films", "f", "http://f", accepts=frozenset({"text", "video"}))
    table = table_of(Route(OTHER, backends=("films", "big")), backends=(films, BIG))

    assert find_constraints(table, VIDEO) == (Constraint("big", "does not accept video"),)


@pytest.mark.parametrize(
    ("model", "route", "backends"), [("chat", "chat", ["small", "big"]), ("other", OTHER, ["small"]), ("big", None, ["big"])]
)
def test_a_request_that_names_a_route_or_a_backend_gets_it(model, route, backends):
    decision = obey(TABLE, TEXT, model)

    assert (decision.route, names(decision), decision.source) == (route, backends, "hint")
    assert (decision.confidence, decision.verdict) == (None, None)
    assert model in decision.reason


def test_a_name_that_both_a_route_and_a_backend_have_means_the_route():
    table = table_of(Route("big", "A.", backends=("small", "big")))

    assert names(obey(table, TEXT, "big")) == ["small", "big"]


def test_a_named_route_loses_only_the_backends_that_cannot_serve():
    decision = obey(TABLE, IMAGE, "hard")

    assert (names(decision), decision.constraints) == (["sees"], (Constraint("big", "does not accept image"),))


@pytest.mark.parametrize("model", ["chat", "big"])
def test_a_name_whose_backends_cannot_serve_is_refused_though_others_could(model):
    with pytest.raises(NothingFits, match="big does not accept image"):
        obey(TABLE, IMAGE, model)


def test_a_named_route_without_backends_is_only_a_decision():
    assert obey(RouteTable((Route("a", "A."),)), IMAGE, "a").backends == ()


@pytest.mark.parametrize("model", ["", "Chat", "gpt-4", "auto", "x" * 100_000])
def test_an_unknown_name_is_refused_with_the_valid_ones(model):
    with pytest.raises(UnknownModel) as raised:
        obey(TABLE, TEXT, model)

    assert (raised.value.status, raised.value.param) == (404, "model")
    assert raised.value.message.endswith("use one of: auto, chat, look, hard, other, small, sees, big")
    assert len(raised.value.message) < 500


def test_a_name_that_is_route_and_backend_is_listed_once():
    with pytest.raises(UnknownModel, match=r"use one of: auto, big, small$"):
        obey(table_of(Route("big", "A.", backends=("small",)), backends=(SMALL, BIG)), TEXT, "x")


features = st.frozensets(st.sampled_from(["text", "image", "audio", "video", "tools", "json_schema"]))
needs = st.builds(Needs, features, st.integers(0, 20))
probabilities = st.dictionaries(st.sampled_from(["r0", "r1", OTHER]), st.floats(0, 1), min_size=1)


@st.composite
def tables(draw):
    backends = [
        Backend(f"b{index}", "m", "http://b", accepts=accepts, context=draw(st.none() | st.integers(1, 20)))
        for index, accepts in enumerate(draw(st.lists(features, min_size=1, max_size=3)))
    ]
    names = st.lists(st.sampled_from([backend.name for backend in backends]), min_size=1, unique=True).map(tuple)
    routes = [Route(name, "R.", (), draw(names), draw(st.floats(0, 1))) for name in ("r0", "r1", OTHER)]
    return table_of(*routes, backends=backends)


@given(tables(), needs, st.none() | st.builds(Verdict, probabilities, st.just("tested")), st.sampled_from(["r0", OTHER, "b0"]))
def test_no_chosen_backend_ever_violates_a_constraint(table, needs, verdict, model):
    struck = {constraint.backend for constraint in find_constraints(table, needs)}

    for decide in (lambda: choose(table, needs, verdict), lambda: obey(table, needs, model)):
        try:
            decision = decide()
        except NothingFits:
            decision = None
        assert decision or struck
        if decision is None:
            continue
        assert decision.backends
        for backend in decision.backends:
            assert needs.features - {"video", "file"} <= backend.accepts
            assert backend.context is None or needs.tokens <= backend.context
            assert backend.name not in struck


NAMES = st.one_of(st.none(), st.frozensets(st.sampled_from(["chat", "look", "hard", OTHER])))
BACKENDS = st.one_of(st.none(), st.frozensets(st.sampled_from(["small", "sees", "big"])))


@given(
    NAMES, BACKENDS, st.sampled_from([TEXT, IMAGE, Needs(tokens=5000)]), st.sampled_from(["chat", "look", "hard", OTHER, None])
)
def test_no_backend_is_ever_chosen_that_a_client_may_not_use_or_that_cannot_serve(routes, backends, needs, believed):
    access = Access(routes, backends)
    usable = {
        name
        for route in TABLE.routes
        for name in route.backends
        if access.to_route(route.name)
        and access.to_backend(name)
        and not find_constraints(TABLE, needs, [TABLE.backends[name]])
    }
    try:
        decision = choose(TABLE, needs, believe(**{believed: 1.0}) if believed else None, access=access)
    except (NothingFits, Refused):
        assert not usable
    else:
        assert set(names(decision)) <= usable
    for name in usable_names(TABLE, access)[1:]:
        with contextlib.suppress(NothingFits, Refused):
            assert all(access.to_backend(backend) for backend in names(obey(TABLE, needs, name, access)))


@pytest.mark.parametrize("model", ["hard", "big"])
def test_a_named_route_or_backend_beyond_a_clients_access_is_refused(model):
    with pytest.raises(Refused, match=rf"{model} is not allowed for this key") as refused:
        obey(TABLE, TEXT, model, Access(frozenset({"chat"}), frozenset({"small"})))
    assert (refused.value.status, refused.value.code, refused.value.param) == (403, "not_allowed", "model")


def test_the_names_that_a_client_may_ask_for():
    assert usable_names(TABLE) == ["auto", "chat", "look", "hard", OTHER, "small", "sees", "big"]
    assert usable_names(TABLE, Access(frozenset({"chat"}), frozenset({"big"}))) == ["auto", "chat", "big"]
