from __future__ import annotations

import inspect

import pytest

from fingerpost import errors
from fingerpost.errors import (
    ConfigError,
    FingerpostError,
    InvalidRequest,
    Problem,
    UpstreamBusy,
    UpstreamError,
    UpstreamTimeout,
)

CLASSES = [cls for _, cls in inspect.getmembers(errors, inspect.isclass) if issubclass(cls, Exception)]


def test_there_are_at_most_ten_error_classes():
    assert 1 < len(CLASSES) <= 10


@pytest.mark.parametrize("cls", CLASSES)
def test_every_error_is_a_fingerpost_error_with_a_status_a_code_and_a_reason(cls):
    assert issubclass(cls, FingerpostError)
    assert 400 <= cls.status < 600
    assert cls.code.islower()
    assert isinstance(cls.retryable, bool)
    assert cls.__doc__


def test_no_two_errors_share_a_code():
    assert len({cls.code for cls in CLASSES}) == len(CLASSES)


def test_only_a_backends_failure_may_be_retried_elsewhere():
    assert {cls for cls in CLASSES if cls.retryable} == {UpstreamError, UpstreamTimeout, UpstreamBusy}


@pytest.mark.parametrize("cls", [cls for cls in CLASSES if cls is not ConfigError])
def test_an_error_tells_the_client_in_openais_shape(cls):
    kind = "invalid_request_error" if cls.status < 500 else "server_error"

    assert cls("So it is.", param="messages[0].role").to_json() == {
        "error": {"message": "So it is.", "type": kind, "param": "messages[0].role", "code": cls.code}
    }


def test_an_error_without_a_path_says_null():
    assert InvalidRequest("no").to_json()["error"]["param"] is None


def test_an_errors_text_is_its_message():
    assert str(InvalidRequest("naïve 😀")) == InvalidRequest("naïve 😀").message == "naïve 😀"


@pytest.mark.parametrize(
    ("problem", "text"),
    [
        (Problem("a.b", "wrong"), "a.b: wrong"),
        (Problem("a.b", "wrong", "Mend it"), "a.b: wrong. Mend it"),
        (Problem("a.b", "wrong", "Mend it", "f.yaml", 7), "f.yaml:7: a.b: wrong. Mend it"),
        (Problem("a.b", "wrong", file="f.yaml"), "f.yaml: a.b: wrong"),
        (Problem("", "wrong", file="f.yaml", line=1), "f.yaml:1: wrong"),
        (Problem("", "wrong"), "wrong"),
    ],
)
def test_a_problem_reads_file_line_path_what_and_fix(problem, text):
    assert str(problem) == text


def test_a_config_error_holds_all_problems_and_says_each_on_a_line():
    problems = [Problem("a", "one"), Problem("b", "two")]

    error = ConfigError(problems)

    assert error.problems == tuple(problems)
    assert error.message == "a: one\nb: two"
    assert error.to_json()["error"]["code"] == "invalid_config"
