from __future__ import annotations

import jsonschema
import pytest
import yaml

from fingerpost.assemble import DEFAULT_FILE
from fingerpost.config import load, load_routes, schema
from fingerpost.errors import ConfigError
from fingerpost.routes import Route

GOOD = """\
backends:
  - name: small
    model: m
    url: http://a/v1
    key: ${SMALL_KEY}
    accepts: [text, image]
routes:
  - name: chat
    description: Chat.
    backends: [small]
  - name: other
    backends: [small]
"""
ENVIRON = {"SMALL_KEY": "sk-SECRET"}

MANY_ERRORS = """\
# Everything here is wrong in its own way.
backends:
  - name: small
    modle: m
    url: localhost:8000
    key: ${SMALL_KEY}
    accepts: [text, smell]
    price: {input: -1, outptu: 2}
  - name: small
    model: m
    url: https://a/v1
    context: many
    key: sk-SECRET
    api_key: sk-SECRET
  - 7
routes:
  - name: chat
    description: Chat.
    backends: [smal]
    backends: [smaller]
  - name: chat
    description: Chat again.
    treshold: 0.5
  - description: Nameless.
    backends: small
rules:
  - {route: chatt, image: perhaps}
classifier: {use: arch, deadlin: 1, key: "${ARCH_KEY}"}
server: {port: "${PORT:-99999}", hots: 0.0.0.0}
sever: {}
"""


@pytest.fixture
def write(tmp_path):
    def written(text, name="fingerpost.yaml"):
        path = tmp_path / name
        path.write_text(text, encoding="utf-8")
        return path

    return written


def problems_of(path, environ=ENVIRON, **options):
    with pytest.raises(ConfigError) as raised:
        load(path, environ, **options)
    return raised.value.problems


def test_a_good_file_is_loaded_with_its_variables(write):
    path = write(GOOD)

    loaded = load(path, ENVIRON)

    assert (loaded.config.backends[0].key, loaded.file, loaded.warnings) == ("sk-SECRET", str(path), ())


def test_the_shape_that_tools_may_rely_on_is_read(write):
    text = """\
backends:
  - name: small
    model: nvidia/nvidia-nemotron-nano-9b-v2      # the name sent upstream
    url: https://integrate.api.nvidia.com/v1       # OpenAI-compatible base
    key: ${NVIDIA_API_KEY}
    accepts: [text, tools, json_schema]
    context: 131072                                # tokens
    price: {input: 0.04, output: 0.16}             # USD per million tokens
routes:
  - name: chit_chat
    description: Any social chit chat, small talk, or casual conversation.
    examples: [Hey there!]                         # optional
    backends: [small]                              # in the order to try
  - name: other                                    # reserved and required: what no description fits
    backends: [small]
classifier: {use: arch, url: http://localhost:8011/v1, model: katanemo/Arch-Router-1.5B, deadline: 0.25}
server: {host: 127.0.0.1, port: 8080}
"""

    config = load(write(text), {"NVIDIA_API_KEY": "k"}).config

    assert (config.backends[0].price.output, config.routes[0].examples) == (0.16, ["Hey there!"])
    assert (config.classifier.deadline, config.server.port) == (0.25, 8080)


