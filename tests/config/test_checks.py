from __future__ import annotations

import copy

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fingerpost.config.checks import cross_check, validate
from fingerpost.config.shape import to_backend, to_route
from fingerpost.routes import RouteTable

BACKEND = {"name": "small", "model": "m", "url": "http://a", "accepts": ["text", "image"]}
GOOD = {
    "backends": [BACKEND],
    "routes": [{"name": "chat", "description": "Chat.", "backends": ["small"]}, {"name": "other", "backends": ["small"]}],
}
FULL = {
    "backends": [{
        **BACKEND, "key": "k", "auth": "bearer", "api_version": "1", "headers": {"x": "y"}, "context": 5,
        "price": {"input": 1.0, "output": 2.0}, "timeouts": {"connect": 1.0, "read": 1.0, "total": 1.0},
    }],
    "routes": [{"name": "other", "description": "O.", "examples": ["x"], "backends": ["small"], "threshold": 0.5}],
    "rules": [{"route": "other", "image": True, "keywords": ["a"], "longer_than": 1, "tools": True, "metadata": {"a": "b"}}],
    "classifier": {"use": "chain", "threshold": 0.1, "of": [
        "embedded",
        {"use": "embedded", "threshold": 0.5, "threads": 2},
        {"use": "arch", "url": "http://x", "model": "m", "key": "k", "deadline": 1.0, "budget": 100, "threshold": 0.1},
        {"use": "rules", "rules": [{"route": "other"}], "threshold": 0.1},
        {"use": "fixed", "route": "other", "confidence": 0.5},
        {"use": "my.module:build", "options": {"a": 1}},
        {"use": "chain", "of": ["embedded", {"use": "fixed", "route": "other"}]},
        {"use": "systemone", "url": "http://x", "model": "m", "key": "k", "deadline": 1.0, "budget": 100, "threshold": 0.1},
    ]},
    "server": {"host": "h", "port": 1, "max_body": 1, "retries": 1, "deadline": 1.0, "drain": 1.0, "cache": 1},
}  # fmt: skip


def wrong(data):
    """Path, what and fix of every problem within the sections."""
    return [(problem.path, problem.what, problem.fix) for problem in validate(data, data)[1]]


def crossed(data):
    return [(problem.path, problem.what) for problem in cross_check(data) if not problem.warning]


def changed(data, path, value):
    data = copy.deepcopy(data)
    owner = data
    for step in path[:-1]:
        owner = owner[step]
    owner[path[-1]] = value
    return data


def text_of(path):
    return "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in path).lstrip(".")


def places_in(value, path=()):
    if path:
        yield path
    if isinstance(value, dict | list):
        for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
            yield from places_in(inner, (*path, key))


def sections_in(data):
    """Paths of all sections: what has keys of its own."""
    return [()] + [path for path in places_in(data) if isinstance(value_at(data, path), dict) and path[-1] not in (
        "headers", "metadata", "options")]  # fmt: skip


def value_at(data, path):
    for step in path:
        data = data[step]
    return data


def test_what_is_right_has_no_problem():
    for data in (GOOD, FULL):
        config, problems = validate(data, data)
        assert config is not None
        assert problems == cross_check(data) == []


@pytest.mark.parametrize("data", [None, [], "text", 5, [GOOD]])
def test_what_is_no_mapping_is_one_problem(data):
    assert wrong(data) == [("", "this is not a mapping", "Start with backends: and routes:")]
    assert cross_check(data) == []


KEYS = ["zzzzzzzz", "embedded", "arch", "rules", "fixed", "chain", "imported", "of", "use", "classifier", "", "a.b", "a[0]"]


@pytest.mark.parametrize("path", sections_in(FULL), ids=text_of)
def test_an_unknown_key_anywhere_is_found_at_its_path(path):
    for key in set(KEYS) - set(value_at(FULL, path)):
        ((where, what, fix),) = wrong(changed(FULL, (*path, key), 1))

        assert (where, what) == (text_of((*path, key)) if path or key else "", "unknown key")
        assert fix.startswith(("Did you mean ", "Valid keys: "))


LONG_KEYS = [
    path for path in places_in(FULL) if len(str(path[-1])) > 4 and not {"options", "headers", "metadata"} & {*path[:-1]}
]


@pytest.mark.parametrize("path", LONG_KEYS, ids=text_of)
def test_a_key_with_a_typing_error_is_answered_with_the_right_one(path):
    typed = path[-1][:2] + path[-1][3:]

    problems = wrong(changed(FULL, (*path[:-1], typed), value_at(FULL, path)))

    assert (text_of((*path[:-1], typed)), "unknown key", f"Did you mean {path[-1]}?") in problems


VALUES = [None, 5, "text", [], {}, [None], {"a": 1}, True, [[]], -1, float("nan"), "😀" * 100]


