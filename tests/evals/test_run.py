from __future__ import annotations

import gzip
import json
from itertools import count

import pytest

from fingerpost.classifiers.fixed import Fixed
from fingerpost.errors import ClassifierError, ConfigError
from fingerpost.evals.run import evaluate, find_strangers, judge, read_rows
from fingerpost.records import Verdict
from fingerpost.router import Router
from fingerpost.routes import OTHER, Route, RouteTable
from fingerpost.testing import ScriptedClassifier

TABLE = RouteTable((Route("chat", "Chat."), Route("hard", "Hard."), Route(OTHER)))
ASKED = [{"role": "user", "content": "Größe?"}]
ROW = {"id": "1", "messages": ASKED, "route": "chat"}


@pytest.fixture
def write(tmp_path):
    def write(*rows, name="data.jsonl"):
        path = tmp_path / name
        text = "".join((row if isinstance(row, str) else json.dumps(row, ensure_ascii=False)) + "\n" for row in rows)
        path.write_bytes(gzip.compress(text.encode()) if name.endswith(".gz") else text.encode())
        return path

    return write


@pytest.mark.parametrize("name", ["data.jsonl", "data.jsonl.gz", "data"])
def test_rows_are_read_from_plain_and_packed_files(write, name):
    (row,) = read_rows(write(ROW, name=name))
    assert row.id == "1"
    assert row.request.conversation.text == "Größe?"
    assert row.right == ("chat",)
    assert row.group is None
    assert row.request.routes is None


def test_empty_lines_are_passed_over(write):
    assert [row.id for row in read_rows(write("", ROW, "  ", {**ROW, "id": "2"}, ""))] == ["1", "2"]


def test_an_empty_file_has_no_rows(write):
    assert read_rows(write()) == []


def test_a_byte_order_mark_does_not_matter(write):
    assert len(read_rows(write("\ufeff" + json.dumps(ROW)))) == 1


def test_a_row_may_bring_everything(write):
    routes = [{"name": "a", "description": "A.", "examples": ["x"], "backends": ["gone"], "note": 1}, {"name": "other"}]
    row = {**ROW, "id": 7, "route": "a", "also": ["other", "a"], "group": 3, "routes": routes, "turn": "new"}
    (read,) = read_rows(write(row))
    assert (read.id, read.right, read.group) == ("7", ("a", "other"), "3")
    assert [(route.name, route.description, route.examples) for route in read.request.routes] == [
        ("a", "A.", ("x",)),
        ("other", "", ()),
    ]


@pytest.mark.parametrize("also", [None, []])
def test_a_row_without_further_right_routes_may_say_so(write, also):
    assert read_rows(write({**ROW, "also": also, "routes": None, "group": None}))[0].right == ("chat",)


def test_a_row_without_an_id_has_its_lines_number(write):
    assert read_rows(write(ROW, {"messages": ASKED, "route": "chat"}))[1].id == "2"


BAD = [
    ("{", "this is not JSON"),
    ("chat", "this is not JSON"),
    ("[" * 100_000, "this is not JSON"),
    ("[]", "a row needs a route"),
    ("null", "a row needs a route"),
    ('"chat"', "a row needs a route"),
    ({"id": "1", "messages": ASKED}, "a row needs a route"),
    ({**ROW, "route": None}, "a row needs a route"),
    ({**ROW, "route": 5}, "a row needs a route"),
    ({**ROW, "route": ""}, "a row needs a route"),
    ({**ROW, "route": ["chat"]}, "a row needs a route"),
    ({**ROW, "also": "chat"}, "also is not a list of route names"),
    ({**ROW, "also": 5}, "also is not a list of route names"),
    ({**ROW, "also": [["chat"]]}, "also is not a list of route names"),
    ({**ROW, "also": {"chat": 1}}, "also is not a list of route names"),
    ({"id": "1", "route": "chat"}, "messages: "),
    ({**ROW, "messages": []}, "messages: "),
    ({**ROW, "messages": "Hi"}, "messages: "),
    ({**ROW, "messages": [{"role": "user", "content": 5}]}, "messages[0].content: "),
    ({**ROW, "messages": [{"role": "boss", "content": "Hi"}]}, "messages[0].role: "),
    ({**ROW, "routes": "chat"}, "fingerpost.routes: "),
    ({**ROW, "routes": ["chat"]}, "fingerpost.routes[0]: "),
    ({**ROW, "routes": [{"description": "Chat."}]}, "fingerpost.routes[0].name: "),
    ({**ROW, "routes": [{"name": "a", "description": "A."}] * 2}, "routes[1].name: 'a' is there twice"),
    ({**ROW, "routes": [{"name": "auto", "description": "A."}]}, "routes[0].name: 'auto' is reserved"),
]


@pytest.mark.parametrize(("row", "why"), BAD, ids=[f"{why}{place}" for place, (_, why) in enumerate(BAD)])
def test_a_bad_row_is_named_by_file_and_line(write, row, why):
    path = write(ROW, "", row)
    with pytest.raises(ConfigError) as caught:
        read_rows(path)
    (problem,) = caught.value.problems
    assert str(problem).startswith(f"{path}:3: {why}")
    assert "\n" not in str(problem)
    assert problem.fix.startswith("A row is")


