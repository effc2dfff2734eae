from __future__ import annotations

import gzip
import io
import json
import os
import pty
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from fingerpost import __version__
from fingerpost.assemble import DEFAULT_FILE
from fingerpost.cli import main
from fingerpost.testing import FakeBackend, FakeReply

CONFIG = """\
backends:
  - {name: small, model: org/small, url: http://localhost:1/v1, accepts: [text, image], context: 1000}
  - {name: big, model: org/big, url: http://localhost:2/v1, key: secret}
routes:
  - {name: chat, description: Small talk., examples: [Hey!, Hi.], backends: [small]}
  - {name: hard, description: Riddles., backends: [big, small]}
  - {name: other, backends: [small]}
rules:
  - {image: true, route: hard}
classifier: {use: fixed, route: chat, confidence: 0.75}
"""
ROUTES = "- {name: chat, description: Small talk.}\n- {name: hard, description: Riddles.}\n"
ROWS = [
    {"id": "1", "messages": [{"role": "user", "content": "Hé!"}], "route": "chat", "group": "g"},
    {"id": "2", "messages": [{"role": "user", "content": "Who?"}], "route": "hard", "also": ["chat"], "group": "g"},
    {"id": "3", "messages": [{"role": "user", "content": "Rain?"}], "route": "other", "group": "h"},
    {"id": "4", "messages": [{"role": "user", "content": "Hm"}], "route": "hard", "group": "h"},
]
FIXED = "fingerpost.classifiers.fixed:Fixed"


@pytest.fixture
def config(tmp_path):
    path = tmp_path / "fingerpost.yaml"
    path.write_text(CONFIG)
    return str(path)


@pytest.fixture
def data(tmp_path):
    return write_rows(tmp_path / "data.jsonl", ROWS)


def write_rows(path: Path, rows) -> str:
    text = "".join(json.dumps(row) + "\n" for row in rows)
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return str(path)


@pytest.fixture
def call(capsys):
    """Runs a command here; returns its exit code, output and errors."""

    def call(*arguments: object) -> tuple[int, str, str]:
        code = main([str(argument) for argument in arguments])
        out, err = capsys.readouterr()
        return code, out, err

    return call


def spawn(*arguments: object, **options) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "fingerpost", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, **options)


# Wrong commands


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["nonsense"],
        ["route"],
        ["eval"],
        ["route", "Hi", "--nonsense"],
        ["schema", "file"],
        ["serve", "--port", "x"],
        ["serve", "--port", "65536"],
        ["serve", "--port", "-1"],
        ["eval", "x", "--precision", "95"],
        ["eval", "x", "--precision", "nan"],
        ["eval", "x", "--precision", "much"],
    ],
)
def test_a_wrong_command_is_explained_and_exits_with_2(arguments, capsys):
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("usage: fingerpost")


def test_the_version_is_told(capsys):
    with pytest.raises(SystemExit) as caught:
        main(["--version"])
    assert caught.value.code == 0
    assert capsys.readouterr().out == f"fingerpost {__version__}\n"


def test_help_lists_every_command():
    told = spawn("--help")
    assert told.returncode == 0
    assert all(f"    {name}" in told.stdout for name in ("demo", "init", "check", "schema", "serve", "route", "eval"))


# init


