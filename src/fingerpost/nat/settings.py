"""What may be written about fingerpost in a NAT workflow file, and the configuration that it comes to."""

from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from nat.data_models.optimizable import OptimizableField, OptimizableMixin, SearchSpace
from nat.plugin_api import FunctionBaseConfig, FunctionRef, OptionalSecretStr, get_secret_value
from pydantic import BaseModel, ConfigDict, Field

from fingerpost.assemble import DEFAULT_FILE
from fingerpost.chat import Feature
from fingerpost.config import load
from fingerpost.config.checks import cross_check, validate
from fingerpost.config.file import substitute
from fingerpost.config.shape import Config
from fingerpost.errors import ConfigError, Problem
from fingerpost.routes import OTHER

NOT_CALLED = "http://localhost/v1"
"""The URL of a backend of which only the model's name is known; deciding never calls it."""


class InlineRoute(BaseModel):
    """A route with the model that serves it, in one place."""

    model_config = ConfigDict(extra="forbid")

    name: str = Field(description="Its name.")
    description: str = Field("", description="What the user wants when this route fits, in a sentence.")
    model: str = Field(description="The model to call for it.")
    accepts: list[Feature] = Field(
        ["text", "tools", "json_schema"], description="What that model can serve; a model that is given twice can serve both."
    )
    examples: list[str] = Field([], description="Requests that belong here.")
    threshold: float = Field(0.0, ge=0, le=1, description="The least confidence with which it may be chosen.")


class Settings(FunctionBaseConfig, OptimizableMixin):
    """What all deciding functions have in common."""

    model_config = ConfigDict(extra="forbid")

    file: Path | None = Field(None, description="A fingerpost.yaml; without it and without routes, the default routes.")
    routes: list[InlineRoute] = Field([], description="Routes with their models, in place of a file.")
    default_model: str | None = Field(
        None, description="The model for what no route fits; without it, that of the route named other."
    )
    threshold: float = OptimizableField(
        0.0,
        ge=0,
        le=1,
        space=SearchSpace(low=0.0, high=0.95, step=0.05),
        description="The least confidence with which any route may be chosen; below it the request goes to other.",
    )
    thresholds: dict[str, float] = Field({}, description="The same for single routes by name.")
    cache: int | None = Field(None, ge=0, description="Verdicts to remember; without it, as in the file.")


class RouterSettings(Settings, name="fingerpost_router"):
    """Decides about a chat request and returns the whole decision."""

    classifier: str | dict[str, Any] | None = Field(
        None,
        repr=False,
        description="Who reads the conversations, as under classifier in fingerpost.yaml; without it, as in the file.",
    )


class IntentSettings(Settings, name="hf_intent_objective_fn"):
    """Asks a router model such as Arch-Router, and the embedded classifier when that one does not answer."""

    url: str | None = Field(
        None, description="The router model's OpenAI-compatible base URL; without it ${ROUTER_MODEL_URL}, else nobody is asked."
    )
    model: str | None = Field(
        None, description="The router model's name; without it ${ROUTER_MODEL_NAME}, else katanemo/Arch-Router-1.5B."
    )
    key: OptionalSecretStr = Field(None, description="The API key of its server, where that wants one.")
    deadline: float = Field(2.0, gt=0, description="Seconds to wait for its verdict; then the embedded classifier decides.")
    budget: int = Field(2048, ge=64, description="Tokens (estimated) that the conversation may take in its prompt.")

    @property
    def classifier(self) -> dict[str, Any]:
        """The classifier section that this comes to."""
        url = self.url or _environment("ROUTER_MODEL_URL")
        if not url:
            return {"use": "embedded"}
        arch = {
            "use": "arch",
            "url": url if urlsplit(url).path.strip("/") else url.rstrip("/") + "/v1",
            "model": self.model or _environment("ROUTER_MODEL_NAME") or "katanemo/Arch-Router-1.5B",
            "key": get_secret_value(self.key),
            "deadline": self.deadline,
            "budget": self.budget,
        }
        return {"use": "chain", "of": [arch, {"use": "embedded"}]}


class CostSettings(Settings, name="nn_objective_fn"):
    """Picks the cheapest model that is believed in firmly enough."""

    model_thresholds: dict[str, float] = Field(
        {}, description="The least probability for each model; 0 for one that is not here."
    )
    model_costs: dict[str, float] = Field(
        {}, description="What each model costs, in any unit; without it, the most probable wins."
    )

    @property
    def classifier(self) -> None:
        """As in the file."""


class SfcRouterSettings(FunctionBaseConfig, name="sfc_router"):
    """Answers with a chat completion whose content is the model that an objective function names."""

    objective_fn: FunctionRef = Field(
        description="The function that decides; it returns a model, or a model and probabilities."
    )


class HealthSettings(FunctionBaseConfig, name="healthcheck"):
    """Says that the workflow is being served."""


def to_config(settings: RouterSettings | IntentSettings | CostSettings) -> Config:
    """The configuration that these settings come to.

    Raises:
        ConfigError: everything that is wrong with it.
    """
    data = _base(settings)
    for route in data["routes"]:
        least = max(route["threshold"], settings.threshold)
        route["threshold"] = settings.thresholds.get(route["name"], 0.0 if route["name"] == OTHER else least)
    strangers = settings.thresholds.keys() - {route["name"] for route in data["routes"]}
    problems = [Problem(f"thresholds.{name}", f"there is no route {name!r}") for name in sorted(strangers)]
    if settings.classifier is not None:
        data["classifier"] = settings.classifier
    if settings.cache is not None:
        data["server"]["cache"] = settings.cache
    config, misshapen = validate(data, data)
    problems += [problem for problem in (*misshapen, *cross_check(data)) if not problem.warning]
    if config is None or problems:
        raise ConfigError(problems)
    return config


def _base(settings: Settings) -> dict[str, Any]:
    if settings.routes and settings.file:
        raise ConfigError([Problem("routes", "both file and routes are given", "Keep one of them")])
    if settings.routes:
        return _inline(settings)
    data = load(settings.file or DEFAULT_FILE, deciding_only=True).config.model_dump()
    if settings.default_model:
        wanted = settings.default_model
        known = [backend["name"] for backend in data["backends"] if wanted in (backend["name"], backend["model"])]
        if not known:
            models = ", ".join(backend["model"] for backend in data["backends"])
            raise ConfigError([Problem("default_model", f"no backend has the model {wanted!r}", f"Use one of: {models}")])
        other = next(route for route in data["routes"] if route["name"] == OTHER)
        other["backends"] = [known[0], *(name for name in other["backends"] if name != known[0])]
    return data


def _inline(settings: Settings) -> dict[str, Any]:
    """The sections of routes that bring their models; `other` is added where only its model is given."""
    accepts: dict[str, list[str]] = {}
    routes = []
    for route in settings.routes:
        accepts.setdefault(route.model, []).extend(route.accepts)
        routes.append({**route.model_dump(exclude={"model", "accepts"}), "backends": [route.model]})
    if settings.default_model:
        accepts.setdefault(settings.default_model, ["text", "tools", "json_schema"])
        routes = [route for route in routes if route["name"] != OTHER]
        routes.append({"name": OTHER, "backends": [settings.default_model], "threshold": 0.0})
    backends = [{"name": model, "model": model, "url": NOT_CALLED, "accepts": features} for model, features in accepts.items()]
    return {"backends": backends, "routes": routes, "server": {}}


def _environment(name: str) -> str:
    return str(substitute(f"${{{name}:-}}")[0])
