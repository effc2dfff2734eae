"""The examples under NAT's own commands, as processes; the server's answers are the blueprint's in shape."""

from __future__ import annotations

import csv
import http.client
import json
import random
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import pytest
import yaml
from nat.runtime.loader import load_config
from openai import OpenAI

from fingerpost.testing import FakeBackend, FakeReply

EXAMPLES = Path(__file__).parents[2] / "examples" / "nat"
NAT = Path(sys.executable).with_name("nat")
NANO, GPT, VL = "nvidia/nvidia-nemotron-nano-9b-v2", "gpt-5-chat", "nvidia/nemotron-nano-12b-v2-vl"
SFC = "/sfc_router/chat/completions"
HARD = [{"role": "user", "content": "Prove that there are infinitely many primes."}]
IMAGE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,iVBORw0KGgo=", "detail": "low"}}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The examples in a folder that the commands may write to."""
    return Path(shutil.copytree(EXAMPLES, tmp_path_factory.mktemp("examples") / "nat"))


def nat(folder: Path, *arguments: str) -> str:
    """What a command of NAT's wrote; nothing in the environment leads it to other settings."""
    environment = {"HOME": str(folder), "PATH": ""}
    ran = subprocess.run(
        [NAT, *arguments], cwd=folder, env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert ran.returncode == 0, ran.stderr
    return ran.stdout + ran.stderr


def free_port() -> int:
    """A port that nobody listens on, below those that systems hand out: a server that takes seconds to start finds it free."""
    for port in random.sample(range(20_000, 30_000), 50):
        with suppress(OSError), closing(socket.create_server(("127.0.0.1", port))):
            return port
    raise OSError("no port is free")


class Served:
    """`nat serve` with a file of the examples; `log` is what it wrote."""

    def __init__(self, folder: Path, file: str, log: Path, **environment: str) -> None:
        self.port = free_port()
        self.file = log
        with log.open("wb") as to:
            command = [NAT, "serve", "--config_file", file, "--port", str(self.port)]
            environment |= {"HOME": str(folder), "PATH": ""}
            self.process = subprocess.Popen(command, cwd=folder, env=environment, stdout=to, stderr=to)

    def is_up(self) -> bool:
        assert self.process.poll() is None, self.log
        try:
            return b"healthy" in self.get("/health")
        except OSError:
            return False

    @property
    def log(self) -> str:
        return self.file.read_text(encoding="utf-8")

    def get(self, path: str) -> bytes:
        with closing(http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)) as client:
            client.request("GET", path)
            with client.getresponse() as answer:
                return answer.read()

    def post(self, path: str, **body: Any) -> tuple[int, bytes]:
        with closing(http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)) as client:
            client.request("POST", path, json.dumps(body), {"content-type": "application/json"})
            with client.getresponse() as answer:
                return answer.status, answer.read()

    def chosen(self, messages: list[Any], **more: Any) -> str:
        """The model that the blueprint's path names."""
        status, body = self.post(SFC, model="any", messages=messages, **more)
        assert status == 200, body
        return str(json.loads(body)["choices"][0]["message"]["content"])


@pytest.fixture(scope="module")
def router_model() -> Iterator[FakeBackend]:
    """What stands for the blueprint's vLLM."""
    with FakeBackend(FakeReply('{"route": "chit_chat"}')) as fake:
        yield fake


@pytest.fixture(scope="module")
def served(folder: Path, router_model: FakeBackend) -> Iterator[Served]:
    one = Served(folder, "sfc.yml", folder / "log", ROUTER_MODEL_URL=router_model.url, ROUTER_MODEL_NAME="router-model")
    yield one
    one.process.terminate()
    one.process.wait(60)


@pytest.fixture
def door(served: Served, router_model: FakeBackend, eventually: Callable[..., None]) -> Served:
    """The blueprint's configuration, being served, with a router model that answers chit_chat."""
    eventually(served.is_up, seconds=120)
    router_model.default = FakeReply('{"route": "chit_chat"}')
    router_model.requests.clear()
    return served


def test_the_references_request_is_answered_in_its_shape(door: Served, router_model: FakeBackend) -> None:
    status, body = door.post(SFC, model="any", messages=HARD, temperature=0.5, max_tokens=10)
    told = json.loads(body)
    assert (status, told["object"], told["model"]) == (200, "chat.completion", "hf_intent_objective_fn")
    assert told["choices"] == [{"index": 0, "message": {"role": "assistant", "content": NANO}, "finish_reason": "stop"}]
    assert told["usage"] == {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}
    assert router_model.requests[0].json["model"] == "router-model"


def test_the_openai_client_reads_it_streamed_or_not(door: Served) -> None:
    with OpenAI(base_url=f"http://127.0.0.1:{door.port}/sfc_router", api_key="unused") as client:
        whole = client.chat.completions.create(model="any", messages=HARD)  # type: ignore[arg-type]
        assert whole.choices[0].message.content == NANO
        chunks = list(client.chat.completions.create(model="any", messages=HARD, stream=True))  # type: ignore[arg-type]
    assert [chunk.choices[0].delta.content for chunk in chunks] == [NANO, None]