def test_init_writes_the_default_configuration_and_never_overwrites_one(call, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, out, _ = call("init")
    assert code == 0
    assert "fingerpost.yaml" in out
    assert Path("fingerpost.yaml").read_bytes() == DEFAULT_FILE.read_bytes()
    Path("fingerpost.yaml").write_text("mine")
    code, out, err = call("init")
    assert (code, out) == (2, "")
    assert err == "fingerpost.yaml is there already; --force overwrites it\n"
    assert Path("fingerpost.yaml").read_text() == "mine"
    assert call("init", "--force")[0] == 0
    assert Path("fingerpost.yaml").read_bytes() == DEFAULT_FILE.read_bytes()


def test_init_into_another_file(call, tmp_path):
    assert call("init", tmp_path / "a.yaml")[0] == 0
    assert (tmp_path / "a.yaml").exists()


def test_init_where_nothing_can_be_written_says_why(call, tmp_path):
    code, _, err = call("init", tmp_path / "missing" / "a.yaml")
    assert code == 1
    assert err == f"{tmp_path}/missing/a.yaml: No such file or directory\n"
    assert call("init", tmp_path, "--force")[0] == 1


# check


def test_check_prints_what_the_configuration_says(call, config):
    code, out, err = call("check", config)
    assert (code, err) == (0, "")
    assert out == (
        "backends\n"
        "  small  org/small  http://localhost:1/v1  without a key  1000 tokens      image, text\n"
        "  big    org/big    http://localhost:2/v1  with a key     context unknown  json_schema, text, tools\n"
        "routes\n"
        "  chat   small           2 examples\n"
        "  hard   big then small\n"
        "  other  small\n"
        "classifier: fixed; server: 127.0.0.1:8080\n"
    )


def test_check_looks_at_fingerpost_yaml_unless_told_otherwise(call, config, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert call("check") == call("check", "--config", config) == call("check", config)


def test_check_never_prints_a_key(call, config):
    assert "secret" not in "".join(map(str, call("check", config)))


def test_check_prints_warnings_to_standard_error_and_exits_with_0(call, config):
    Path(config).write_text(CONFIG.replace("[text, image]", "[text]"))
    code, out, err = call("check", config)
    assert code == 0
    assert out.startswith("backends\n")
    assert err.startswith(f"warning: {config}:1: backends: no backend accepts images")


def test_check_warns_of_descriptions_that_can_hardly_be_told_apart(call, config):
    alike = CONFIG.replace("examples: [Hey!, Hi.], ", "").replace("chat", "one").replace("hard", "two")
    for description in ("Small talk.", "Riddles."):
        alike = alike.replace(description, "The user asks for a refund of a purchase.")
    Path(config).write_text(alike.split("classifier:")[0])
    code, _, err = call("check", config)
    assert code == 0
    assert err.startswith("warning: ")
    assert "one and two mean nearly the same" in err


def test_check_prints_every_error_with_file_and_line_and_exits_with_2(call, config):
    broken = CONFIG.replace("backends: [big, small]", "backends: [huge]").replace("description: Riddles.", "descripton: R")
    Path(config).write_text(broken.replace("route: hard", "route: hart") + "servr: {}\n")
    code, out, err = call("check", config)
    assert (code, out) == (2, "")
    lines = err.splitlines()
    assert len(lines) >= 4
    assert any(line.startswith(f"{config}:6: routes[1].descripton: unknown key. Did you mean description?") for line in lines)
    assert any(line.startswith(f"{config}:6: routes[1].backends[0]: there is no backend 'huge'") for line in lines)
    assert any(line.startswith(f"{config}:9: rules[0].route: there is no route 'hart'") for line in lines)
    assert any(line.startswith(f"{config}:11: servr: unknown key") for line in lines)


def test_check_finds_what_can_only_be_seen_when_it_is_built(call, config):
    Path(config).write_text(CONFIG.split("classifier:")[0] + "classifier: nowhere.to_be_found:Classifier\n")
    code, out, err = call("check", config)
    assert (code, out) == (2, "")
    assert "nowhere.to_be_found:Classifier cannot be imported" in err


def test_check_marks_warnings_among_errors(call, config):
    Path(config).write_text(CONFIG.replace("[text, image]", "[text]").replace("route: hard", "route: hart"))
    code, _, err = call("check", config)
    assert code == 2
    assert sum(line.startswith("warning: ") for line in err.splitlines()) == 1
    assert "there is no route 'hart'" in err


def test_check_of_a_missing_file_says_what_to_do(call, tmp_path):
    code, _, err = call("check", tmp_path / "missing.yaml")
    assert code == 2
    assert "there is no file" in err
    assert "fingerpost init" in err


def test_check_of_the_default_configuration_needs_its_variables():
    bare = {key: value for key, value in os.environ.items() if not key.endswith("_API_KEY")}  # noqa: TID251
    told = spawn("check", DEFAULT_FILE, env=bare)
    assert told.returncode == 2
    assert told.stderr.count("NVIDIA_API_KEY is not set") == 2
    assert spawn("check", DEFAULT_FILE, env={**bare, "NVIDIA_API_KEY": "x", "OPENAI_API_KEY": "y"}).returncode == 0


# schema


def test_schema_prints_a_json_schema(call):
    code, out, _ = call("schema")
    assert code == 0
    assert {"backends", "routes", "classifier", "server"} <= json.loads(out)["properties"].keys()


# serve


def test_serve_of_a_broken_file_exits_with_2(call, tmp_path):
    (tmp_path / "a.yaml").write_text("routes: []")
    assert call("serve", tmp_path / "a.yaml")[0] == 2


def test_serve_prints_warnings_and_fails_where_the_port_is_taken(call, config):
    Path(config).write_text(CONFIG.replace("[text, image]", "[text]"))
    with socket.create_server(("127.0.0.1", 0)) as taken:
        code, _, err = call("serve", config, "--host", "127.0.0.1", "--port", taken.getsockname()[1])
    assert code == 1
    assert "warning: " in err


# route


def test_route_prints_the_route_of_a_text(call, config):
    assert call("route", "Hi", "--config", config) == (0, "chat\n", "")


def test_route_reads_standard_input(call, config, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.StringIO("  Hi there!\n"))
    assert call("route", "-", "--config", config)[:2] == (0, "chat\n")


def test_route_reads_messages_from_a_json_file(call, config, tmp_path):
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
    (tmp_path / "a.json").write_text(json.dumps([{"role": "user", "content": [image]}]))
    assert call("route", tmp_path / "a.json", "--config", config)[:2] == (0, "hard\n")


def test_route_reads_a_whole_request_from_a_json_file(call, config, tmp_path):
    body = {"model": "hard", "messages": [{"role": "user", "content": "Hi"}]}
    (tmp_path / "a.json").write_text("\ufeff" + json.dumps(body), encoding="utf-8")
    assert call("route", tmp_path / "a.json", "--config", config)[:2] == (0, "hard\n")


def test_route_of_a_request_that_names_a_backend_prints_the_backend(call, config, tmp_path):
    (tmp_path / "a.json").write_text(json.dumps({"model": "big", "messages": [{"role": "user", "content": "Hi"}]}))
    assert call("route", tmp_path / "a.json", "--config", config)[:2] == (0, "big\n")
    assert (
        "route    - (the request names a backend)\n" in call("route", tmp_path / "a.json", "--config", config, "--explain")[1]
    )


def test_a_json_file_that_holds_a_string_is_a_text(call, config, tmp_path):
    (tmp_path / "a.json").write_text('"Hi"')
    assert call("route", tmp_path / "a.json", "--config", config)[:2] == (0, "chat\n")


def test_a_question_that_ends_like_a_file_name_is_a_question(call, config, tmp_path, monkeypatch):
    assert call("route", "What is in package.json", "--config", config)[:2] == (0, "chat\n")
    monkeypatch.chdir(tmp_path)
    Path("a b.json").write_text("[]")
    assert call("route", "a b.json", "--config", config)[0] == 2


def test_route_prints_the_decision_as_json(call, config):
    code, out, _ = call("route", "Hé!", "--config", config, "--json")
    decision = json.loads(out)
    assert code == 0
    assert out.count("\n") == 1
    assert (decision["route"], decision["backend"], decision["model"]) == ("chat", "small", "org/small")
    assert decision["confidence"] == 0.75
    assert decision["probabilities"] == {"chat": 0.75, "other": 0.25}
    assert {"source", "reason", "constraints", "ms"} <= decision.keys()


def test_route_explains_its_decision(call, config):
    code, out, _ = call("route", "Hi", "--config", config, "--explain")
    assert code == 0
    lines = out.splitlines()
    assert lines[:3] == ["route    chat", "backend  small", "reason   fixed is 75% sure"]
    assert lines[3].startswith("time     ")
    assert lines[4:] == ["  chat    75.0%  " + "#" * 30, "  other   25.0%  " + "#" * 10]


def test_route_explains_what_was_struck_out(call, config, tmp_path):
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
    (tmp_path / "a.json").write_text(json.dumps([{"role": "user", "content": [image]}]))
    out = call("route", tmp_path / "a.json", "--config", config, "--explain")[1]
    assert "backend  small\n" in out
    assert out.endswith("struck out: big does not accept image\n")


def test_route_explains_a_decision_without_a_verdict(call, config):
    Path(config).write_text(CONFIG.split("rules:")[0] + "classifier: fingerpost.testing:ScriptedClassifier\n")
    out = call("route", "Hi", "--config", config, "--explain")[1]
    assert out.splitlines()[:3] == ["route    other", "backend  small", "reason   scripted has no opinion: the default route"]


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (None, "is not a JSON file of messages"),
        (b"Hi", "is not a JSON file of messages"),
        (b"", "is not a JSON file of messages"),
        (b'"\xff"', "is not a JSON file of messages"),
        (b"[" * 100_000, "is not a JSON file of messages"),
        (b"5", "messages: "),
        (b"null", "messages: "),
        (b"[]", "messages: at least one message is needed"),
        (b'[{"role": "boss"}]', "messages[0].role: "),
        (b'{"messages": 5}', "messages: "),
        (b'{"model": "gpt-4", "messages": [{"role": "user", "content": "Hi"}]}', "there is no model 'gpt-4'"),
    ],
)
def test_route_of_a_wrong_file_says_why_and_exits_with_2(call, config, tmp_path, content, why):
    if content is not None:
        (tmp_path / "a.json").write_bytes(content)
    code, out, err = call("route", tmp_path / "a.json", "--config", config)
    assert (code, out) == (2, "")
    assert why in err
    assert err.count("\n") == 1


