"""The config file as values: typed, strict, frozen; complete or refused.

`load_config` is the only way in from a file. It reports every problem at once, each with its place, and never raises
anything but `ConfigErrors`. What the settings mean is in `config/README.md`, setting by setting.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Final, Literal, TypeAlias

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PrivateAttr,
    SecretStr,
    StringConstraints,
)
from pydantic_core import PydanticCustomError

from router.config_hosts import proxy_problem, redis_problem
from router.config_yaml import Expanded, KeyPath
from router.limits import LARGEST
from router.networks import network_problem
from router.secret_file import named, read_secret

SHORTEST_METRICS_TOKEN: Final = 16

# -- what a loader reports ----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, order=True)
class Problem:
    """One thing that is wrong, or worth a warning, with its place (lines and columns count from 1)."""

    file: str
    line: int
    column: int
    message: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line}:{self.column}: {self.message}"


class ConfigErrors(Exception):
    """The config cannot be used. `problems` holds all that is wrong, in the order of the file."""

    def __init__(self, problems: list[Problem], warnings: list[Problem] | None = None) -> None:
        super().__init__("\n".join(str(problem) for problem in problems))
        self.problems = problems
        self.warnings = warnings or []


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a config came from. Empty for one that was built in code."""

    file: str = "<code>"
    digest: str = ""
    """First 12 hex digits of the SHA-256 of the file's bytes: tells workers with different configs apart."""
    references: Mapping[KeyPath, tuple[str, ...]] = field(default_factory=dict)
    """Which environment variables a setting refers to."""
    warnings: tuple[Problem, ...] = ()
    places: Mapping[KeyPath, tuple[int, int]] = field(default_factory=dict)
    """Line and column of every value."""
    data: bytes = field(default=b"", repr=False)
    """The file's bytes, for processes that are to start with the same config."""


# -- kinds of values ----------------------------------------------------------------------------------------------


def _number(value: object) -> object:
    """A number that came out of `${...}` arrives as text. Text that stood in the file stays text, and is refused."""
    if not isinstance(value, Expanded):
        return value
    for kind in (int, float):
        try:
            return kind(value.strip())
        except ValueError:
            continue
    return value


def _optional_number(value: object) -> object:
    return None if isinstance(value, Expanded) and not value.strip() else _number(value)


_BOOLS: Final = {
    "true": True,
    "1": True,
    "yes": True,
    "on": True,
    "false": False,
    "0": False,
    "no": False,
    "off": False,
}


def _bool(value: object) -> object:
    return _BOOLS.get(value.strip().lower(), value) if isinstance(value, Expanded) else value


def _optional_text(value: object) -> object:
    """An empty text is as good as no setting: `proxy: "${HTTPS_PROXY:-}"`."""
    return None if isinstance(value, str) and not value.strip() else value


def _secret(value: object) -> object:
    """`file:/run/secrets/x` is replaced by what the file holds, without the newline that editors leave at its end."""
    path = named(value) if isinstance(value, str) else None
    if path is None:
        return value
    if not path.is_absolute():
        raise PydanticCustomError("secret_file", "must name an absolute path after file:")
    try:
        return read_secret(path)
    except OSError as error:
        raise PydanticCustomError("secret_file", "cannot read {path}: {why}", _why(path, error)) from error
    except ValueError as error:
        raise PydanticCustomError("secret_file", "{path} {why}", {"path": str(path), "why": str(error)}) from error


def _why(path: Path, error: OSError) -> dict[str, str]:
    return {"path": str(path), "why": error.strerror or type(error).__name__}


def _optional_secret(value: object) -> object:
    return _optional_text(_secret(value))


def _redis_url(value: SecretStr) -> SecretStr:
    if wrong := redis_problem(value.get_secret_value()):
        raise PydanticCustomError("redis_url", "{wrong}", {"wrong": wrong})
    return value


def _proxy(value: SecretStr | None) -> SecretStr | None:
    if value is not None and (wrong := proxy_problem(value.get_secret_value())):
        raise PydanticCustomError("proxy_url", "{wrong}", {"wrong": wrong})
    return value


