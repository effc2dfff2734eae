"""The evaluator as NAT builds it, on what workflows answer."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from nat.plugins.eval.data_models.evaluator_io import EvalOutput
from nat.plugins.eval.runtime.builder import WorkflowEvalBuilder
from pydantic import ValidationError

from fingerpost.nat.evaluator import AccuracySettings, chosen, names

DECIDED = '{"route": "chat", "model": "nano", "confidence": 0.75}'


async def judge(items: list[tuple[Any, Any]], **settings: Any) -> EvalOutput:
    """What the evaluator says of these pairs of the workflow's answer and the dataset's."""
    given = [SimpleNamespace(id=i, output_obj=said, expected_output_obj=right) for i, (said, right) in enumerate(items)]
    async with WorkflowEvalBuilder() as builder:
        await builder.add_evaluator("accuracy", AccuracySettings(**settings))
        return await builder.get_evaluator("accuracy").evaluate_fn(SimpleNamespace(eval_input_items=given))


async def test_the_share_of_right_routes_and_each_item_with_its_reason() -> None:
    output = await judge([(DECIDED, "chat"), (DECIDED, "law"), (DECIDED, ["law", "chat"])])
    assert output.average_score == 0.6667
    assert [(item.id, item.score) for item in output.eval_output_items] == [(0, 1.0), (1, 0.0), (2, 1.0)]
    assert output.eval_output_items[1].reasoning == {"right": ["law"], "chosen": "chat", "confidence": 0.75}


async def test_models_can_be_compared_in_decisions_and_in_bare_names() -> None:
    output = await judge([(DECIDED, "nano"), ("nano", "nano"), (DECIDED, "chat")], compare="model")
    assert [item.score for item in output.eval_output_items] == [1.0, 1.0, 0.0]


async def test_a_workflow_that_failed_and_a_dataset_without_items() -> None:
    assert (await judge([(None, "chat")])).average_score == 0.0
    assert (await judge([])).average_score is None


def test_it_compares_routes_or_models() -> None:
    with pytest.raises(ValidationError, match="'route' or 'model'"):
        AccuracySettings.model_validate({"compare": "backend"})


@pytest.mark.parametrize(("said", "name"), [
    (" nano\n", "nano"), (DECIDED, "chat"), ("{}", None), ("[1]", "[1]"), ("[" * 10_000, "[" * 10_000), ("", ""),
])  # fmt: skip
def test_chosen(said: str, name: str | None) -> None:
    assert chosen(said, "route")["chosen"] == name


def test_names() -> None:
    assert names(" a ") == ["a"]
    assert names(["a", " b"]) == ["a", "b"]