def test_route_of_standard_input_that_is_no_text_exits_with_2(config):
    command = [sys.executable, "-X", "utf8=0", "-m", "fingerpost", "route", "-", "--config", config]
    environ = {**os.environ, "PYTHONIOENCODING": "utf-8:strict"}  # noqa: TID251
    told = subprocess.run(command, input=b"\xff\xfe", capture_output=True, timeout=60, check=False, env=environ)
    assert told.returncode == 2
    assert told.stderr.startswith(b"standard input is not text: ")


def test_route_that_nothing_can_serve_exits_with_1(call, config, tmp_path):
    (tmp_path / "a.json").write_text(json.dumps([{"role": "user", "content": "x" * 100_000}]))
    Path(config).write_text(CONFIG.replace("key: secret", "context: 100"))
    code, out, err = call("route", tmp_path / "a.json", "--config", config)
    assert (code, out) == (1, "")
    assert "no backend can serve this request: small about" in err


def test_route_with_an_import_string_that_leads_nowhere_exits_with_2(call, config):
    Path(config).write_text(CONFIG.split("classifier:")[0] + "classifier: no.such.module:build\n")
    code, _, err = call("route", "Hi", "--config", config)
    assert code == 2
    assert "classifier.use: no.such.module:build cannot be imported" in err