def _trusted_network(value: str) -> str:
    if wrong := network_problem(value):
        raise PydanticCustomError("network", "{wrong}", {"wrong": wrong})
    return value


def _header(value: object) -> object:
    """Header names and values go out as they are, so a line break in one would be a header of its own."""
    value = _secret(value)
    if isinstance(value, str) and any(ord(char) < 32 or ord(char) > 255 for char in value):
        raise PydanticCustomError("header", "must be one line of Latin-1 text")
    return value


def _metrics_token(value: SecretStr | None) -> SecretStr | None:
    """It is shown in a header, and is all that keeps strangers from the metrics."""
    if value is not None:
        text = value.get_secret_value()
        if not text.isascii() or not text.isprintable() or " " in text:
            raise PydanticCustomError("metrics_token", "must be one word of ASCII text")
        if len(text) < SHORTEST_METRICS_TOKEN:
            least = {"least": SHORTEST_METRICS_TOKEN}
            raise PydanticCustomError("metrics_token", "is too short: give it at least {least} characters", least)
    return value


def _served_models(value: object) -> object:
    """`discover`, or a list of names."""
    if value is None or value == "discover":
        return value
    if isinstance(value, list | tuple) and value and all(isinstance(item, str) and item for item in value):
        return tuple(value)
    raise PydanticCustomError("served_models", 'must be discover, or a list of model names such as [gpt-4o, "o3"]')


def _target(value: object) -> object:
    return {"to": value} if isinstance(value, str) else value


Int: TypeAlias = Annotated[int, BeforeValidator(_number)]
Number: TypeAlias = Annotated[float, BeforeValidator(_number)]
Bool: TypeAlias = Annotated[bool, BeforeValidator(_bool)]
OptionalCount: TypeAlias = Annotated[Annotated[int, Field(ge=1)] | None, BeforeValidator(_optional_number)]
OptionalLimit: TypeAlias = Annotated[Annotated[int, Field(ge=1, le=LARGEST)] | None, BeforeValidator(_optional_number)]
OptionalSeconds: TypeAlias = Annotated[Annotated[float, Field(gt=0)] | None, BeforeValidator(_optional_number)]
Text: TypeAlias = Annotated[str, StringConstraints(min_length=1)]
OptionalText: TypeAlias = Annotated[str | None, BeforeValidator(_optional_text)]
Secret: TypeAlias = Annotated[SecretStr, BeforeValidator(_secret)]
OptionalSecret: TypeAlias = Annotated[SecretStr | None, BeforeValidator(_optional_secret)]
HeaderName: TypeAlias = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9!#$%&'*+.^_`|~-]+$")]
HeaderValue: TypeAlias = Annotated[SecretStr, BeforeValidator(_header)]
ProviderName: TypeAlias = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$", max_length=64)]
KeyName: TypeAlias = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$", max_length=64)]
Texts: TypeAlias = Annotated[tuple[Text, ...], Field(strict=False)]


