from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fingerpost.config import file as module
from fingerpost.config.file import Source, read, substitute
from fingerpost.errors import ConfigError, Problem


@pytest.fixture
def write(tmp_path):
    def written(text, name="f.yaml"):
        path = tmp_path / name
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return path

    return written


def problems_of(path):
    with pytest.raises(ConfigError) as raised:
        read(path)
    return [(problem.line, problem.what) for problem in raised.value.problems]


# Reading


def test_every_path_has_its_line(write):
    source = read(write("# a comment\na: 1\nb:\n  - c: 2\n    d: [3,\n      4]\n  -\n    e: {f: 5}\n"))

    assert source.data == {"a": 1, "b": [{"c": 2, "d": [3, 4]}, {"e": {"f": 5}}]}
    assert source.lines == {
        "": 2, "a": 2, "b": 3, "b[0]": 4, "b[0].c": 4, "b[0].d": 5, "b[0].d[0]": 5, "b[0].d[1]": 6, "b[1]": 8, "b[1].e": 8,
        "b[1].e.f": 8,
    }  # fmt: skip


@pytest.mark.parametrize("text", ["", "\n", "# only a comment\n", "---\n"])
def test_an_empty_file_is_an_empty_mapping_or_nothing(write, text):
    assert not read(write(text)).data


@pytest.mark.parametrize("start", [b"\xef\xbb\xbf", b"---\n", b"%YAML 1.1\n---\n"])
def test_the_start_of_a_file_may_carry_what_editors_write(write, start):
    assert read(write(start + "a: größe 😀\r\n".encode())).data == {"a": "größe 😀"}


def test_anchors_and_merges_are_resolved(write):
    assert read(write("x: &x {a: 1}\ny: {<<: *x, b: 2}\nz: *x\n")).data == {"x": {"a": 1}, "y": {"a": 1, "b": 2}, "z": {"a": 1}}


def test_a_date_is_the_text_that_it_is(write):
    assert read(write("api_version: 2024-10-21\nat: 2024-10-21T10:00:00Z\nno: 2024-13-45\n")).data == {
        "api_version": "2024-10-21", "at": "2024-10-21T10:00:00Z", "no": "2024-13-45",
    }  # fmt: skip


def test_reading_dates_as_text_leaves_the_loader_of_others_alone():
    assert module.yaml.safe_load("2024-10-21").year == 2024


def test_keys_are_the_text_that_they_are_written_as(write):
    assert read(write("on: 1\n1: 2\nnull: 3\n1.5: 4\n")).data == {"on": 1, "1": 2, "null": 3, "1.5": 4}


def test_json_is_read_too(write):
    text = '[\n\t{"name": "\\ud83d\\ude00 \\u00e9 \\/", "n": [1, null, true]}\n]'

    assert read(write(text, "f.json")).data == [{"name": "😀 é /", "n": [1, None, True]}]


@pytest.mark.parametrize(
    ("text", "line", "what"),
    [
        ("a: 1\nb: [", 2, "this is not YAML"),
        ("a: 1\n\tb: 2\n", 2, "this is not YAML: found character '\\t'"),
        ("a: 1\n---\nb: 2\n", 2, "but found another document"),
        ("a: 1\nb: *c\n", 2, "found undefined alias"),
        ("a: 1\nb: !!python/object:os.system {}\n", 2, "could not determine a constructor"),
        ("a: 1\nb: {{NAME}}\n", 2, "a key must be text; put quotes"),
        ("a: 1\n? [b, c]\n: d\n", 2, "a key must be text; put quotes"),
        ("a: 1\n? {b: c}\n: d\n", 2, "a key must be text; put quotes"),
        ("a: &a [*a]\n", None, "nested too deeply, or an alias refers to what it stands in"),
        ("a: &a {b: *a}\n", None, "nested too deeply, or an alias refers to what it stands in"),
        ("[" * 5000, None, "nested too deeply"),
        ("a: \x00\n", 1, "this is not YAML: unacceptable character #x0000"),
        ("a: \x07\n", 1, "this is not YAML: unacceptable character #x0007"),
        ("a: 0x_\n", None, "a value cannot be read"),
        ("a: !!int b\n", None, "a value cannot be read"),
        ("a: " + "9" * 5000, None, "a value cannot be read"),
        ('a: "\\ud800"\n', None, "a value cannot be read"),
        ("a: größe".encode("latin-1"), None, "this is not text in UTF-8"),
        ("a: 1".encode("utf-16"), None, "this is not text in UTF-8"),
    ],
)
def test_what_cannot_be_read_is_one_problem_with_its_file(write, text, line, what):
    path = write(text)

    with pytest.raises(ConfigError) as raised:
        read(path)

    (problem,) = raised.value.problems
    assert (problem.file, problem.line) == (str(path), line)
    assert what in problem.what