def test_route_closes_the_connections_of_its_classifier(config):
    with FakeBackend(FakeReply('{"route": "hard"}')) as fake:
        Path(config).write_text(CONFIG.split("classifier:")[0] + f"classifier: {{use: arch, url: {fake.url}, deadline: 20}}\n")
        told = spawn("route", "Hi", "--config", config)
    assert (told.returncode, told.stdout, told.stderr) == (0, "hard\n", "")


def test_route_uses_the_default_configuration_without_any_key():
    told = spawn("route", "Hey there! How's your day going?", "--json", env={"PATH": "/usr/bin", "LC_ALL": "C.UTF-8"})
    assert told.returncode == 0
    assert json.loads(told.stdout)["route"] == "chit_chat"


# eval


def test_eval_prints_the_figures_as_json(call, config, data):
    code, out, err = call("eval", data, "--config", config, "--json")
    assert (code, err) == (0, "")
    figures = json.loads(out)
    assert figures["n"] == 4
    assert figures["accuracy"] == 0.5
    assert figures["group_accuracy"] == 0.5
    assert figures["per_route"]["chat"] == {"precision": 0.5, "recall": 1.0, "f1": pytest.approx(2 / 3), "support": 2}
    assert figures["confusion"] == {"chat": {"chat": 2}, "hard": {"chat": 1}, "other": {"chat": 1}}
    assert {"precision", "recall", "auroc"} <= figures["other"].keys()
    assert {"p50", "p99"} <= figures["latency_ms"].keys()
    assert {"macro_f1", "ece", "rows_per_s"} <= figures.keys()


def test_eval_prints_a_report(call, config, data):
    code, out, _ = call("eval", data, "--config", config)
    assert code == 0
    assert out.startswith("4 rows\n  accuracy        0.500\n")
    assert "     1  hard taken for chat\n" in out


def test_eval_reads_packed_rows(call, config, tmp_path):
    packed = write_rows(tmp_path / "data.jsonl.gz", ROWS)
    assert json.loads(call("eval", packed, "--config", config, "--json")[1])["n"] == 4


