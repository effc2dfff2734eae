"""The functions that a NAT workflow can name: each builds its router once, with the workflow, and closes it with that.

Annotations here are read by NAT at run time: they say what goes in and out.
"""

from collections import Counter
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

from nat.plugin_api import Builder, FunctionInfo, register_function

from fingerpost.assemble import build_router
from fingerpost.nat import answer, request
from fingerpost.nat.answer import Completion, RouteDecision, ServedCompletion
from fingerpost.nat.request import RoutingRequest
from fingerpost.nat.settings import (
    CostSettings,
    HealthSettings,
    IntentSettings,
    RouterSettings,
    SfcRouterSettings,
    to_config,
)
from fingerpost.records import Decision
from fingerpost.router import Router
from fingerpost.routes import RouteTable

CONVERTERS = [*request.CONVERTERS, *answer.CONVERTERS]


@register_function(config_type=RouterSettings)
async def fingerpost_router(settings: RouterSettings, builder: Builder) -> AsyncIterator[FunctionInfo]:
    """Decides: a chat request in, the decision out."""
    async with _router(settings) as router:

        async def decide(request: RoutingRequest) -> RouteDecision:
            return RouteDecision.of(await router.decide(request.to_chat()))

        yield FunctionInfo.from_fn(decide, description="Picks the model for a conversation.", converters=CONVERTERS)


@register_function(config_type=IntentSettings)
async def hf_intent_objective_fn(settings: IntentSettings, builder: Builder) -> AsyncIterator[FunctionInfo]:
    """The reference's objective function by intent: the model to call, and each route's probability."""
    async with _router(settings) as router:

        async def decide(request: RoutingRequest) -> tuple[str, dict[str, float]]:
            decision = await router.decide(request.to_chat())
            return _model(decision), dict(decision.verdict.probabilities) if decision.verdict else {}

        yield FunctionInfo.from_fn(decide, description="Names the model for a conversation by intent.", converters=CONVERTERS)


@register_function(config_type=CostSettings)
async def nn_objective_fn(settings: CostSettings, builder: Builder) -> AsyncIterator[FunctionInfo]:
    """The reference's objective function by cost: the cheapest model that qualifies, and each model's probability."""
    async with _router(settings) as router:

        async def decide(request: RoutingRequest) -> tuple[str, dict[str, float]]:
            decision = await router.decide(request.to_chat())
            shares = shares_of_models(decision, router.table)
            return cheapest(shares, settings.model_thresholds, settings.model_costs) or _model(decision), shares

        yield FunctionInfo.from_fn(decide, description="Names the cheapest model that qualifies.", converters=CONVERTERS)


@register_function(config_type=SfcRouterSettings)
async def sfc_router(settings: SfcRouterSettings, builder: Builder) -> AsyncIterator[FunctionInfo]:
    """The reference's router: a completion that names the model which its objective function decided for."""
    objective = await builder.get_function(settings.objective_fn)

    async def route(request: RoutingRequest) -> Completion:
        # A function of someone else's has a request type of its own; NAT makes it from a mapping.
        ours = objective.input_type is RoutingRequest
        decided = await objective.ainvoke(request if ours else request.model_dump(exclude_unset=True))
        return Completion.naming(_named(decided), str(settings.objective_fn), stream=bool(request.stream))

    yield FunctionInfo.create(
        single_fn=route,
        single_output_schema=ServedCompletion,
        description="Answers with the name of the model to call.",
        converters=CONVERTERS,
    )


@register_function(config_type=HealthSettings)
async def healthcheck(settings: HealthSettings, builder: Builder) -> AsyncIterator[FunctionInfo]:
    """Answers at once, whatever else is going on."""

    async def check(unused: str | None = None) -> str:
        return "healthy"

    yield FunctionInfo.from_fn(check, description="Says that the workflow is being served.")


@asynccontextmanager
async def _router(settings: RouterSettings | IntentSettings | CostSettings) -> AsyncIterator[Router]:
    """A router that is ready for its first request; closed at the end."""
    router = build_router(to_config(settings))
    try:
        await router.prepare()
        yield router
    finally:
        await router.aclose()


def shares_of_models(decision: Decision, table: RouteTable) -> dict[str, float]:
    """How probable it is that each model is the right one: the sum over the routes that it is the first to serve."""
    struck = {constraint.backend for constraint in decision.constraints}
    shares: Counter[str] = Counter()
    for route, probability in (decision.verdict.probabilities if decision.verdict else {}).items():
        able = [backend.model for backend in table.backends_of(route) if backend.name not in struck]
        if able:
            shares[able[0]] += probability  # type: ignore[assignment, unused-ignore]
    return dict(shares)


def cheapest(shares: Mapping[str, float], thresholds: Mapping[str, float], costs: Mapping[str, float]) -> str | None:
    """The cheapest model that reaches its threshold, the more probable one of two; the most probable when none does."""
    qualified = {model: share for model, share in shares.items() if share >= thresholds.get(model, 0.0)}
    if not qualified:
        return max(shares, key=lambda model: shares[model], default=None)
    return min(qualified, key=lambda model: (costs.get(model, float("inf")), -qualified[model]))


def _model(decision: Decision) -> str:
    return decision.backend.model if decision.backend else ""


def _named(decided: Any) -> str:
    """The model that an objective function named: alone, before its probabilities, or in a decision."""
    if isinstance(decided, RouteDecision | Completion):
        return decided.chosen
    return str(decided[0] if isinstance(decided, tuple | list) else decided)