def test_the_objective_functions_answer_with_model_and_probabilities(door: Served) -> None:
    for path in ("hf_intent_objective_fn", "nn_objective_fn"):
        status, body = door.post(f"/{path}/chat/completions", messages=HARD)
        model, probabilities = json.loads(body)["value"]
        assert (status, model in (NANO, GPT)) == (200, True)
        assert sum(probabilities.values()) == pytest.approx(1.0, abs=0.01)


@pytest.mark.parametrize("path", ["/generate", "/v1/chat/completions"])
def test_nats_own_endpoints_serve_the_workflow(door: Served, path: str) -> None:
    status, body = door.post(path, messages=HARD)
    assert (status, json.loads(body)["choices"][0]["message"]["content"]) == (200, NANO)


def test_the_last_message_is_not_all_that_is_read(door: Served, router_model: FakeBackend) -> None:
    door.chosen([*HARD, {"role": "assistant", "content": "Take them all."}, {"role": "user", "content": "That is wrong."}])
    prompt = router_model.requests[0].json["messages"][0]["content"]
    assert all(text in prompt for text in ("infinitely many primes", "Take them all.", "That is wrong."))


def test_an_image_alone_goes_to_a_model_with_eyes_whatever_the_router_model_says(door: Served) -> None:
    assert door.chosen([{"role": "user", "content": [IMAGE]}]) == VL


@pytest.mark.parametrize("said", ["quantum_stuff", '{"route": "CHIT_CHAT"}', "```json\n{}\n```", "Well, hard to say.", ""])
def test_no_answer_of_the_router_model_is_an_error(door: Served, router_model: FakeBackend, said: str) -> None:
    router_model.default = FakeReply(said)
    assert door.chosen([{"role": "user", "content": f"Hey, how was your weekend? {said}"}]) == NANO


def test_a_router_model_that_is_down_is_no_error(door: Served, router_model: FakeBackend) -> None:
    router_model.stop()
    try:
        assert door.chosen([*HARD, {"role": "user", "content": "Please think carefully about each step."}]) == GPT
    finally:
        router_model.__enter__()


def test_many_are_asked_about_at_once_and_health_waits_for_none(
    door: Served, router_model: FakeBackend, eventually: Callable[..., None]
) -> None:
    router_model.default = FakeReply(hang=True)
    with ThreadPoolExecutor(6) as pool:
        asking = [pool.submit(door.chosen, [{"role": "user", "content": f"Question {number}"}]) for number in range(6)]
        eventually(lambda: len(router_model.requests) == 6)
        assert json.loads(door.get("/health")) == {"status": "healthy"}
        assert all(one.result() in (NANO, GPT, VL) for one in asking)


@pytest.mark.parametrize("message", [
    {"role": "developer", "content": "Be brief."},
    {"role": "user", "content": [{"type": "text", "text": "Look."}, {"type": "video_url", "video_url": {"url": "https://x/v"}}]},
])  # fmt: skip
def test_what_nats_own_request_refuses_is_read(door: Served, message: dict[str, Any]) -> None:
    status, body = door.post(SFC, messages=[message, *HARD])
    # The example's models see no video; to say so is an answer, and no complaint about the request's shape.
    assert status == 200 or b"no backend can serve this request" in body


def test_a_wrong_request_is_said_plainly_and_no_prompt_reaches_the_log(door: Served) -> None:
    status, body = door.post(SFC, messages=[{"role": "canary", "content": "canary"}])
    assert (status, json.loads(body)["message"].startswith("messages[0].role: not a role")) == (422, True)
    assert door.post(SFC, messages="canary")[0] == 422
    assert "messages[0].role" in door.log
    assert "canary" not in door.log


def test_run_prints_the_decision(folder: Path) -> None:
    printed = nat(folder, "run", "--config_file", "workflow.yml", "--input", HARD[0]["content"])
    assert '"route":"hard_question"' in printed
    assert f'"model":"{GPT}"' in printed


def test_eval_judges_the_dataset(folder: Path) -> None:
    nat(folder, "eval", "--config_file", "eval.yml")
    judged = json.loads((folder / ".tmp/fingerpost-eval/accuracy_output.json").read_text())
    dataset = json.loads((folder / "dataset.json").read_text())
    assert len(judged["eval_output_items"]) == len(dataset) == 10
    assert judged["average_score"] >= 0.8


def test_optimize_finds_the_threshold(folder: Path) -> None:
    nat(folder, "optimize", "--config_file", "optimize.yml")
    with (folder / ".tmp/fingerpost-optimize/trials_dataframe_params.csv").open() as file:
        trials = {row["params_workflow.threshold"]: float(row["value"]) for row in csv.DictReader(file)}
    best = yaml.safe_load((folder / ".tmp/fingerpost-optimize/optimized_config.yml").read_text())["workflow"]["threshold"]
    assert len(trials) == 4
    assert trials[str(best)] == max(trials.values()) > min(trials.values())


def test_the_workflow_in_front_of_a_gateway_is_valid(folder: Path) -> None:
    config = load_config(folder / "gateway.yml")
    assert config.llms["auto"].base_url == "http://127.0.0.1:8080/v1"
    assert config.workflow.llm_name == "auto"