def test_eval_writes_each_rows_decision(call, config, data, tmp_path):
    out = tmp_path / "out.jsonl"
    out.write_text("old\n" * 100)
    assert call("eval", data, "--config", config, "--out", out)[0] == 0
    lines = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]
    assert [(line["id"], line["correct"], line["route"]) for line in lines] == [
        ("1", True, "chat"),
        ("2", True, "chat"),
        ("3", False, "chat"),
        ("4", False, "chat"),
    ]


def test_eval_draws_plots(call, config, data, tmp_path):
    assert call("eval", data, "--config", config, "--plots", tmp_path / "plots")[0] == 0
    assert {path.name for path in (tmp_path / "plots").iterdir()} == {"confusion.png", "coverage.png"}


def test_eval_without_matplotlib_says_so_before_the_work(call, config, data, tmp_path, monkeypatch):
    monkeypatch.delitem(sys.modules, "fingerpost.evals.plots", raising=False)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    code, out, err = call("eval", data, "--config", config, "--plots", tmp_path / "plots")
    assert (code, out) == (2, "")
    assert err.startswith("plots need matplotlib")
    assert "fingerpost[notebooks]" in err
    assert not (tmp_path / "plots").exists()


def test_eval_whose_decisions_cannot_be_written_says_so_at_once(call, config, data, tmp_path):
    code, out, err = call("eval", data, "--config", config, "--out", tmp_path)
    assert (code, out) == (1, "")
    assert err == f"{tmp_path}: Is a directory\n"


@pytest.mark.parametrize(("name", "text"), [("routes.yaml", ROUTES), ("routes.json", json.dumps([{"name": "hard"}]))])
def test_eval_takes_routes_from_a_file(call, data, tmp_path, name, text):
    (tmp_path / name).write_text(text)
    code, out, _ = call("eval", data, "--routes", tmp_path / name, "--classifier", "embedded", "--json")
    assert code == 0
    assert json.loads(out)["n"] == 4


def test_eval_takes_the_classifier_from_a_configuration_and_the_routes_from_a_file(call, config, data, tmp_path):
    (tmp_path / "routes.yaml").write_text(ROUTES)
    out = call("eval", data, "--config", config, "--routes", tmp_path / "routes.yaml", "--json")[1]
    assert json.loads(out)["accuracy"] == 0.5


def test_eval_needs_neither_when_every_row_brings_its_routes(call, tmp_path):
    routes = [{"name": "a", "description": "Cooking recipes."}, {"name": "b", "description": "Booking a train."}]
    row = {"id": "1", "messages": [{"role": "user", "content": "How do I cook rice?"}], "route": "a", "routes": routes}
    data = write_rows(tmp_path / "data.jsonl", [row, {**row, "id": "2"}])
    assert json.loads(call("eval", data, "--json")[1])["n"] == 2


def test_eval_needs_routes_when_a_row_brings_none(call, tmp_path):
    data = write_rows(tmp_path / "data.jsonl", [{**ROWS[0], "routes": [{"name": "chat", "description": "Chat."}]}, ROWS[1]])
    code, out, err = call("eval", data)
    assert (code, out) == (2, "")
    assert err == "no routes: not every row brings its own. Give --routes FILE or --config FILE\n"


def test_eval_takes_a_classifier_by_import_string(call, config, data):
    out = call("eval", data, "--config", config, "--classifier", "fingerpost.testing:ScriptedClassifier", "--json")[1]
    assert json.loads(out)["per_route"].keys() == {"chat", "hard", "other"}
    assert json.loads(out)["accuracy"] == 0.25


def test_eval_takes_a_classifier_that_the_configuration_sets_up(call, config, data):
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
    write_rows(Path(data), [{**ROWS[0], "messages": [{"role": "user", "content": [image]}]}])
    assert json.loads(call("eval", data, "--config", config, "--json")[1])["accuracy"] == 0.0
    assert json.loads(call("eval", data, "--config", config, "--classifier", "fixed", "--json")[1])["accuracy"] == 1.0


@pytest.mark.parametrize("name", ["arch", "nonsense", "no.such.module:build", FIXED])
def test_eval_with_a_classifier_that_cannot_be_had_exits_with_2(call, config, data, name):
    code, out, err = call("eval", data, "--config", config, "--classifier", name)
    assert (code, out) == (2, "")
    assert name in err


def test_eval_suggests_thresholds_for_the_precision_that_is_asked_for(call, config, data):
    assert json.loads(call("eval", data, "--config", config, "--json")[1])["thresholds"] == {"chat": None}
    asked = call("eval", data, "--config", config, "--json", "--precision", "0.5")
    assert json.loads(asked[1])["thresholds"] == {"chat": 0.0}