def test_every_error_is_told_at_once_with_file_line_path_and_fix(write):
    path = write(MANY_ERRORS)

    problems = problems_of(path, {})

    assert {problem.file for problem in problems} == {str(path)}
    assert [(problem.line, problem.path, problem.what) for problem in problems] == [
        (2, "backends", "no backend accepts images: a conversation with an image will be refused (422)"),
        (3, "backends[0].model", "this key is required"),
        (4, "backends[0].modle", "unknown key"),
        (5, "backends[0].url", "not an http or https base URL without query; write one such as https://api.openai.com/v1"),
        (6, "backends[0].key", "the environment variable SMALL_KEY is not set or empty"),
        (7, "backends[0].accepts[1]",
         "this should be 'text', 'image', 'audio', 'video', 'file', 'tools' or 'json_schema' ('smell')"),
        (8, "backends[0].price.input", "this should be greater than or equal to 0 (-1)"),
        (8, "backends[0].price.outptu", "unknown key"),
        (9, "backends[1].name", "'small' is there twice"),
        (12, "backends[1].context", "this should be a valid integer, unable to parse string as an integer ('many')"),
        (14, "backends[1].api_key", "unknown key"),
        (15, "backends[2]", "this should be a mapping"),
        (16, "routes", "there is no route named other"),
        (20, "routes[0].backends", "the key is there twice, first in line 19"),
        (20, "routes[0].backends[0]", "there is no backend 'smaller'"),
        (21, "routes[1].backends", "route 'chat' has no backend"),
        (21, "routes[1].name", "'chat' is there twice"),
        (23, "routes[1].treshold", "unknown key"),
        (24, "routes[2].name", "this key is required"),
        (25, "routes[2].backends", "this should be a list ('small')"),
        (27, "rules[0].image", "this should be a valid boolean, unable to interpret input ('perhaps')"),
        (27, "rules[0].route", "there is no route 'chatt'"),
        (28, "classifier.deadlin", "unknown key"),
        (28, "classifier.key", "the environment variable ARCH_KEY is not set or empty"),
        (28, "classifier.url", "this key is required"),
        (29, "server.hots", "unknown key"),
        (29, "server.port", "this should be less than or equal to 65535 ('${PORT:-99999}')"),
        (30, "sever", "unknown key"),
    ]  # fmt: skip
    assert all(problem.fix for problem in problems if problem.path != "backends[0].url")
    assert {problem.path: problem.fix for problem in problems if problem.what == "unknown key"} == {
        "backends[0].modle": "Did you mean model?",
        "backends[0].price.outptu": "Did you mean output?",
        "backends[1].api_key": "Did you mean key?",
        "routes[1].treshold": "Did you mean threshold?",
        "classifier.deadlin": "Did you mean deadline?",
        "server.hots": "Did you mean host?",
        "sever": "Did you mean server?",
    }


def test_the_text_of_the_error_has_a_line_for_each_problem_and_no_key(write):
    path = write(MANY_ERRORS)

    with pytest.raises(ConfigError) as raised:
        load(path, {"SMALL_KEY": "sk-SECRET\nsk-SECRET", "ARCH_KEY": "sk-SECRET"})

    assert f"\n{path}:4: backends[0].modle: unknown key. Did you mean model?\n" in str(raised.value)
    assert "SECRET" not in str(raised.value) + repr(raised.value)


def test_the_error_does_not_drag_along_one_that_shows_the_values(write):
    with pytest.raises(ConfigError) as raised:
        load(write(MANY_ERRORS), {})

    assert raised.value.__cause__ is None
    assert raised.value.__context__ is None


def test_warnings_come_with_what_was_loaded(write):
    loaded = load(write(GOOD.replace(", image", "").replace("Chat.", "''")), ENVIRON)

    assert [(problem.line, problem.path) for problem in loaded.warnings] == [(1, "backends"), (9, "routes[0].description")]
    assert all(problem.warning and problem.file for problem in loaded.warnings)


def test_keys_are_not_in_the_repr_of_what_was_loaded(write):
    text = GOOD.replace("    accepts", "    headers: {x-key: sk-SECRET}\n    accepts")
    text += (
        "classifier: {use: chain, of: [{use: arch, url: 'http://x', key: sk-SECRET}, {use: 'a:b', options: {k: sk-SECRET}}]}\n"
    )

    loaded = load(write(text), ENVIRON)

    assert loaded.config.classifier.of[0].key == "sk-SECRET"
    assert "SECRET" not in repr(loaded)
    assert "SECRET" not in str(loaded)


def test_the_key_that_is_there_twice_is_an_error(write):
    (problem,) = problems_of(write(GOOD + "server: {port: 1}\nserver: {port: 2}\n"))

    assert (problem.line, problem.path, problem.fix) == (14, "server", "Keep one of them")


