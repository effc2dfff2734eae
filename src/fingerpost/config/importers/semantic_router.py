"""semantic-router's file of routes: a version 1 router (`router_type`), or the layer files of version 0."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fingerpost.config.importers.draft import Draft

_ROUTER = {"router_type", "routes", "routers", "model", "confidence_threshold"}
_ROUTE = {"name", "utterances", "description", "confidence_threshold"}
_MODELS = {
    "systemone": ("", None),
    "typesafe": ("https://api.typesafe.ai", "${JEV_API_KEY}"),
}
"""Where a decision model is and which key it takes, unless the file says so."""


def from_semantic_router(data: Any, path: Path, draft: Draft) -> None:
    """Adds what a router's file says. It only decides, so one backend stands for all models that it leads to."""
    draft.backend("default", {"model": "default", "url": "http://localhost:8000/v1"})
    draft.note("backends", "semantic-router names no models: every route leads to `default`: set its url and model")
    _add_router({"routes": data} if isinstance(data, list) else data, "", draft)
    if not draft.routes:
        draft.note("routes", "there are none in the file; an index that holds them cannot be read")


def _add_router(router: Mapping[str, Any], where: str, draft: Draft) -> None:
    draft.leave(router, where, _ROUTER, "not carried over: it belongs to semantic-router's own way of deciding")
    kind = router.get("router_type", "indexed")
    if kind in ("chain", "merge"):
        draft.note(f"{where}.router_type".lstrip("."), f"{kind}: the routes of all its routers are one set here")
    if isinstance(router.get("model"), Mapping):
        _add_model(router["model"], f"{where}.model".lstrip("."), draft)
    least = router.get("confidence_threshold")
    if least is not None and kind != "decision":
        draft.note(
            f"{where}.confidence_threshold".lstrip("."), f"the confidence of a router of the kind {kind} is another scale"
        )
    for index, route in enumerate(router.get("routes") or ()):
        _add_route(route, f"{where}.routes[{index}]".lstrip("."), least if kind == "decision" else None, kind, draft)
    for index, inner in enumerate(router.get("routers") or ()):
        _add_router(inner, f"{where}.routers[{index}]".lstrip("."), draft)


def _add_model(model: Mapping[str, Any], where: str, draft: Draft) -> None:
    url, key = _MODELS.get(str(model.get("type")), (None, None))
    if url is None:
        what = f"the decision model {model.get('type')} runs inside semantic-router"
        draft.note(where, f"{what}; the embedded classifier reads instead")
        return
    draft.leave(model, where, {"type", "name", "base_url", "timeout"})
    section = {
        "use": "systemone",
        "url": draft.url(model.get("base_url") or url, f"{where}.base_url"),
        "model": draft.text(model.get("name") or "jev-latest", f"{where}.name"),
        "key": key,
        "deadline": model.get("timeout"),
    }
    draft.classifier = {name: value for name, value in section.items() if value is not None}


def _add_route(route: Mapping[str, Any], where: str, least: float | None, kind: str, draft: Draft) -> None:
    draft.leave(route, where, _ROUTE)
    own = route.get("confidence_threshold")
    threshold = least if own is None else own
    if threshold is not None and kind != "decision":
        draft.note(f"{where}.confidence_threshold", f"the confidence of a router of the kind {kind} is another scale")
        threshold = None
    said = [utterance for utterance in route.get("utterances") or () if isinstance(utterance, str)]
    if len(said) < len(route.get("utterances") or ()):
        draft.note(f"{where}.utterances", "only those that are text are examples")
    draft.route(
        draft.name(route["name"], f"{where}.name"),
        ["default"],
        description=draft.text(route.get("description"), f"{where}.description"),
        examples=[draft.text(utterance, f"{where}.utterances") for utterance in said],
        threshold=threshold,
    )
    if not route.get("description"):
        draft.note(where, "it has no description: add a sentence that says when it fits")
