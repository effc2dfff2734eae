"""The notebooks as a reader runs them: a kernel of its own, a copy of their folder, every cell."""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import nbformat
import pytest
from nbformat import NotebookNode

from fingerpost.evals.run import read_rows
from fingerpost.routes import OTHER
from fingerpost.testing import FakeBackend, FakeReply, Received

FOLDER = Path(__file__).parents[2] / "notebooks"
NAMES = ("1_routing", "2_your_own_routes")
CASES = {
    "Chit-chat": "chit_chat",
    "Hard question": "hard_question",
    "Image understanding": "image_understanding",
    "Surroundings": "image_question",
    "Try again": "try_again",
    "General question": "other",
    "Words and an image": "image_understanding",
    "An image alone": "image_understanding",
    "An image, then a chat": "chit_chat",
    "Retry request": "try_again",
}
SMALL, STRONG, EYES = "nvidia/nvidia-nemotron-nano-9b-v2", "gpt-5-chat", "nvidia/nemotron-nano-12b-v2-vl"
MODELS = {
    "chit_chat": SMALL,
    "hard_question": STRONG,
    "image_understanding": EYES,
    "image_question": EYES,
    "try_again": STRONG,
    "other": SMALL,
}


def _module() -> ModuleType:
    spec = importlib.util.spec_from_file_location("execute", FOLDER / "execute.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


EXECUTE = _module()


def committed(name: str) -> NotebookNode:
    return nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)


def code(notebook: NotebookNode) -> list[NotebookNode]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def printed(notebook: NotebookNode) -> str:
    """What the cells print, one after the other."""
    return "".join(out.text for cell in code(notebook) for out in cell.outputs if out.output_type == "stream")


def shape(notebook: NotebookNode) -> list[tuple[str, list[list[str]]]]:
    """Of each cell: what it prints, with % for every share and its bar, and the kinds of data that it shows."""
    text = ["".join(out.text for out in cell.outputs if out.output_type == "stream") for cell in code(notebook)]
    shown = [[sorted(out.data) for out in cell.outputs if "data" in out] for cell in code(notebook)]
    return list(zip((re.sub(r" *\d+% *#*", "%", one) for one in text), shown, strict=True))


def cases(notebook: NotebookNode) -> dict[str, list[str]]:
    """Of each case that is shown: its route, confidence and model."""
    lines = re.findall(r"^(\S.{0,21}?) {2,}(\w+) +(\d+%|-) +(\S+)$", printed(notebook), re.MULTILINE)
    return {name: list(rest) for name, *rest in lines}


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> dict[str, NotebookNode]:
    """Every notebook as it comes out; the first once more with a stand-in for Arch-Router in its one setting."""

    def answer(request: Received) -> FakeReply:
        if not request.body:
            return FakeReply()
        said = request.json["messages"][0]["content"].partition("\n<conversation>\n")[2]
        return FakeReply('{"route": "try_again"}' if "wrong" in said or "incorrect" in said else '{"route": "hard_question"}')

    with FakeBackend(answer) as arch:
        runs = {name: [f"{name}.ipynb"] for name in NAMES} | {"arch": [f"{NAMES[0]}.ipynb", "--arch", arch.url]}
        doing = {}
        for name, (notebook, *options) in runs.items():
            folder = tmp_path_factory.mktemp(name)
            command = [sys.executable, str(FOLDER / "execute.py"), str(FOLDER / notebook), "--into", str(folder), *options]
            doing[folder / notebook] = (
                name,
                subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True),
            )
        told = {name: (running.communicate(timeout=300)[0], running.returncode) for name, running in doing.values()}
    assert {code for _, code in told.values()} == {0}, told
    return {name: nbformat.read(path, as_version=4) for path, (name, _) in doing.items()}


@pytest.mark.parametrize("name", NAMES)
def test_it_runs_clean_and_comes_out_as_committed(ran: dict[str, NotebookNode], name: str) -> None:
    assert not [out for cell in code(ran[name]) for out in cell.outputs if out.get("name", "stdout") != "stdout"]
    assert [cell.source for cell in ran[name].cells] == [cell.source for cell in committed(name).cells]
    found, expected = shape(ran[name]), shape(committed(name))
    if name == NAMES[0]:
        assert found == expected
    else:  # which conversations are mistaken may differ from processor to processor
        assert [(bool(text), data) for text, data in found] == [(bool(text), data) for text, data in expected]