def test_eval_warns_of_labels_that_can_never_be_right(call, config, data):
    write_rows(Path(data), [{**ROWS[0], "route": f"strange_{n}"} for n in range(7)])
    code, _, err = call("eval", data, "--config", config)
    assert code == 0
    assert err == (
        "warning: rows are labelled with routes that cannot be chosen: "
        "strange_0, strange_1, strange_2, strange_3, strange_4, ...\n"
    )


def test_eval_of_a_bad_row_names_its_file_and_line(call, config, data):
    Path(data).write_text(json.dumps(ROWS[0]) + "\n{}\n")
    code, out, err = call("eval", data, "--config", config)
    assert (code, out) == (2, "")
    assert err.startswith(f"{data}:2: a row needs a route")


def test_eval_of_no_rows_exits_with_2(call, config, data, tmp_path):
    Path(data).write_text("\n")
    assert call("eval", data, "--config", config)[::2] == (2, f"{data}: there are no rows\n")
    assert call("eval", tmp_path / "missing.jsonl", "--config", config)[0] == 2


def test_eval_shows_its_progress_on_a_terminal(config, data):
    terminal, side = pty.openpty()
    command = [sys.executable, "-m", "fingerpost", "eval", data, "--config", config, "--json"]
    environ = {**os.environ, "TERM": "xterm", "COLUMNS": "80"}  # noqa: TID251
    told = subprocess.run(command, stdout=subprocess.PIPE, stderr=side, timeout=60, check=False, env=environ)
    os.close(side)
    shown = os.read(terminal, 100_000)
    os.close(terminal)
    assert told.returncode == 0
    assert json.loads(told.stdout)["n"] == 4
    assert b"deciding" in shown
    assert b"4/4" in shown


# demo


def test_demo_prints_a_table_of_the_eleven(call):
    code, out, err = call("demo")
    assert (code, err) == (0, "")
    title, *rows = out.splitlines()
    assert title.split() == ["request", "route", "backend", "confidence", "ms"]
    assert len(rows) == 11
    assert len({len(row) for row in [title, *rows]}) == 1


def test_demo_prints_json(call):
    rows = json.loads(call("demo", "--json")[1])
    assert len(rows) == 11
    assert all(row.keys() == {"request", "route", "backend", "model", "confidence", "ms"} for row in rows)
    assert any("Gödel" in row["request"] for row in rows)


# The process


def test_a_classifier_beside_the_configuration_can_be_imported(config, tmp_path):
    (tmp_path / "my_classifier.py").write_text(f"from {FIXED.replace(':', ' import ')} as build\n")
    Path(config).write_text(CONFIG.split("classifier:")[0] + "classifier: {use: my_classifier:build, options: {route: hard}}\n")
    # The installed command, unlike python -m, does not look into the working directory by itself.
    code = "import sys; sys.path.remove(''); from fingerpost.cli import main; sys.exit(main())"
    command = [sys.executable, "-c", code, "route", "Hi", "--config", "fingerpost.yaml"]
    told = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False)
    assert (told.returncode, told.stdout, told.stderr) == (0, "hard\n", "")


STUCK = """
import asyncio
from fingerpost.classifiers.fixed import Fixed

class Stuck(Fixed):
    async def classify(self, conversation, table):
        print("asked", flush=True)
        await asyncio.sleep(60)

    async def aclose(self):
        print("closed", flush=True)
"""


def test_ctrl_c_ends_quietly_with_130(config, tmp_path):
    (tmp_path / "stuck.py").write_text(STUCK)
    Path(config).write_text(CONFIG.split("classifier:")[0] + "classifier: {use: stuck:Stuck, options: {route: hard}}\n")
    # A runner that ignores Ctrl-C passes that on to its children.
    code = "import signal, sys; signal.signal(2, signal.default_int_handler); from fingerpost.cli import main; sys.exit(main())"
    command = [sys.executable, "-c", code, "route", "Hi", "--config", config]
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "asked\n"
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=30)
    assert (process.returncode, out, err) == (130, "closed\n", "")