def test_an_unset_variable_is_the_only_error_of_its_place(write):
    (problem,) = problems_of(write(GOOD.replace("http://a/v1", "${URL}")))

    assert (problem.line, problem.path) == (4, "backends[0].url")
    assert "URL is not set" in problem.what


def test_deciding_alone_needs_no_key(write):
    assert load(write(GOOD), {}, deciding_only=True).config.routes[0].name == "chat"


def test_deciding_alone_still_needs_what_must_be_understood(write):
    (problem,) = problems_of(write(GOOD.replace("http://a/v1", "${URL}")), {}, deciding_only=True)

    assert "URL is not set" in problem.what


def test_deciding_alone_needs_what_its_classifier_needs(write):
    text = GOOD + "classifier: {use: arch, url: 'http://a/v1', key: '${ARCH_KEY}'}\n"

    (problem,) = problems_of(write(text), {}, deciding_only=True)

    assert problem.path == "classifier.key"


def test_a_date_like_api_version_needs_no_quotes(write):
    loaded = load(write(GOOD.replace("    accepts", "    auth: api-key\n    api_version: 2024-10-21\n    accepts")), ENVIRON)

    assert loaded.config.backends[0].api_version == "2024-10-21"


@pytest.mark.parametrize("text", ["", "hello", "- a\n", "5\n"])
def test_what_is_no_configuration_at_all_is_an_error(write, text):
    assert problems_of(write(text))[0].line == 1


def test_what_is_merged_in_is_placed_where_it_is_used(write):
    text = GOOD.replace("  - name: small\n", "  - name: small\n    <<: {contxt: 5, timeouts: {reed: 1}}\n")

    assert [(problem.line, problem.path) for problem in problems_of(write(text))] == [
        (2, "backends[0].contxt"),
        (2, "backends[0].timeouts.reed"),
    ]


# The default file


@pytest.fixture(scope="module")
def default():
    return load(DEFAULT_FILE, {"NVIDIA_API_KEY": "k", "OPENAI_API_KEY": "k"})


@pytest.mark.parametrize(
    ("name", "description", "model"),
    [
        ("hard_question", "A question that requires deep reasoning, or complex problem solving, or if the user asks for careful"
         " thinking or careful consideration", "gpt-5-chat"),
        ("chit_chat", "Any social chit chat, small talk, or casual conversation.", "nvidia/nvidia-nemotron-nano-9b-v2"),
        ("try_again", "Only if the user explicitly says the previous answer was incorrect or incomplete.", "gpt-5-chat"),
        ("image_understanding", "A question that requires understanding an image.", "nvidia/nemotron-nano-12b-v2-vl"),
        ("image_question", "A question that requires the assistant to see the user eg a question about their appearance,"
         " environment, scene or surroundings.", "nvidia/nemotron-nano-12b-v2-vl"),
        ("other", "", "nvidia/nvidia-nemotron-nano-9b-v2"),
    ],
)  # fmt: skip
def test_the_default_file_has_the_notebooks_routes_word_for_word(default, name, description, model):
    (route,) = [route for route in default.config.routes if route.name == name]
    models = {backend.name: backend.model for backend in default.config.backends}

    examples = ["Look at this photo and describe it."] if name == "image_understanding" else []
    assert (route.description, route.examples, models[route.backends[0]]) == (description, examples, model)


def test_the_default_file_has_nothing_more_and_no_warning(default):
    assert len(default.config.routes) == 6
    assert len(default.config.backends) == 3
    assert default.warnings == ()
    assert default.config.classifier.use == "embedded"


def test_only_backends_that_can_see_serve_the_image_routes_of_the_default_file(default):
    accepts = {backend.name: backend.accepts for backend in default.config.backends}

    for route in default.config.routes:
        if route.name.startswith("image"):
            assert all("image" in accepts[name] for name in route.backends)


def test_the_default_file_needs_only_the_two_keys():
    assert [problem.path for problem in problems_of(DEFAULT_FILE, {})] == [
        "backends[0].key",
        "backends[1].key",
        "backends[2].key",
    ]