@pytest.mark.parametrize("path", list(places_in(FULL)), ids=text_of)
def test_a_wrong_value_anywhere_is_found_at_its_path_and_told_shortly(path):
    for value in VALUES:
        for where, what, fix in wrong(changed(FULL, path, value)):
            assert where == text_of(path) or where.startswith((f"{text_of(path)}.", f"{text_of(path)}["))
            assert len(what) < 250
            assert "Config" not in what + fix
            assert "dictionary" not in what


@pytest.mark.parametrize(
    ("path", "value", "what", "fix"),
    [
        (("backends",), {}, "this should be a list", "Write [one, two], or one a line after a dash"),
        (("backends", 0), "small", "this should be a mapping", "Write key: value pairs, one a line"),
        (("backends", 0, "headers"), "x", "this should be a mapping", "Write key: value pairs, one a line"),
        (("backends", 0, "price"), "cheap", "this should be a mapping", "Write key: value pairs, one a line"),
        (("backends", 0, "name"), 5, "this should be text (5)", "Put it in quotes"),
        (("backends", 0, "name"), None, "there is no value here",
         "Its name in routes, headers, logs and metrics, and as a model name for clients."),
        (("backends", 0, "accepts"), "text", "this should be a list ('text')", "Write [one, two], or one a line after a dash"),
        (("backends", 0, "auth"), "basic", "this should be 'bearer' or 'api-key' ('basic')",
         "How the key is sent; Azure OpenAI wants api-key."),
        (("backends", 0, "context"), True, "this should be a number, not true or false (True)", ""),
        (("server", "port"), 70000, "this should be less than or equal to 65535 (70000)",
         "The port to listen on; 0 takes a free one."),
        (("server", "port"), "http", "this should be a valid integer, unable to parse string as an integer ('http')",
         "The port to listen on; 0 takes a free one."),
        (("classifier",), None, "there is no value here", "Who reads the conversations."),
        (("classifier",), [1], "this should be a mapping", "Write key: value pairs, one a line"),
        (("classifier", "of", 2), 5, "this should be a mapping", "Write key: value pairs, one a line"),
    ],
)  # fmt: skip
def test_a_wrong_value_is_told_in_the_words_of_the_file(path, value, what, fix):
    assert wrong(changed(FULL, path, value)) == [(text_of(path), what, fix)]


@pytest.mark.parametrize(
    ("path", "value"), [(("classifier",), "embeded"), (("classifier", "of", 0), "arhc"), (("classifier", "of", 5, "use"), "x")]
)
def test_a_classifier_that_does_not_exist_is_answered_with_those_that_do(path, value):
    where = text_of(path) if path[-1] == "use" else f"{text_of(path)}.use"

    assert wrong(changed(FULL, path, value)) == [
        (where, "no such classifier", "Use embedded, arch, systemone, rules, fixed, chain, or an import string my.module:build")
    ]


@pytest.mark.parametrize(
    ("use", "what"),
    [
        ({}, "this key is required"),
        ({"use": "arhc"}, "no such classifier"),
        ({"use": None}, "there is no value here"),
        ({"use": 5}, "this should be text (5)"),
    ],
)
def test_while_it_is_unclear_which_classifier_is_meant_its_other_keys_are_not_judged(use, what):
    problems = wrong({**GOOD, "classifier": {**use, "url": "http://x", "deadline": 1}, "sever": {}})

    assert [problem[:2] for problem in problems] == [("classifier.use", what), ("sever", "unknown key")]


@pytest.mark.parametrize(
    "path",
    [
        ("backends",),
        ("routes",),
        ("backends", 0, "model"),
        ("rules", 0, "route"),
        ("classifier", "of", 2, "url"),
        ("classifier", "of", 6, "of"),
        ("classifier", "of", 3, "rules", 0, "route"),
    ],
    ids=text_of,
)
def test_a_required_key_that_is_missing_is_told_with_what_it_is_for(path):
    data = copy.deepcopy(FULL)
    del value_at(data, path[:-1])[path[-1]]

    ((where, what, fix),) = wrong(data)

    assert (where, what) == (text_of(path), "this key is required")
    assert fix.startswith("Add it: ")
    assert len(fix) > 15


SECRET = "sk-SECRET"
OPEN_FIELDS = ("name", "backends", "route", "routes")