class Settings(BaseModel):
    """Base of every section: unknown settings are refused, types are not guessed, values do not change."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, hide_input_in_errors=True, use_attribute_docstrings=True
    )


# -- server -------------------------------------------------------------------------------------------------------


class Listen(Settings):
    """One address to serve on."""

    host: Text = "127.0.0.1"
    """Address or host name to listen on."""
    port: Annotated[Int, Field(ge=0, le=65535)] = 8080
    """TCP port; 0 takes any free one."""
    anonymous: KeyName | None = None
    """Callers without a key get the rights and limits of the key of this name; unset: every call needs a key."""
    allow_remote: Bool = False
    """Allow `anonymous` on an address that other machines can reach."""


class Limits(Settings):
    """What one client may cost before its call is understood."""

    max_body_bytes: Annotated[Int, Field(ge=1024)] = 20 * 1024 * 1024
    """Largest request body, in bytes."""
    max_url_bytes: Annotated[Int, Field(ge=256)] = 8 * 1024
    """Longest request path and query, in bytes."""
    header_bytes: Annotated[Int, Field(ge=1024)] = 32 * 1024
    """Largest header block, in bytes."""
    header_count: Annotated[Int, Field(ge=10)] = 100
    """Most header fields."""
    header_seconds: Annotated[Number, Field(gt=0)] = 10.0
    """Time to receive the header block."""
    body_seconds: Annotated[Number, Field(gt=0)] = 60.0
    """Time to receive the body."""
    write_stall_seconds: Annotated[Number, Field(gt=0)] = 30.0
    """A client that takes no bytes for this long is dropped."""
    drain_seconds: Annotated[Number, Field(ge=0)] = 30.0
    """Time that running calls get at shutdown."""


class Log(Settings):
    """Logging."""

    level: Literal["debug", "info", "warning", "error"] = "info"
    """Least severe message that is written. Lines about requests have no level: `serve --no-log` leaves them out."""


class MetricsListen(Settings):
    """An address for metrics alone."""

    host: Text = "127.0.0.1"
    """Address or host name to listen on."""
    port: Annotated[Int, Field(ge=0, le=65535)] = 9464
    """TCP port; 0 takes any free one."""
    allow_remote: Bool = False
    """Allow an address that other machines can reach without a `token`: everybody there reads the metrics."""


class MetricsSettings(Settings):
    """Who may read `/metrics`."""

    listen: MetricsListen | None = None
    """A listener of their own, which answers /metrics, /healthz and /readyz alone. Unset: they are on all listeners."""
    token: Annotated[OptionalSecret, AfterValidator(_metrics_token)] = None
    """A token of 16 characters or more that reads the metrics, beside the admin token; then nobody reads them without
    one. Unset: they are open on loopback, and elsewhere the admin token is asked for."""


class Server(Settings):
    """The listening side."""

    listen: Annotated[tuple[Listen, ...], Field(strict=False, min_length=1)] = (Listen(),)
    """Addresses to serve on."""
    limits: Limits = Limits()
    """What one client may cost before its call is understood."""
    log: Log = Log()
    """Logging."""
    metrics: MetricsSettings = MetricsSettings()
    """Who may read `/metrics`."""
    cors_origins: Texts = ()
    """Browser origins that may call the API, such as https://chat.example.com; `*` for any."""
    trusted_proxies: Annotated[tuple[Annotated[Text, AfterValidator(_trusted_network)], ...], Field(strict=False)] = ()
    """Networks of the proxies in front, such as 10.0.0.0/8: whom they name in X-Forwarded-For is the client."""
    admin_token: OptionalSecret = None
    """Token of the admin API. Unset: SWITCHYARD_ADMIN_TOKEN, else one is made at first start and printed once."""
    workers: Annotated[Int, Field(ge=1, le=256)] = 1
    """Processes that serve."""


class Redis(Settings):
    """The store of keys and counters."""

    url: Annotated[Secret, AfterValidator(_redis_url)] = SecretStr("embedded")
    """`embedded`, or the address of a server, of Sentinels, or of a Cluster, with a user and password where needed."""


# -- providers ----------------------------------------------------------------------------------------------------


class TimeoutsConfig(Settings):
    """Deadlines of one provider, in seconds. Unset: connect 3, first_content 30 (local: 120), idle 30, total 600."""

    connect: OptionalSeconds = None
    """Time to connect, TLS included (default 3)."""
    first_content: OptionalSeconds = None
    """Time to the first content of the answer (default 30; local 120, which allows for loading a model)."""
    idle: OptionalSeconds = None
    """Longest silence between two pieces of content (default 30)."""
    total: OptionalSeconds = None
    """Longest answer (default 600)."""