# Lists of routes


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("r.yaml", "- name: a\n  description: Ä 😀.\n  examples: [x]\n- {name: other}\n"),
        ("r.json", '[\n\t{"name": "a", "description": "\\u00c4 \\ud83d\\ude00.", "examples": ["x"]},\n\t{"name": "other"}\n]'),
        ("r.json", '[{"name": "a", "description": "Ä 😀.", "examples": ["x"], "backends": ["b"]}, {"name": "other"}]'),
    ],
)
def test_a_list_of_routes_may_be_yaml_or_json(write, name, text):
    assert load_routes(write(text, name)) == (Route("a", "Ä 😀.", ("x",)), Route("other"))


def test_every_error_of_a_list_of_routes_is_told_at_once(write):
    path = write("- name: a\n  exmples: [x]\n- 5\n- description: b\n  rules: 1\n- {name: a, name: b}\n")

    with pytest.raises(ConfigError) as raised:
        load_routes(path)

    assert [(problem.line, problem.path, problem.what) for problem in raised.value.problems] == [
        (6, "[3].name", "the key is there twice, first in line 6"),
        (2, "[0].exmples", "unknown key"),
        (3, "[1]", "this should be a mapping"),
        (4, "[2].name", "this key is required"),
        (5, "[2].rules", "unknown key"),
    ]


@pytest.mark.parametrize(
    ("text", "line", "path"),
    [
        ("- name: a\n- name: a\n", 2, "[1].name"),
        ("- name: auto\n", 1, "[0].name"),
        ("- name: ''\n", 1, "[0].name"),
        ("routes: []\n", 1, ""),
        ("", 1, ""),
    ],
)
def test_a_list_of_routes_that_cannot_be_used_is_refused(write, text, line, path):
    with pytest.raises(ConfigError) as raised:
        load_routes(write(text))

    assert [(problem.line, problem.path) for problem in raised.value.problems] == [(line, path)]


# The JSON Schema


def is_valid(data):
    return jsonschema.Draft202012Validator(schema()).is_valid(data)


def test_the_schema_is_a_valid_schema():
    jsonschema.Draft202012Validator.check_schema(schema())


def test_the_schema_takes_the_default_file_and_the_one_above():
    for text in (DEFAULT_FILE.read_text(encoding="utf-8"), GOOD):
        jsonschema.validate(yaml.safe_load(text), schema(), jsonschema.Draft202012Validator)


@pytest.mark.parametrize(
    ("classifier", "valid"),
    [
        ("embedded", True),
        ("my.module:build", True),
        ("arch", False),
        ("embeded", False),
        (5, False),
        ({"use": "embedded"}, True),
        ({"use": "embedded", "url": "x"}, False),
        ({"use": "arch", "url": "http://x", "deadline": 0.25}, True),
        ({"use": "arch"}, False),
        ({"use": "rules", "rules": [{"route": "a", "image": True}]}, True),
        ({"use": "fixed", "route": "a", "confidence": 2}, False),
        ({"use": "m:b", "options": {"a": 1}}, True),
        ({"use": "chain", "of": ["embedded", "m:b", {"use": "arch", "url": "http://x"}]}, True),
        ({"use": "chain", "of": ["embeded"]}, False),
        ({"use": "chain", "of": []}, False),
    ],
)
def test_the_schema_takes_the_classifiers_that_load_takes(write, classifier, valid):
    data = {**yaml.safe_load(GOOD), "classifier": classifier}
    data["routes"].append({"name": "a", "description": "A.", "backends": ["small"]})

    assert is_valid(data) == valid
    if valid:
        assert load(write(yaml.safe_dump(data)), ENVIRON)
    else:
        assert problems_of(write(yaml.safe_dump(data)))


@pytest.mark.parametrize("key", ["serverr", "backend"])
def test_the_schema_refuses_unknown_keys(key):
    assert not is_valid({**yaml.safe_load(GOOD), key: {}})


def test_the_schema_describes_every_section_and_names_its_dialect():
    described = schema()

    assert described["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    assert all(section["description"] for section in described["$defs"].values())