@pytest.mark.parametrize("name", NAMES)
def test_the_committed_outputs_are_those_of_the_committed_sources(name: str) -> None:
    notebook = committed(name)
    assert notebook.metadata.executed == EXECUTE.digest(notebook)
    assert [cell.execution_count for cell in code(notebook)] == list(range(1, len(code(notebook)) + 1))


@pytest.mark.parametrize("name", NAMES)
def test_what_is_committed_tells_nothing_of_the_machine_that_ran_it(name: str) -> None:
    outputs = json.dumps([cell.outputs for cell in code(committed(name))])
    assert len(outputs) > 1000
    assert not re.search(
        r"/(?:home|root|tmp|work|usr|opt|Users|var)/|[A-Z]:\\\\|site-packages|127\.0\.0\.1:\d|20\d\d-\d\d-\d\d", outputs
    )
    assert not [key for cell in committed(name).cells for key in cell.metadata]


@pytest.mark.parametrize("name", CASES)
def test_each_case_of_the_notebook_takes_its_route_and_a_model_that_can_serve_it(
    ran: dict[str, NotebookNode], name: str
) -> None:
    route, confidence, model = cases(ran["1_routing"])[name]
    assert route == CASES[name]
    assert re.fullmatch(r"\d+%", confidence)
    assert model == (EYES if "image" in name else MODELS[route])


def test_a_photo_that_is_only_spoken_of_goes_to_the_model_that_sees(ran: dict[str, NotebookNode]) -> None:
    route, _, model = cases(ran["1_routing"])["Image request"]
    assert route in ("image_understanding", "image_question")
    assert model == EYES


def test_the_server_is_well_and_each_request_reaches_the_model_of_its_route(ran: dict[str, NotebookNode]) -> None:
    told = printed(ran["1_routing"])
    assert "200 health\n200 readyz\n" in told
    assert "hard_question -> gpt-5-chat\nThis is gpt-5-chat.\nThis is nvidia/nvidia-nemotron-nano-9b-v2." in told
    assert "the server ended with 0" in told


def test_one_setting_asks_arch_router_in_place_of_the_embedded_classifier(ran: dict[str, NotebookNode]) -> None:
    assert cases(ran["arch"])["Try again"][0] == "try_again"
    assert cases(ran["arch"])["Chit-chat"][0] == "hard_question"  # as the stand-in says of everything else
    assert "200 health\n200 readyz\n200 health\n" in printed(ran["arch"])
    assert "'source': 'arch'" in printed(ran["arch"])


def test_names_descriptions_and_examples_are_measured_one_after_the_other(ran: dict[str, NotebookNode]) -> None:
    told = printed(ran["2_your_own_routes"])
    found = re.search(r"names ([\d.]+), descriptions ([\d.]+), examples ([\d.]+)", told)
    names, descriptions, examples = map(float, found.groups())
    assert 0.4 < names <= descriptions + 0.03
    assert descriptions <= examples + 0.03
    assert examples > 0.55
    assert float(re.search(r"accuracy +([\d.]+)\n +macro", told)[1]) == pytest.approx(examples, abs=0.006)


def test_the_second_notebook_shows_three_pictures(ran: dict[str, NotebookNode]) -> None:
    pictures = [out for cell in code(ran["2_your_own_routes"]) for out in cell.outputs if "image/png" in out.get("data", {})]
    assert len(pictures) == 3


def test_the_sample_is_labelled_conversations_of_every_route() -> None:
    rows = read_rows(FOLDER / "bike_shop.jsonl")
    assert len({row.id for row in rows}) == len(rows) >= 60
    assert len({row.request.conversation.digest for row in rows}) == len(rows)
    counts = [sum(row.right == (name,) for row in rows) for name in ("order_status", "choosing", "repair", "recheck", OTHER)]
    assert min(counts) >= 8
    assert sum(len(row.request.conversation.messages) > 1 for row in rows) >= 15