def test_a_file_that_is_not_there_is_a_problem_that_says_what_to_do(tmp_path):
    with pytest.raises(ConfigError, match=r"there is no file .*none\.yaml\. `fingerpost init` writes one"):
        read(tmp_path / "none.yaml")


@pytest.mark.parametrize("text", ["a: {b: ${NAME}}", "a: 1\nb: {c: ${NAME:-x}, d: 1}\r\nc: 1\n"])
def test_a_variable_within_braces_is_told_to_need_quotes(write, text):
    with pytest.raises(ConfigError, match="Within braces a variable needs quotes"):
        read(write(text))


@pytest.mark.parametrize("path", [".", "a\0b"])
def test_what_is_no_file_is_a_problem(path):
    assert "cannot be read" in problems_of(path)[0][1]


def test_keys_that_are_there_twice_are_noted_with_both_lines(write):
    source = read(write("a:\n  b: 1\n  c: 2\n  b: 3\na: 5\nd: [{e: 1, e: 2}]\n"))

    assert [(problem.path, problem.what, source.located(problem).line) for problem in source.problems] == [
        ("a.b", "the key is there twice, first in line 2", 4),
        ("a", "the key is there twice, first in line 1", 5),
        ("d[0].e", "the key is there twice, first in line 6", 6),
    ]


@given(st.text() | st.text(alphabet="ab: -[]{}&*!\"'\n\t#|>%@`,?<=0x_"))
def test_any_text_is_read_or_refused(tmp_path_factory, text):
    path = tmp_path_factory.getbasetemp() / "any.yaml"
    path.write_text(text, encoding="utf-8", newline="")

    try:
        assert read(path).file == str(path)
    except ConfigError as error:
        assert error.problems  # noqa: PT017


# Places


@pytest.mark.parametrize(
    ("path", "line"),
    [
        ("a.b[0].c", 3),
        ("a.b[0].missing", 2),
        ("a.b[7]", 1),
        ("a.x.y.z", 9),
        ("missing", 5),
        ("", 5),
        ("a.b[0].we[ird", 2),
        ("a.b[0].", 2),
        ("]", 5),
        ("[0]", 5),
        ("..[[", 5),
    ],
)
def test_a_problem_is_placed_at_its_path_or_the_nearest_around_it(path, line):
    source = Source("f.yaml", None, {"": 5, "a": 9, "a.b": 1, "a.b[0]": 2, "a.b[0].c": 3})

    placed = source.located(Problem(path, "wrong"))

    assert (placed.file, placed.line, placed.path) == ("f.yaml", line, path)


def test_a_problem_of_an_empty_file_is_in_its_first_line():
    assert Source("f.yaml", {}, {}).located(Problem("routes", "missing")).line == 1


# Variables

ENVIRON = {"NAME": "value", "EMPTY": "", "BRACES": "${NAME}", "A_1": "x"}


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("${NAME}", "value"),
        ("a ${NAME} b ${A_1}", "a value b x"),
        ("${NAME:-default}", "value"),
        ("${NONE:-default}", "default"),
        ("${EMPTY:-default}", "default"),
        ("${NONE:-}", ""),
        ("${NONE:-a:-b $x}", "a:-b $x"),
        ("${BRACES}", "${NAME}"),
        ("$NAME", "$NAME"),
        ("${}", "${}"),
        ("${1A}", "${1A}"),
        ("${NAME", "${NAME"),
        ("$${NAME}", "$value"),
        (5, 5),
        (None, None),
        (True, True),
        ({"${NAME}": ["${NAME}", {"a": "${NAME}"}]}, {"${NAME}": ["value", {"a": "value"}]}),
    ],
)
def test_variables_are_replaced_in_values_once(written, meant):
    assert substitute(written, ENVIRON) == (meant, [])


def test_every_variable_without_a_value_is_a_problem_at_its_path():
    data, unset = substitute({"a": ["x", "${NONE} ${NAME} ${EMPTY}"], "b": {"c": "${NONE}"}}, ENVIRON)

    assert data == {"a": ["x", "NONE value EMPTY"], "b": {"c": "NONE"}}
    assert [(problem.path, problem.what) for problem in unset] == [
        ("a[1]", "the environment variable NONE is not set or empty"),
        ("a[1]", "the environment variable EMPTY is not set or empty"),
        ("b.c", "the environment variable NONE is not set or empty"),
    ]
    assert unset[0].fix == "Set it (export NONE=...), or write ${NONE:-default}"


def test_variables_come_from_the_process_unless_given():
    name, value = next((name, value) for name, value in module.os.environ.items() if value and name.isidentifier())

    assert substitute(f"${{{name}}}") == (value, [])