def test_ctrl_c_while_a_classifier_is_built_ends_with_130(call, config, tmp_path, monkeypatch):
    (tmp_path / "interrupted.py").write_text("def build():\n    raise KeyboardInterrupt\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert call("eval", write_rows(tmp_path / "d.jsonl", ROWS), "--config", config, "--classifier", "interrupted:build") == (
        130,
        "",
        "",
    )


@pytest.mark.parametrize("arguments", [["schema"], ["demo", "--json"]])
def test_a_reader_that_has_gone_is_no_error(arguments):
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, "-m", "fingerpost", *arguments]
    told = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE, timeout=60, check=False)
    os.close(writing)
    assert (told.returncode, told.stderr) == (0, b"")


def test_a_closed_standard_output_is_no_error(config):
    command = f"{sys.executable} -m fingerpost route Hi --config {config} >&-"
    told = subprocess.run(["sh", "-c", command], stderr=subprocess.PIPE, timeout=60, check=False)
    assert (told.returncode, told.stderr) == (0, b"")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="only Linux has a device that is always full")
def test_a_full_disk_is_told(config):
    with open("/dev/full", "w") as full:
        command = [sys.executable, "-m", "fingerpost", "route", "Hi", "--config", config]
        told = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, timeout=60, check=False)
    assert told.returncode == 1
    assert "No space left on device" in told.stderr


def test_a_new_key_is_printed_once_with_what_to_paste(capsys, tmp_path):
    from fingerpost.clients.keys import hash_of
    from fingerpost.config import load

    assert main(["keys", "new", "--name", "web: shop"]) == 0
    out = capsys.readouterr().out
    key = next(line for line in out.splitlines() if line.startswith("fp-"))
    assert out.count(key) == 1
    pasted = out[out.index("keys:") :]
    backends = 'backends: [{name: b, model: m, url: "http://b"}]\nroutes: [{name: other, backends: [b]}]\n'
    (tmp_path / "fingerpost.yaml").write_text(backends + pasted, encoding="utf-8")
    (loaded,) = load(tmp_path / "fingerpost.yaml").config.keys
    assert (loaded.name, loaded.hash) == ("web: shop", hash_of(key))


def test_serving_beyond_loopback_without_keys_says_what_to_do_and_returns_2(capsys, tmp_path):
    text = 'backends: [{name: b, model: m, url: "http://b"}]\nroutes: [{name: other, backends: [b]}]\n'
    (tmp_path / "fingerpost.yaml").write_text(text + "classifier: {use: fixed, route: other}\n", encoding="utf-8")
    assert main(["serve", str(tmp_path / "fingerpost.yaml"), "--host", "0.0.0.0", "--port", "0"]) == 2
    said = capsys.readouterr().err
    assert "server.host: 0.0.0.0 can be reached by others, and there are no keys" in said
    assert "fingerpost keys new" in said


SAMPLES = Path(__file__).parent / "config/importers/samples"


def test_import_writes_a_file_that_check_accepts_and_notes_to_standard_error(tmp_path, capsys, monkeypatch) -> None:
    out = tmp_path / "fingerpost.yaml"
    assert main(["import", "switchyard", str(SAMPLES / "switchyard.toml"), "-o", str(out)]) == 0
    said = capsys.readouterr()
    assert said.out == f"wrote {out}; next: fingerpost check {out}\n"
    assert "note: routes.drawn.weights: not carried over" in said.err.splitlines()
    monkeypatch.setenv("OPENROUTER_API_KEY", "k")
    monkeypatch.setenv("OPENROUTER_X_API_KEY", "k")
    assert main(["check", str(out)]) == 0


def test_import_prints_to_standard_output_and_overwrites_only_when_told_to(tmp_path, capsys) -> None:
    sample, out = str(SAMPLES / "semantic_router_v0.json"), tmp_path / "fingerpost.yaml"
    assert main(["import", "semantic-router", sample]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("# Made from semantic_router_v0.json")
    out.write_text("mine", encoding="utf-8")
    assert main(["import", "semantic-router", sample, "--out", str(out)]) == 2
    assert "--force overwrites it" in capsys.readouterr().err
    assert out.read_text(encoding="utf-8") == "mine"
    assert main(["import", "semantic-router", sample, "--out", str(out), "--force"]) == 0
    assert out.read_text(encoding="utf-8") == printed


def test_import_tells_what_is_wrong_with_its_file(tmp_path, capsys) -> None:
    assert main(["import", "litellm", str(tmp_path / "none.yaml")]) == 2
    assert "there is no file" in capsys.readouterr().err
