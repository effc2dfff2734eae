"""The examples of docs/library.md run as they stand, one after the other, as a reader would run them."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from fingerpost import Router

PAGE = Path(__file__).parents[2] / "docs/library.md"
EXAMPLES = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)


def test_the_examples_run_in_one_process_after_each_other() -> None:
    assert len(EXAMPLES) >= 5
    ran = subprocess.run(
        [sys.executable, "-W", "error", "-c", "\n".join(EXAMPLES)], check=False, capture_output=True, text=True, timeout=300
    )
    assert ran.returncode == 0, ran.stderr
    lines = ran.stdout.splitlines()
    assert lines[0].startswith("image_question nvidia/nemotron-nano-12b-v2-vl ")
    assert lines[1] == "['chit_chat', 'hard_question', 'image_question']"
    assert lines[2] == "chit_chat"
    assert lines[3].startswith("row 1: messages[0].role")


async def test_the_embedded_classifier_gives_many_the_verdicts_that_it_gives_one() -> None:
    router = Router.from_file(environ={})
    questions = ["Hey, how is it going?", "Prove it.", "Is my tie straight?", "You missed two of them.", "x" * 400, "Danke!"]
    many = router.decide_many(questions)
    fresh = Router.from_file(environ={})
    one_by_one = [await fresh.decide(question) for question in questions]
    for decision, same in zip(many, one_by_one, strict=True):
        assert decision.verdict is not None
        assert same.verdict is not None
        assert decision.verdict.probabilities == pytest.approx(same.verdict.probabilities, abs=1e-3)
    await router.aclose()
    await fresh.aclose()
