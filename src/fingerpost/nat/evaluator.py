"""An evaluator for `nat eval`: how often the right route, or the right model, was chosen."""

from collections.abc import AsyncIterator
from typing import Any, Literal

import msgspec
from nat.plugin_api import EvalBuilder, EvaluatorBaseConfig, EvaluatorInfo, register_evaluator
from pydantic import Field


class AccuracySettings(EvaluatorBaseConfig, name="fingerpost_route_accuracy"):
    """The share of requests for which the right route was chosen."""

    compare: Literal["route", "model"] = Field("route", description="What the dataset's answers are: routes or models.")


@register_evaluator(config_type=AccuracySettings)
async def route_accuracy(settings: AccuracySettings, builder: EvalBuilder) -> AsyncIterator[EvaluatorInfo]:
    """Compares what was chosen with the dataset's answer: a name, or a list of names that are all right."""
    # Comes with nvidia-nat-eval, which `nat eval` needs and serving does not.
    from nat.plugins.eval.data_models.evaluator_io import EvalOutput, EvalOutputItem

    async def evaluate(given: Any) -> EvalOutput:
        items = []
        for item in given.eval_input_items:
            said = chosen(item.output_obj, settings.compare)
            right = names(item.expected_output_obj)
            score = float(said["chosen"] in right)
            items.append(EvalOutputItem(id=item.id, score=score, reasoning={"right": right, **said}))
        average = sum(item.score for item in items) / len(items) if items else None
        return EvalOutput(average_score=average if average is None else round(average, 4), eval_output_items=items)

    yield EvaluatorInfo(config=settings, evaluate_fn=evaluate, description="Share of right routes")


def chosen(output: Any, compare: str) -> dict[str, Any]:
    """What a workflow chose, and how sure it was: from a decision in JSON, or from the bare name of a model."""
    text = str(output).strip()
    try:
        decision = msgspec.json.decode(text)
    except (msgspec.MsgspecError, RecursionError):
        decision = None
    if isinstance(decision, dict):
        return {"chosen": decision.get(compare), "confidence": decision.get("confidence")}
    return {"chosen": text, "confidence": None}


def names(expected: Any) -> list[str]:
    """The names that are right: one, or those of a list."""
    return [str(name).strip() for name in (expected if isinstance(expected, list) else [expected])]
