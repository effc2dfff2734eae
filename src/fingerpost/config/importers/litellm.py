"""LiteLLM's proxy config.yaml: its models, fallbacks, and the first of its auto routers (by utterances or by complexity)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from fingerpost.config.file import read
from fingerpost.config.importers.draft import Draft
from fingerpost.routes import OTHER

PROVIDERS: Mapping[str, tuple[str, str]] = {
    "openai": ("https://api.openai.com/v1", "OPENAI_API_KEY"),
    "anthropic": ("https://api.anthropic.com/v1", "ANTHROPIC_API_KEY"),
    "gemini": ("https://generativelanguage.googleapis.com/v1beta/openai", "GEMINI_API_KEY"),
    "nvidia_nim": ("https://integrate.api.nvidia.com/v1", "NVIDIA_NIM_API_KEY"),
    "groq": ("https://api.groq.com/openai/v1", "GROQ_API_KEY"),
    "mistral": ("https://api.mistral.ai/v1", "MISTRAL_API_KEY"),
    "deepseek": ("https://api.deepseek.com/v1", "DEEPSEEK_API_KEY"),
    "openrouter": ("https://openrouter.ai/api/v1", "OPENROUTER_API_KEY"),
    "together_ai": ("https://api.together.ai/v1", "TOGETHERAI_API_KEY"),
    "fireworks_ai": ("https://api.fireworks.ai/inference/v1", "FIREWORKS_AI_API_KEY"),
    "xai": ("https://api.x.ai/v1", "XAI_API_KEY"),
    "cerebras": ("https://api.cerebras.ai/v1", "CEREBRAS_API_KEY"),
    "perplexity": ("https://api.perplexity.ai", "PERPLEXITYAI_API_KEY"),
    "sambanova": ("https://api.sambanova.ai/v1", "SAMBANOVA_API_KEY"),
    "deepinfra": ("https://api.deepinfra.com/v1/openai", "DEEPINFRA_API_KEY"),
    "ollama": ("http://localhost:11434/v1", ""),
    "ollama_chat": ("http://localhost:11434/v1", ""),
    "hosted_vllm": ("", ""),
    "lm_studio": ("", ""),
    "openai_like": ("", ""),
    "azure": ("", "AZURE_API_KEY"),
}
"""The OpenAI-compatible base URL of each vendor that has one, and the variable that LiteLLM reads its key from."""

TIERS: Mapping[str, str] = {
    "NON_REASONING": "Copying, reformatting or extracting what is already said, without judgment.",
    "SIMPLE": "A greeting, small talk, or a short question about a well-known fact.",
    "MEDIUM": "An everyday request that needs an explanation or a little technical work.",
    "COMPLEX": "Substantial code, design, work in several steps, or deep knowledge of a special field.",
    "REASONING": "A proof, an open analysis, weighing of alternatives, or anything that needs careful thinking.",
}
"""What the complexity router's own tiers are for."""

_PARAMS = {"model", "api_base", "base_url", "api_key", "api_version", "extra_headers", "timeout", "custom_llm_provider"}
_PARAMS |= {"input_cost_per_token", "output_cost_per_token"}
_INFO = {"id", "mode", "max_input_tokens", "input_cost_per_token", "output_cost_per_token", "supports_vision"}
_SETTINGS = {"fallbacks", "default_fallbacks", "num_retries"}

Groups = dict[str, list[str]]
"""Backend names by the model name that clients send."""


def from_litellm(data: Any, path: Path, draft: Draft) -> None:
    """Adds what a proxy's configuration says."""
    entries = [(f"model_list[{index}]", entry) for index, entry in enumerate(data["model_list"])]
    routers = [(w, e) for w, e in entries if str(e["litellm_params"]["model"]).startswith("auto_router/")]
    groups: Groups = {}
    embedding = {e["litellm_params"].get("auto_router_embedding_model") for _, e in routers}
    plain = [(w, e) for w, e in entries if (w, e) not in routers]
    names = [e["model_name"] for _, e in plain]
    for where, entry in plain:
        if entry["model_name"] in embedding:
            draft.note(where, "embeds for an auto router; the embedded classifier needs no such model")
            continue
        group = str(entry["model_name"])
        number = len(groups.get(group, ())) + 1
        if backend := _add_backend(entry, where, f"{group}-{number}" if names.count(group) > 1 else group, draft):
            groups.setdefault(group, []).append(backend)
    settings = {**(data.get("litellm_settings") or {}), **(data.get("router_settings") or {})}
    fallbacks = {name: to for pair in settings.get("fallbacks") or () for name, to in pair.items()}
    reach = {name: [*own, *(b for to in fallbacks.get(name, ()) for b in groups.get(to, ()))] for name, own in groups.items()}
    if routers:
        _add_router(*routers[0], reach, path, draft)
    for where, entry in routers[1:]:
        draft.note(where, f"a second auto router ({entry['model_name']}): one set of routes decides here; not carried over")
    _add_groups(groups, reach, settings, draft)
    draft.leave(data, "", {"model_list", "router_settings", "litellm_settings"})
    for section in ("router_settings", "litellm_settings"):
        draft.leave(data.get(section), section, _SETTINGS)


