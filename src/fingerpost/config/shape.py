"""What may be written in fingerpost.yaml: one class for each section, every key with its description."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Discriminator, Field, Tag, field_validator

from fingerpost.chat import Feature
from fingerpost.config.access import AdminConfig, KeyConfig, LimitsConfig, TlsConfig
from fingerpost.config.section import Section, base_url, one_line
from fingerpost.routes import Backend, Breaker, Price, Probe, Route, Timeouts
from fingerpost.upstreams.openai import tls_context


class PriceConfig(Section):
    """USD per million tokens."""

    input: float = Field(0.0, ge=0, description="USD per million input tokens.")
    output: float = Field(0.0, ge=0, description="USD per million output tokens.")


class TimeoutsConfig(Section):
    """Seconds that a backend may take."""

    connect: float = Field(5.0, gt=0, description="Seconds to connect.")
    read: float = Field(120.0, gt=0, description="Seconds between two reads, the wait for the first byte included.")
    total: float = Field(600.0, gt=0, description="Seconds for a whole call.")


class BreakerConfig(Section):
    """When calls to a URL are held back because it fails, and for how long."""

    enabled: bool = Field(True, description="Whether calls are ever held back for failures.")
    failures: int = Field(5, ge=1, description="Failures in a row that hold calls back.")
    rate: float = Field(0.5, gt=0, le=1, description="The share of failed calls that holds calls back.")
    least: int = Field(20, ge=1, description="Calls in the window below which the share says nothing.")
    window: float = Field(30.0, gt=0, description="Seconds over which the share is taken.")
    pause: float = Field(1.0, gt=0, description="Seconds for which calls are held back first; twice as long each next time.")
    longest: float = Field(30.0, gt=0, description="Seconds for which calls are held back at most.")
    rest: float = Field(60.0, ge=0, description="Seconds for which a Retry-After is obeyed at most; 0 ignores it.")


class HealthConfig(Section):
    """How a backend is asked whether it lives."""

    path: str = Field("/models", pattern=r"^/\S*$", description="What to GET, below the backend's URL; below 500 is alive.")
    every: float = Field(10.0, gt=0, description="Seconds between two questions.")
    timeout: float = Field(5.0, gt=0, description="Seconds to wait for the answer.")


class BackendConfig(Section):
    """A model behind an OpenAI-compatible URL."""

    name: str = Field(description="Its name in routes, headers, logs and metrics, and as a model name for clients.")
    model: str = Field(description="The model name sent upstream.")
    url: str = Field(description="The OpenAI-compatible base URL, such as https://api.openai.com/v1.")
    key: str | None = Field(None, repr=False, description="The API key; usually ${NAME}. Leave out for a server without one.")
    auth: Literal["bearer", "api-key"] = Field("bearer", description="How the key is sent; Azure OpenAI wants api-key.")
    api_version: str | None = Field(None, description="Azure OpenAI's api-version query parameter.")
    ca: str | None = Field(None, description="A PEM file with the authorities that vouch for its https certificate.")
    transport: Literal["auto", "own", "library", "http2"] = Field(
        "auto",
        description="The HTTP client: own (HTTP/1.1), http2, library (aiohttp), or auto: library where a proxy variable "
        "applies, else own.",
    )
    headers: dict[str, str] = Field({}, repr=False, description="More headers to send to this backend.")
    accepts: list[Feature] = Field(
        ["text", "tools", "json_schema"], description="What it can serve: text, image, audio, video, file, tools, json_schema."
    )
    context: int | None = Field(None, gt=0, description="Its context window in tokens.")
    price: PriceConfig = PriceConfig()
    timeouts: TimeoutsConfig = TimeoutsConfig()
    urls: list[str] = Field([], description="More base URLs that serve the same model; the one with the fewest calls is taken.")
    concurrency: int = Field(1024, ge=1, description="Calls at once, on all its URLs together.")
    queue: int = Field(256, ge=0, description="Calls that wait when there are that many; beyond, the next backend is asked.")
    breaker: BreakerConfig = BreakerConfig()
    health: HealthConfig | None = Field(None, description="How to ask whether it lives; without it, only calls tell.")

    @field_validator("url")
    @classmethod
    def _is_http(cls, url: str) -> str:
        return base_url(url)

    @field_validator("urls")
    @classmethod
    def _are_http(cls, urls: list[str]) -> list[str]:
        return [base_url(url) for url in urls]

    @field_validator("key", "model", "api_version")
    @classmethod
    def _is_one_line(cls, value: str | None) -> str | None:
        return one_line(value) if value else value

    @field_validator("ca")
    @classmethod
    def _holds_certificates(cls, path: str | None) -> str | None:
        if path:
            try:
                tls_context(path)
            except OSError as error:
                raise ValueError(f"cannot be read as a PEM file of certificates ({error.strerror or error})") from None
        return path or None

    @field_validator("headers")
    @classmethod
    def _are_one_line(cls, headers: dict[str, str]) -> dict[str, str]:
        return {one_line(name): one_line(value) for name, value in headers.items()}


class RouteConfig(Section):
    """Something a user may want."""

    name: str = Field(description="Its name in decisions, headers, logs and metrics, and as a model name for clients.")
    description: str = Field("", description="What the user wants when this route fits, in a sentence.")
    examples: list[str] = Field([], description="Requests that belong here.")
    backends: list[str] = Field([], description="Backend names in the order to try.")
    threshold: float = Field(0.0, ge=0, le=1, description="The least confidence with which it may be chosen.")


class RuleConfig(Section):
    """A route that is right whenever all stated conditions hold."""

    route: str = Field(description="The route to take.")
    image: bool | None = Field(None, description="The user's latest turn carries an image (true) or none (false).")
    keywords: list[Annotated[str, Field(min_length=1)]] = Field(
        [], description="One of these words or phrases is in the user's latest text, whatever the case."
    )
    longer_than: int | None = Field(None, ge=0, description="The user's latest text has more characters than this.")
    tools: bool | None = Field(None, description="The request offers tools (true) or none (false).")
    metadata: dict[str, str] = Field({}, description="The request's metadata has these values.")


class EmbeddedConfig(Section):
    """The built-in classifier."""

    use: Literal["embedded"]
    threads: int | None = Field(
        None, ge=1, le=256, description="Conversations read at once in a process; one for each CPU core unless given."
    )
    threshold: float = Field(0.0, ge=0, le=1, description="In a chain: the confidence that ends the asking.")


class ArchConfig(Section):
    """An Arch-Router model behind an OpenAI-compatible server."""

    use: Literal["arch"]
    url: str = Field(description="The server's OpenAI-compatible base URL, such as http://localhost:8011/v1.")
    model: str = Field("katanemo/Arch-Router-1.5B", description="The model name sent upstream.")
    key: str | None = Field(None, repr=False, description="The API key, where the server wants one.")
    deadline: float | None = Field(0.25, gt=0, description="Seconds to wait for its verdict.")
    budget: int = Field(2048, ge=64, description="Tokens (estimated) that the conversation may take in its prompt.")
    threshold: float = Field(0.0, ge=0, le=1, description="In a chain: the confidence that ends the asking.")

    @field_validator("url")
    @classmethod
    def _is_http(cls, url: str) -> str:
        return base_url(url)

    @field_validator("key", "model")
    @classmethod
    def _is_one_line(cls, value: str | None) -> str | None:
        return one_line(value) if value else value


class SystemOneConfig(Section):
    """A decision model behind `/v1/systemone`, such as Jev or another fingerpost."""

    use: Literal["systemone"]
    url: str = Field(description="The server's base URL, such as http://localhost:8080; /v1/systemone is appended.")
    model: str = Field(description="The model name sent upstream.")
    key: str | None = Field(None, repr=False, description="The API key, where the server wants one.")
    deadline: float | None = Field(1.0, gt=0, description="Seconds to wait for its verdict.")
    budget: int = Field(2048, ge=64, description="Tokens (estimated) that the conversation may take in its question.")
    threshold: float = Field(0.0, ge=0, le=1, description="In a chain: the confidence that ends the asking.")

    @field_validator("url")
    @classmethod
    def _is_http(cls, url: str) -> str:
        return base_url(url).removesuffix("/v1")

    @field_validator("key", "model")
    @classmethod
    def _is_one_line(cls, value: str | None) -> str | None:
        return one_line(value) if value else value


class RulesConfig(Section):
    """Rules as a classifier of their own."""

    use: Literal["rules"]
    rules: list[RuleConfig] = Field(description="First match wins.")
    threshold: float = Field(0.0, ge=0, le=1, description="In a chain: the confidence that ends the asking.")


class FixedConfig(Section):
    """Always the same route."""

    use: Literal["fixed"]
    route: str = Field(description="The route to believe in.")
    confidence: float = Field(1.0, ge=0, le=1, description="How firmly.")
    threshold: float = Field(0.0, ge=0, le=1, description="In a chain: the confidence that ends the asking.")


class ImportedConfig(Section):
    """A classifier of your own."""

    use: str = Field(
        pattern=r"^[A-Za-z_][\w.]*:[A-Za-z_]\w*$", description="The classifier's name, or my.module:build, called with options."
    )
    options: dict[str, Any] = Field({}, repr=False, description="Keyword arguments for build.")
    threshold: float = Field(0.0, ge=0, le=1, description="In a chain: the confidence that ends the asking.")


class ChainConfig(Section):
    """Classifiers asked in order until one reaches its threshold, or all at once."""

    use: Literal["chain"]
    of: list[_Classifier] = Field(min_length=1, description="The classifiers in the order to ask.")
    race: bool = Field(False, description="Ask all at once; the first verdict to reach its threshold ends the asking.")
    threshold: float = Field(0.0, ge=0, le=1, description="In a chain: the confidence that ends the asking.")


BY_USE: Mapping[str, type[Section]] = {
    "embedded": EmbeddedConfig, "arch": ArchConfig, "systemone": SystemOneConfig, "rules": RulesConfig, "fixed": FixedConfig,
    "chain": ChainConfig,
}  # fmt: skip


def spelled_out(value: Any) -> Any:
    """`embedded` is short for `{use: embedded}`."""
    return {"use": value} if isinstance(value, str) else value


def kind_of(value: Any) -> str:
    use = value.get("use") if isinstance(value, Mapping) else getattr(value, "use", None)
    return use if isinstance(use, str) and use in BY_USE else "imported"


ClassifierConfig = EmbeddedConfig | ArchConfig | SystemOneConfig | RulesConfig | FixedConfig | ChainConfig | ImportedConfig

_Classifier = Annotated[
    Annotated[EmbeddedConfig, Tag("embedded")]
    | Annotated[ArchConfig, Tag("arch")]
    | Annotated[SystemOneConfig, Tag("systemone")]
    | Annotated[RulesConfig, Tag("rules")]
    | Annotated[FixedConfig, Tag("fixed")]
    | Annotated[ChainConfig, Tag("chain")]
    | Annotated[ImportedConfig, Tag("imported")],
    Discriminator(kind_of),
    BeforeValidator(spelled_out),
]


ChainConfig.model_rebuild()


class RetryBudgetConfig(Section):
    """How many more calls than requests there may be."""

    share: float = Field(0.2, ge=0, le=10, description="Retries and hedges for each request, on average.")
    floor: float = Field(10.0, ge=0, description="Retries and hedges a second that are allowed in any case.")


class ServerConfig(Section):
    """The HTTP server."""

    host: str = Field("127.0.0.1", description="The address to listen on.")
    port: int = Field(8080, ge=0, le=65535, description="The port to listen on; 0 takes a free one.")
    workers: int = Field(1, ge=1, le=256, description="Processes that share the port.")
    open: bool = Field(False, description="Serve whoever reaches the address, without keys.")
    tls: TlsConfig | None = Field(None, description="The certificate to serve with.")
    admin: AdminConfig | None = Field(None, description="Who gets at metrics and the detail of readiness.")
    connections: int = Field(10_000, gt=0, description="How many connections it serves at a time.")
    request_timeout: float = Field(60.0, gt=0, description="Seconds that a request, head and body, may take to come in.")
    max_body: int = Field(20_000_000, gt=0, description="The largest request body, in bytes.")
    max_values: int = Field(100_000, gt=0, description="JSON values in one request body; texts count one, however long.")
    retries: int = Field(1, ge=0, le=10, description="How many more times the whole list of backends is tried.")
    deadline: float = Field(600.0, gt=0, description="Seconds until the first byte of a reply, all attempts together.")
    drain: float = Field(30.0, ge=0, description="Seconds that running requests get to finish after SIGTERM or Ctrl-C.")
    cache: int = Field(10_000, ge=0, description="Verdicts to remember; 0 remembers none.")
    reload: bool = Field(True, description="Whether a change of the configuration file is taken up while serving.")
    retry_budget: RetryBudgetConfig = RetryBudgetConfig()
    hedge: float | None = Field(None, gt=0, description="Seconds without a first byte after which a second backend is asked.")


class Config(Section):
    """The whole of fingerpost.yaml."""

    backends: list[BackendConfig] = Field(min_length=1, description="The models that requests can be carried to.")
    routes: list[RouteConfig] = Field(min_length=1, description="What users may want; one must be named other.")
    rules: list[RuleConfig] = Field([], description="Rules that come before the classifier; first match wins.")
    classifier: _Classifier = Field(EmbeddedConfig(use="embedded"), description="Who reads the conversations.")
    server: ServerConfig = ServerConfig()
    keys: list[KeyConfig] = Field([], description="The clients that may use the server; whoever reaches it unless given.")
    limits: LimitsConfig = LimitsConfig()


def to_backend(config: BackendConfig) -> Backend:
    """The backend that a section describes."""
    return Backend(
        name=config.name,
        model=config.model,
        url=config.url,
        key=config.key or None,
        auth=config.auth,
        api_version=config.api_version,
        headers=dict(config.headers),
        accepts=frozenset(config.accepts),
        context=config.context,
        price=Price(config.price.input, config.price.output),
        timeouts=Timeouts(config.timeouts.connect, config.timeouts.read, config.timeouts.total),
        ca=config.ca,
        more_urls=tuple(config.urls),
        concurrency=config.concurrency,
        queue=config.queue,
        breaker=Breaker(**config.breaker.model_dump()),
        probe=Probe(**config.health.model_dump()) if config.health else None,
    )


def to_route(config: RouteConfig) -> Route:
    """The route that a section describes."""
    return Route(config.name, config.description, tuple(config.examples), tuple(config.backends), config.threshold)