UNREADABLE = {
    "missing.jsonl": None,
    "latin.jsonl": b'{"id": "\xff"}',
    "plain.jsonl.gz": b'{"id": "1"}',
    "cut.jsonl.gz": gzip.compress(json.dumps(ROW).encode())[:-20],
    "broken.jsonl.gz": gzip.compress(b"x" * 1000)[:12] + b"\xff" * 20,
}


@pytest.mark.parametrize("name", UNREADABLE)
def test_a_file_that_cannot_be_read_is_a_problem(tmp_path, name):
    path = tmp_path / name
    if UNREADABLE[name] is not None:
        path.write_bytes(UNREADABLE[name])
    with pytest.raises(ConfigError, match=f"{name} cannot be read"):
        read_rows(path)


def test_a_folder_is_no_file_of_rows(tmp_path):
    with pytest.raises(ConfigError, match="cannot be read"):
        read_rows(tmp_path)


async def test_every_row_is_decided_in_order(write):
    rows = read_rows(write(*({**ROW, "id": str(n)} for n in range(3))))
    seen = []
    decided = await judge(rows, Router(TABLE, Fixed("chat")), lambda: seen.append(len(seen)))
    assert [row.id for row, _ in decided] == ["0", "1", "2"]
    assert {decision.route for _, decision in decided} == {"chat"}
    assert seen == [0, 1, 2]


async def test_the_figures_and_the_lines_tell_the_same(write):
    rows = read_rows(
        write({**ROW, "group": "g"}, {**ROW, "id": "2", "route": "hard", "also": ["chat"]}, {**ROW, "route": "other"})
    )
    classifier = ScriptedClassifier(Verdict({"chat": 0.75, "other": 0.25}, "scripted"))
    figures, lines = await evaluate(rows, Router(TABLE, classifier, cache_size=0))
    assert figures["n"] == 3
    assert figures["accuracy"] == pytest.approx(2 / 3)
    assert figures["other"]["auroc"] == 0.5
    assert [line["correct"] for line in lines] == [True, True, False]
    assert lines[1]["id"] == "2"
    assert lines[1]["right"] == ["hard", "chat"]
    assert lines[1]["route"] == "chat"
    assert lines[1]["probabilities"] == {"chat": 0.75, "other": 0.25}
    assert json.loads(json.dumps(lines)) == lines


async def test_a_row_with_routes_of_its_own_is_decided_among_them(write):
    rows = read_rows(write({**ROW, "routes": [{"name": "own", "description": "Own.", "backends": ["gone"]}], "route": "own"}))
    classifier = ScriptedClassifier(Verdict({"own": 1.0}, "scripted"))
    figures, lines = await evaluate(rows, Router(RouteTable(()), classifier))
    assert figures["accuracy"] == 1.0
    assert lines[0]["backends"] == []


async def test_rows_without_a_verdict_count_as_other(write):
    rows = read_rows(write(ROW, {**ROW, "route": "other"}))
    figures, lines = await evaluate(rows, Router(TABLE, ScriptedClassifier(ClassifierError("down")), cache_size=0))
    assert figures["accuracy"] == 0.5
    assert figures["ece"] == 0.5
    assert lines[0]["reason"] == "scripted gave no verdict (down): the default route"


async def test_the_classifier_is_prepared_before_the_clock_starts(write):
    classifier = ScriptedClassifier(Verdict({"chat": 1.0}, "scripted"))
    figures, _ = await evaluate(read_rows(write(ROW, ROW)), Router(TABLE, classifier), clock=count(0, 4).__next__)
    assert classifier.prepared == [TABLE]
    assert figures["rows_per_s"] == 0.5


async def test_the_precision_of_the_thresholds_can_be_chosen(write):
    rows = read_rows(write(ROW, {**ROW, "route": "hard"}))
    router = Router(TABLE, Fixed("chat"), cache_size=0)
    assert (await evaluate(rows, router))[0]["thresholds"] == {"chat": None}
    assert (await evaluate(rows, router, precision=0.5))[0]["thresholds"] == {"chat": 0.0}


async def test_an_image_in_a_row_is_no_constraint_where_nothing_is_carried(write):
    part = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
    rows = read_rows(write({**ROW, "messages": [{"role": "user", "content": [part]}]}))
    assert (await evaluate(rows, Router(TABLE, Fixed("chat"))))[0]["accuracy"] == 1.0


def test_routes_that_can_never_be_right_are_found(write):
    own = [{"name": "own", "description": "Own."}]
    rows = read_rows(
        write(
            ROW,
            {**ROW, "route": "chta"},
            {**ROW, "route": "gone", "also": ["hard"]},
            {**ROW, "route": "own", "routes": own},
            {**ROW, "route": "chat", "routes": own},
            {**ROW, "route": "other", "routes": own},
        )
    )
    assert find_strangers(rows, TABLE) == ["chat", "chta"]