def _add_groups(groups: Groups, reach: Groups, settings: Mapping[str, Any], draft: Draft) -> None:
    for name, backends in reach.items():
        if backends != [name] and name not in draft.routes:
            draft.by_name_only(draft.name(name, "model_list"), backends)
            draft.note(name, "a group of several models or with fallbacks: a route whose backends are tried in order")
    if settings.get("num_retries") is not None:
        draft.server["retries"] = min(int(settings["num_retries"]), 10)
    rest = [backend for to in settings.get("default_fallbacks") or () for backend in groups.get(to, ())]
    if rest:
        draft.route(OTHER, rest)


def _add_backend(entry: Mapping[str, Any], where: str, name: str, draft: Draft) -> str | None:
    """Adds a deployment's backend and returns its name, or notes why there can be none."""
    params, info = entry["litellm_params"], entry.get("model_info") or {}
    group, place = str(entry["model_name"]), f"{where}.litellm_params"
    provider, model = _split(str(params["model"]), params.get("custom_llm_provider"))
    url, variable = PROVIDERS.get(provider, ("", ""))
    given = params.get("api_base") or params.get("base_url")
    why = ""
    if "*" in group or "*" in model:
        why = "a wildcard: name each model"
    elif info.get("mode", "chat") != "chat":
        why = f"serves {info['mode']}, and not chat"
    elif provider not in PROVIDERS or not (given or url):
        why = f"there is no OpenAI-compatible URL known for {provider}; add a backend with its url"
    if why:
        draft.note(where, f"{group}: {why}: not carried over")
        return None
    draft.leave(params, place, _PARAMS)
    draft.leave(info, f"{where}.model_info", _INFO)
    base = draft.url(given or url, f"{place}.api_base")
    azure = provider == "azure"
    key = draft.secret(params.get("api_key"), f"{place}.api_key", group) or (
        f"${{{variable}}}" if variable and (azure or not given) else None
    )
    cost = {side: params.get(f"{side}_cost_per_token", info.get(f"{side}_cost_per_token")) for side in ("input", "output")}
    return draft.backend(
        draft.name(name, f"{where}.model_name"),
        {
            "model": draft.text(model, f"{place}.model"),
            "url": f"{base}/openai/deployments/{model}" if azure else base,
            "key": key,
            "auth": "api-key" if azure else None,
            "api_version": draft.url(params.get("api_version") or "2024-10-21", f"{place}.api_version") if azure else None,
            "headers": draft.headers(params.get("extra_headers"), f"{place}.extra_headers", group),
            "accepts": ["text", "image", "tools", "json_schema"] if info.get("supports_vision") else None,
            "context": info.get("max_input_tokens"),
            "price": {side: round(float(value) * 1e6, 6) for side, value in cost.items() if value is not None},
            "timeouts": {"total": params["timeout"]} if isinstance(params.get("timeout"), int | float) else None,
        },
    )


def _split(model: str, stated: Any) -> tuple[str, str]:
    """The provider and its model out of `provider/model`, where the model may have a slash of its own."""
    provider, slash, name = model.partition("/")
    if not slash or (stated and provider != stated):
        return str(stated or "openai"), model
    return provider, name


def _add_router(where: str, entry: Mapping[str, Any], reach: Groups, path: Path, draft: Draft) -> None:
    params, place = entry["litellm_params"], f"{where}.litellm_params"
    draft.note(f"{where}.model_name", f"clients that sent the model {entry['model_name']} send `auto`")
    if params["model"] == "auto_router/complexity_router":
        _add_complexity(params, place, reach, draft)
    else:
        _add_utterances(params, place, reach, path, draft)