class Facts(Settings):
    """What a model can do. Unset: what the vendor or the server says; unknown counts as able."""

    vision: Bool | None = None
    """Reads images."""
    audio: Bool | None = None
    """Listens to audio."""
    files: Bool | None = None
    """Reads documents such as PDF."""
    tools: Bool | None = None
    """Calls tools."""
    schema_: Annotated[Bool | None, Field(alias="schema")] = None
    """Keeps to a JSON schema."""
    reasoning: Bool | None = None
    """Can reason before it answers."""
    embeddings: Bool | None = None
    """Makes embeddings."""
    chat: Bool | None = None
    """Chats; false for a model that only embeds."""
    context: OptionalCount = None
    """Tokens of prompt and answer together."""
    max_output: OptionalCount = None
    """Most tokens of one answer, reasoning included: what a call without max_tokens reserves."""


class ProviderLimits(Settings):
    """What all routers of one store together may ask of a provider. Unset: no bound."""

    rpm: OptionalLimit = None
    """Calls in a minute."""
    tpm: OptionalLimit = None
    """Tokens in a minute, prompts and answers together."""
    concurrency: OptionalLimit = None
    """Calls at once."""


class ProviderConfig(Settings):
    """One account or server."""

    vendor: Text
    """openai, ollama, gemini, doubao, kimi, openai-compatible, litellm or demo."""
    enabled: Bool = True
    """false turns the provider off without deleting it."""
    api_key: OptionalSecret = None
    """The provider's key: `${NAME:-}` or `file:/path`. Empty: the provider is off, where its vendor needs a key."""
    base_url: OptionalText = None
    """Where it is reached; unset: the vendor's own address. For ollama a host as in OLLAMA_HOST will do."""
    local: Bool | None = None
    """Runs on your own machines: costs no money, may end the fallback chain. Unset: true for ollama and demo."""
    timeouts: TimeoutsConfig = TimeoutsConfig()
    """Deadlines."""
    max_concurrency: OptionalCount = None
    """Most calls at once of this router; unset: no bound. Several workers divide the places, and each has at least
    one."""
    queue: Annotated[Int, Field(ge=0)] = 32
    """Most calls that wait for a free place; more are sent on to the next target."""
    limits: ProviderLimits = ProviderLimits()
    """What all workers and routers of one store together may ask of it."""
    model_limits: dict[Text, ProviderLimits] = {}
    """The same for some of its models, by the name that is sent or a pattern of it; every row that fits counts."""
    headers: dict[HeaderName, HeaderValue] = {}
    """Headers added to every request."""
    proxy: Annotated[OptionalSecret, AfterValidator(_proxy)] = None
    """HTTP proxy, as http://user:password@host:port."""
    ca_bundle: OptionalText = None
    """File with the certificates to trust, in PEM."""
    models: Annotated[Literal["discover"] | tuple[str, ...] | None, BeforeValidator(_served_models)] = None
    """`discover` asks the server for its list; a list declares the names, and no others are served. Unset: discover
    for ollama; for the others every name written out is passed on and none is listed."""
    capabilities: dict[Text, Facts] = {}
    """What its models can do, by name or pattern (`*` stands for anything; the longest pattern wins)."""
    litellm_provider: OptionalText = None
    """For vendor litellm: the library's name of the provider, such as bedrock, azure or anthropic."""
    options: dict[Text, Any] = {}
    """What only this vendor understands; see the vendor's page."""


# -- models -------------------------------------------------------------------------------------------------------


class TargetConfig(Settings):
    """One place that a model name may lead to. Written as text it is only `to`."""

    to: Text
    """`provider/model`. Under a pattern, `provider/*` sends the asked name, and a `*` inside a longer name stands for
    what the pattern's `*` matched."""
    weight: Annotated[Number, Field(ge=0, le=1_000_000)] = 1.0
    """Share of the calls among targets of the same priority; 0 takes none."""
    priority: Annotated[Int, Field(ge=0, le=1000)] = 1
    """Lower is tried first."""


class ModelConfig(Settings):
    """One name that clients may ask for, or a pattern of names."""

    targets: Annotated[tuple[Annotated[TargetConfig, BeforeValidator(_target)], ...], Field(strict=False, min_length=1)]
    """Where calls go."""
    fallback: Texts | None = None
    """Where calls go when no target can answer: `provider/model`, or another name of `models`. Unset: the `fallback`
    of the whole file; [] for none."""
    capabilities: Facts = Facts()
    """What this model can do, where you know better than the vendor."""