@pytest.mark.parametrize("path", [path for path in places_in(FULL) if path[-1] not in OPEN_FIELDS], ids=text_of)
def test_what_a_variable_holds_is_in_no_message(path):
    for shape in (lambda s: s, lambda s: [s], lambda s: {"key": s}, lambda s: f"{s}\n{s}", lambda s: [[s]]):
        problems = validate(changed(FULL, path, shape(SECRET)), changed(FULL, path, shape("${KEY}")))[1]

        assert SECRET not in str(problems)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("backends",), {"small": {"key": SECRET}}),
        (("backends",), {"key": SECRET}),
        (("backends", 0), SECRET),
        (("backends", 0, "key"), {"x": SECRET}),
        (("backends", 0, "key"), [SECRET]),
        (("backends", 0, "key"), f"{SECRET}\n{SECRET}"),
        (("backends", 0, "headers"), SECRET),
        (("backends", 0, "headers"), {"authorization": [SECRET]}),
        (("backends", 0, "headers"), {"authorization": f"a\n{SECRET}"}),
        (("backends", 0, "url"), f"http://a/v1?key={SECRET}"),
        (("backends", 0, "url"), f"https://me:{SECRET}@a b"),
        (("backends", 0, "keys"), SECRET),
        (("classifier", "of", 2, "key"), [SECRET]),
        (("classifier", "of", 5, "options"), SECRET),
    ],
)
def test_a_secret_that_is_written_in_the_file_is_in_no_message(path, value):
    data = changed(FULL, path, value)
    problems = validate(data, data)[1]

    assert problems
    assert SECRET not in str(problems)


# Between sections


def test_problems_between_sections_come_with_the_paths_of_the_file():
    data = {
        "backends": [BACKEND, BACKEND],
        "routes": [{"name": "a"}, {"name": "a", "backends": ["smal", "small"]}, {"name": "auto", "backends": ["small"]}],
        "rules": [{"route": "b"}],
        "classifier": {"use": "chain", "of": [
            {"use": "fixed", "route": "c"},
            "embedded",
            {"use": "chain", "of": [{"use": "rules", "rules": [{"route": "a"}, {"route": "d"}]}]},
        ]},
    }  # fmt: skip

    assert crossed(data) == [
        ("routes[1].name", "'a' is there twice"),
        ("routes[2].name", "'auto' is reserved: as a model name it asks for a decision"),
        ("backends[1].name", "'small' is there twice"),
        ("routes[0].backends", "route 'a' has no backend"),
        ("routes[1].backends[0]", "there is no backend 'smal'"),
        ("routes", "there is no route named other"),
        ("rules[0].route", "there is no route 'b'"),
        ("classifier.of[0].route", "there is no route 'c'"),
        ("classifier.of[2].of[0].rules[1].route", "there is no route 'd'"),
    ]


@pytest.mark.parametrize("classifier", [{"use": "fixed", "route": "nope"}, {"use": "rules", "rules": [{"route": "nope"}]}])
def test_routes_that_a_single_classifier_names_are_looked_up(classifier):
    (problem,) = cross_check({**GOOD, "classifier": classifier})

    assert (problem.what, problem.fix) == ("there is no route 'nope'", "Use one of: chat, other")


def test_a_set_of_backends_without_eyes_is_a_warning():
    (problem,) = cross_check(changed(GOOD, ("backends", 0, "accepts"), ["text"]))

    assert (problem.path, problem.warning) == ("backends", True)
    assert "images" in problem.what


def test_a_route_without_description_is_a_warning():
    (problem,) = cross_check(changed(GOOD, ("routes", 0, "description"), ""))

    assert (problem.path, problem.warning) == ("routes[0].description", True)


@pytest.mark.parametrize(
    ("data", "paths"),
    [
        ({}, []),
        ({"backends": None, "routes": 5, "rules": "x", "classifier": 7}, []),
        ({"routes": ["a", None]}, ["routes"]),
        (
            {
                "routes": [{"name": "other"}],
                "rules": ["x", {}],
                "classifier": {"use": "chain", "of": [None, "embedded", {"of": 5}]},
            },
            [],
        ),
        ({**GOOD, "backends": [{**BACKEND, "name": None}]}, ["routes[0].backends[0]", "routes[1].backends[0]"]),
        ({**GOOD, "backends": [{**BACKEND, "accepts": None}]}, []),
        ({**GOOD, "backends": [BACKEND, "x"]}, []),
        ({**GOOD, "routes": [{"name": None, "backends": [["x"]]}]}, ["routes[0].backends[0]", "routes"]),
    ],
)
def test_what_is_misshapen_does_not_hide_what_else_is_wrong(data, paths):
    assert [path for path, _ in crossed(data)] == paths


values = st.sampled_from(
    [None, 5, -1, "", "x", "other", "auto", [], {}, [1], ["small"], {"use": "arch"}, True, 0.5, "a:b", {"x": {"y": []}}]
)


@given(st.lists(st.tuples(st.sampled_from(list(places_in(FULL))), values | st.just("DELETE")), max_size=4))
def test_whatever_is_written_is_a_configuration_or_a_list_of_problems(changes):
    data = copy.deepcopy(FULL)
    for path, value in changes:
        try:
            owner = value_at(data, path[:-1])
            if value == "DELETE":
                del owner[path[-1]]
            else:
                owner[path[-1]] = value
        except (LookupError, TypeError):
            continue

    config, problems = validate(data, data)
    between = [problem for problem in cross_check(data) if not problem.warning]

    assert (config is None) == bool(problems)
    if config and not between:
        backends = [to_backend(section) for section in config.backends]
        assert RouteTable(tuple(map(to_route, config.routes)), {backend.name: backend for backend in backends})