def _add_utterances(params: Mapping[str, Any], place: str, reach: Groups, path: Path, draft: Draft) -> None:
    config = params.get("auto_router_config")
    if params.get("auto_router_config_path"):
        config = read(path.parent / str(params["auto_router_config_path"])).data
    config = yaml.safe_load(config) if isinstance(config, str) else config or {}
    draft.leave(params, place, {"model", "auto_router_config", "auto_router_config_path", "auto_router_default_model",
                                "auto_router_embedding_model"})  # fmt: skip
    draft.leave(config, f"{place}.auto_router_config", {"routes"})
    for index, route in enumerate(config.get("routes") or ()):
        at = f"{place}.auto_router_config.routes[{index}]"
        draft.leave(route, at, {"name", "description", "utterances"}, "another scale: not carried over")
        name = draft.name(route["name"], f"{at}.name")
        draft.route(
            name,
            reach.get(route["name"], ()),
            description=draft.text(route.get("description"), f"{at}.description"),
            examples=[draft.text(utterance, f"{at}.utterances") for utterance in route.get("utterances") or ()],
        )
        draft.note(at, f"the route is called {name} after its model; the classifier reads names, so give it a telling one")
        if route["name"] not in reach:
            draft.note(at, f"its model {name} was not carried over; it takes the backends of `other`")
    draft.route(OTHER, reach.get(str(params.get("auto_router_default_model")), ()))


def _add_complexity(params: Mapping[str, Any], place: str, reach: Groups, draft: Draft) -> None:
    config, at = params["complexity_router_config"], f"{place}.complexity_router_config"
    own = {tier["name"]: tier.get("description") for tier in config.get("tier_definitions") or ()}
    for tier, served in (config.get("tiers") or {}).items():
        entries = served if isinstance(served, list) else [served]
        models = [str(m["model_name"] if isinstance(m, Mapping) else m) for m in entries]
        if any(isinstance(m, Mapping) and len(m) > 1 for m in entries):
            draft.note(f"{at}.tiers.{tier}", "parameters of its models are not carried over")
        lost = [m for m in models if m not in reach]
        if lost:
            draft.note(f"{at}.tiers.{tier}", f"there is no backend for {', '.join(lost)}")
        described = draft.text(own.get(tier) or TIERS.get(str(tier).upper()), f"{at}.tiers.{tier}")
        draft.route(draft.name(tier, f"{at}.tiers"), [b for m in models for b in reach.get(m, ())], description=described)
    for index, rule in enumerate(config.get("keyword_tier_rules") or ()):
        where, route = f"{at}.keyword_tier_rules[{index}]", str(rule["tier"])
        if route in draft.routes:
            draft.rules.append({"route": route, "keywords": [draft.text(word, where) for word in rule["keywords"]]})
        else:
            draft.note(where, f"there is no tier {route}: left out")
    default = config.get("default_model") or params.get("complexity_router_default_model")
    draft.route(OTHER, reach.get(str(default), ()))
    _add_classifier(config, at, draft)
    draft.leave(params, place, {"model", "complexity_router_config", "complexity_router_default_model"})
    draft.leave(config, at, {"tiers", "tier_definitions", "keyword_tier_rules", "default_model", "classifier_type",
                             "opensource_classifier_config", "jev_classifier_config"})  # fmt: skip


def _add_classifier(config: Mapping[str, Any], at: str, draft: Draft) -> None:
    kind = config.get("classifier_type", "heuristic")
    given = config.get("opensource_classifier_config") or config.get("jev_classifier_config")
    if not given or not given.get("api_base"):
        draft.note(f"{at}.classifier_type", f"{kind}: the embedded classifier reads the tiers' descriptions instead")
        return
    place = f"{at}.opensource_classifier_config"
    draft.leave(given, place, {"provider", "model", "api_base", "api_key", "timeout_ms"})
    section = {
        "use": "systemone",
        "url": draft.url(given["api_base"], f"{place}.api_base"),
        "model": draft.text(given.get("model") or "jev-latest", f"{place}.model"),
        "key": draft.secret(given.get("api_key"), f"{place}.api_key", "systemone"),
        "deadline": given.get("timeout_ms", 3000) / 1000,
    }
    draft.classifier = {key: value for key, value in section.items() if value is not None}