# -- prices -------------------------------------------------------------------------------------------------------


class PriceSettings(Settings):
    """What calls cost."""

    file: OptionalText = None
    """Prices of your own, relative to this file; they go before the ones that are shipped. See docs/billing.md."""
    unpriced: Literal["flag", "refuse"] = "flag"
    """A paid model whose price is unknown: `flag` serves it and marks the record, except to those with a limit in
    money; `refuse` leaves it out for everybody."""
    usd_cny: Annotated[Number, Field(gt=0.01, lt=1000)] = 7.1
    """How many yuan one US dollar is."""


class Telemetry(Settings):
    """Traces and metrics for an OpenTelemetry collector. Needs the extra `otel`; see docs/telemetry.md."""

    otlp_endpoint: OptionalText = None
    """Where the collector takes OTLP over HTTP, such as http://127.0.0.1:4318. Unset: OTEL_EXPORTER_OTLP_ENDPOINT of
    the environment; without that, nothing is sent."""
    headers: dict[HeaderName, HeaderValue] = {}
    """Headers for the collector."""
    traces: Bool = True
    """Send traces."""
    metrics: Bool = True
    """Send metrics."""
    sample: Annotated[Number, Field(ge=0, le=1)] = 1.0
    """Share of the calls that are traced; a caller that sends a trace of its own decides for itself."""
    service_name: OptionalText = None
    """What the router is called. Unset: OTEL_SERVICE_NAME, else switchyard."""
    names: Literal["published", "latest"] | None = None
    """State of the GenAI names. Unset: published, unless OTEL_SEMCONV_STABILITY_OPT_IN asks for the latest."""


class Config(Settings):
    """The whole file."""

    server: Server = Server()
    """The listening side."""
    redis: Redis = Redis()
    """The store of keys and counters."""
    data_dir: Text = "./data"
    """Directory for the embedded store and what else is kept; relative to where the router is started."""
    providers: dict[ProviderName, ProviderConfig] = {}
    """Accounts and servers, by a name of your choice."""
    models: dict[Text, ModelConfig] = {}
    """Names that clients may ask for; `*` in a name stands for anything."""
    fallback: Texts = ()
    """Where calls go when no target of a model can answer, in this order."""
    prices: PriceSettings = PriceSettings()
    """What calls cost."""
    telemetry: Telemetry = Telemetry()
    """Traces and metrics for an OpenTelemetry collector."""

    _origin: Origin = PrivateAttr(default_factory=Origin)

    @property
    def origin(self) -> Origin:
        """Where this config came from."""
        return self._origin

    @property
    def warnings(self) -> tuple[Problem, ...]:
        """What is allowed and yet worth a second look."""
        return self._origin.warnings

    def problem(self, message: str, *path: str | int) -> Problem:
        """A problem with the setting at `path` that showed only later, with its place."""
        places = (self._origin.places.get(path[:length]) for length in range(len(path), -1, -1))
        return Problem(self._origin.file, *next(filter(None, places), (1, 1)), message)

    def variables(self, *path: str | int) -> tuple[str, ...]:
        """The environment variables that the setting at `path` refers to."""
        return self._origin.references.get(path, ())


def load_config(path: Path, env: Mapping[str, str], copy: Path | None = None) -> Config:
    """The config in the file at `path`. Raises ConfigErrors with everything that is wrong with it.

    `env` is where `${NAME}` looks; the file itself and `file:` secrets are all that is read. `copy` holds what the file
    held when it was last read, and is read in its place.
    """
    from router.config_check import check_text, read_text  # it needs the types above

    text, data = read_text(copy or path)
    config, origin = check_text(text, str(path), env)
    digest = hashlib.sha256(data).hexdigest()[:12]
    config._origin = replace(origin, digest=digest, data=data)
    return config
