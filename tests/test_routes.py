from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fingerpost.errors import ConfigError
from fingerpost.routes import AUTO, OTHER, Backend, Price, Route, RouteTable, find_problems

SMALL, BIG = Backend("small", "s", "http://s"), Backend("big", "b", "http://b")


def table(*routes, backends=(SMALL, BIG)):
    return RouteTable(routes, {backend.name: backend for backend in backends})


def problems_of(*routes, backends=(SMALL,)):
    return [(problem.path, problem.warning) for problem in find_problems(routes, backends)]


def test_a_price_is_per_million_tokens():
    assert Price(0.5, 2.0).cost(2_000_000, 500_000) == 2.0


def test_a_backends_key_and_headers_stay_out_of_its_repr():
    shown = repr(Backend("a", "m", "http://a", key="sk-SECRET", headers={"authorization": "sk-HEADER"}))

    assert "SECRET" not in shown
    assert "HEADER" not in shown


def test_a_table_finds_routes_by_name_and_describes_all_but_other():
    routes = table(Route("a", "A.", backends=("small",)), Route(OTHER, backends=("big",)))

    assert routes.by_name["a"].description == "A."
    assert [route.name for route in routes.described] == ["a"]


def test_backends_of_a_route_come_in_the_order_to_try():
    assert table(Route("a", "A.", backends=("big", "small"))).backends_of("a") == (BIG, SMALL)


def test_a_route_that_is_not_there_has_no_backends():
    assert table(Route("a", "A.", backends=("big",))).backends_of("b") == ()


def test_routes_without_backends_are_fine_in_a_table_without_backends():
    assert RouteTable((Route("a", "A."),)).backends_of("a") == ()


def test_a_table_raises_every_problem_at_once():
    with pytest.raises(ConfigError) as raised:
        table(Route("a", "A."), Route("a", "A.", backends=("none",)), Route(AUTO, "B.", backends=("small",)))

    assert [problem.path for problem in raised.value.problems] == [
        "routes[1].name", "routes[2].name", "routes[0].backends", "routes[1].backends[0]",
    ]  # fmt: skip


def test_a_table_raises_no_warnings():
    assert table(Route("small", backends=("small",))).by_name


def test_a_backend_under_another_name_than_its_own_is_a_problem():
    with pytest.raises(ConfigError, match="'small' is there under the name 'tiny'"):
        RouteTable((Route("a", "A.", backends=("small",)),), {"tiny": SMALL})


@pytest.mark.parametrize("name", ["", " ", " a", "a ", "a\n", "a\x00b", "x" * 201, "auto", "\ud800", "\u202e"])
def test_a_name_that_could_not_be_said_in_a_header_or_a_log_is_a_problem(name):
    assert problems_of(Route(name, "A.", backends=("small",))) == [("routes[0].name", False)]
    assert ("backends[0].name", False) in problems_of(backends=(Backend(name, "m", "http://a"),))


@pytest.mark.parametrize("name", ["a", "a b", "größe", "画像", "x" * 200, "a/b:c-1.5", "😀", "Auto"])
def test_any_printable_name_is_fine(name):
    assert problems_of(Route(name, "A.", backends=("small",))) == []


def test_only_the_later_of_two_names_is_a_problem():
    twice = Route("a", "A.", backends=("small",))

    assert problems_of(twice, twice, twice) == [("routes[1].name", False), ("routes[2].name", False)]


@pytest.mark.parametrize("description", ["", "  \n"])
def test_a_route_without_description_is_a_warning_unless_it_is_other(description):
    routes = (Route("a", description, backends=("small",)), Route(OTHER, description, backends=("small",)))

    assert problems_of(*routes) == [("routes[0].description", True)]


def test_a_route_and_a_backend_of_the_same_name_are_a_warning():
    assert problems_of(Route("small", "A.", backends=("small",))) == [("routes", True)]


@pytest.mark.parametrize(("backends", "fix"), [((SMALL, BIG), "Use one of: big, small"), ((), "none is defined")])
def test_an_unknown_backend_is_a_problem_that_names_the_known_ones(backends, fix):
    problem = find_problems([Route("a", "A.", backends=("smal",))], backends)[0]

    assert (problem.path, problem.what) == ("routes[0].backends[0]", "there is no backend 'smal'")
    assert fix in problem.fix


ROUTES = st.builds(
    Route,
    st.sampled_from(["a", "b", "a,b"]),
    st.sampled_from(["", "a", "', '"]),
    st.lists(st.sampled_from(["", "a"])).map(tuple),
)
TABLES = st.lists(ROUTES, min_size=1, max_size=3, unique_by=lambda route: route.name).map(tuple)


@given(TABLES, TABLES)
def test_digests_are_equal_exactly_when_a_classifier_sees_the_same_routes(one, two):
    assert (RouteTable(one).digest == RouteTable(two).digest) == (one == two)


def test_backends_and_thresholds_do_not_change_the_digest():
    plain = RouteTable((Route("a", "A."),))

    assert table(Route("a", "A.", backends=("big",), threshold=0.5)).digest == plain.digest
