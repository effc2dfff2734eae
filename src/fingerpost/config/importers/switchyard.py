"""NeMo Switchyard's deployment file: LLM clients, targets and routes in TOML (schema version 1)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fingerpost.config.importers.draft import Draft
from fingerpost.routes import OTHER

HARD = "A task for the most capable model: careful reasoning, several steps, complex code, or a previous attempt that failed."

_TARGETS = ("target", "targets", "weak_target", "strong_target", "efficient_target", "capable_target")
_STRONG = {"llm_classifier": ("weak_target", "strong_target"), "stage_router": ("efficient_target", "capable_target")}


def from_switchyard(data: Any, path: Path, draft: Draft) -> None:
    """Adds what a deployment file says."""
    draft.leave(data, "", {"schema_version", "llm_clients", "targets", "routes"})
    names = _add_targets(data, draft)
    retries = [client["max_retries"] for client in data.get("llm_clients", {}).values() if "max_retries" in client]
    if retries:
        draft.server["retries"] = max(retries)
        draft.note("llm_clients", f"max_retries is one number for all backends here: server.retries is {max(retries)}")
    for key, route in data.get("routes", {}).items():
        _add_route(route, f"routes.{key}", names, draft)


def _add_targets(data: Mapping[str, Any], draft: Draft) -> dict[str, str]:
    """Adds a backend for every target that can be one; their names by the target's."""
    names = {}
    for target, section in data.get("targets", {}).items():
        where = f"targets.{target}"
        client = data["llm_clients"][section["llm_client"]]
        place = f"llm_clients.{section['llm_client']}"
        if client.get("format") != "openai_chat":
            draft.note(where, f"its client speaks {client.get('format')}, and a backend OpenAI's chat: not carried over")
            continue
        draft.leave(section, where, {"id", "llm_client"})
        draft.leave(client, place, {"format", "base_url", "api_key_env", "extra_headers", "max_retries"})
        key = client.get("api_key_env")
        names[target] = draft.backend(
            draft.name(target, where),
            {
                "model": draft.text(section["id"], f"{where}.id"),
                "url": draft.url(client["base_url"], f"{place}.base_url"),
                "key": draft.secret(f"${key}", f"{place}.api_key_env", section["llm_client"]) if key else None,
                "headers": draft.headers(client.get("extra_headers"), f"{place}.extra_headers", section["llm_client"]),
            },
        )
    return names


def _add_route(route: Mapping[str, Any], where: str, names: Mapping[str, str], draft: Draft) -> None:
    kind = route["type"]
    targets = [target for key in _TARGETS for target in _listed(route.get(key))]
    backends = [names[target] for target in targets if target in names]
    draft.leave(route, where, {"id", "type", *_TARGETS})
    if not backends:
        draft.note(where, f"a {kind} route without a target that was carried over: left out")
        return
    name = draft.name(route["id"], f"{where}.id")
    if kind not in _STRONG:
        draft.by_name_only(name, backends)
        if len(backends) > 1:
            draft.note(where, f"{kind}: its backends are tried in this order, not drawn")
        return
    weak, strong = (names[target] for key in _STRONG[kind] for target in _listed(route.get(key)))
    if OTHER in draft.routes:
        draft.by_name_only(name, [strong, weak])
        draft.note(where, f"a second {kind} route: one classifier chooses among all routes here; only its name leads to it")
        return
    first = [strong, weak] if route.get("picker") == "capable_first" else [weak, strong]
    draft.route(name, [strong, weak], description=HARD)
    draft.route(OTHER, first)
    draft.note(where, f"{kind} is now the description of {name} (rewrite it for your tasks) and `other`, the {first[0]} first")
    draft.note(f"{where}.id", f"clients that sent the model {name} for a decision send `auto`; {name} now forces {strong}")


def _listed(value: Any) -> list[str]:
    return [value] if isinstance(value, str) else list(value or ())
