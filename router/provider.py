"""A provider: one configured account or server, compiled from its row, with the reason when it takes no calls."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Literal, NamedTuple

from providers.vendor import Vendor
from router.config import ProviderConfig, ProviderLimits
from router.config_hosts import clean_url, is_own, ollama_url
from router.limits import Limit
from router.slots import ALONE, Slot


@dataclass(frozen=True, slots=True)
class Timeouts:
    """Deadlines of a provider, in seconds."""

    connect: float = 3.0
    first_content: float = 30.0
    idle: float = 30.0
    total: float = 600.0


LOCAL_FIRST_CONTENT: Final = 120.0
"""A local server may first load the model from disk."""


@dataclass(frozen=True, slots=True, eq=False)
class Provider:
    """One configured account or server."""

    name: str
    vendor: Vendor
    base_url: str
    api_key: str | None = field(repr=False)
    headers: Mapping[str, str] = field(repr=False)
    timeouts: Timeouts
    local: bool
    max_concurrency: int | None
    """Calls at once of this worker."""
    queue: int
    limits: tuple[Limit, ...]
    """Shared by all routers of the store. `models` is a pattern of the names that are sent; every limit that fits
    counts."""
    proxy: str | None = field(repr=False)
    ca_bundle: str | None
    off: str | None
    """Why it takes no calls ("OPENAI_API_KEY is not set"); None when on."""
    off_word: OffWord | None
    """The same in one word."""
    discover: bool
    """Its model list is asked for."""
    names: tuple[str, ...]
    """The names it is declared to serve, where it is."""
    settings: ProviderConfig = field(repr=False)


OffWord = Literal["disabled", "no_key", "misconfigured"]


class _Off(NamedTuple):
    word: OffWord
    text: str


@dataclass(frozen=True, slots=True)
class Running:
    """What is known of a provider whose server we run ourselves (the demo model): where it is, or why it is not."""

    base_url: str | None = None
    api_key: str | None = field(default=None, repr=False)
    off: str | None = None


def vendor_options(settings: ProviderConfig) -> dict[str, object]:
    """What a vendor is set up with: the row's `options`, and litellm's name of the provider as `provider`."""
    options = dict(settings.options)
    if settings.litellm_provider:
        options["provider"] = settings.litellm_provider
    return options


def compile_provider(
    name: str,
    settings: ProviderConfig,
    *,
    vendor: Vendor,
    own_listeners: Sequence[tuple[str, int]],
    variables: Sequence[str] = (),
    running: Running = Running(),  # frozen
    slot: Slot = ALONE,
) -> Provider:
    """One provider. `variables` are the environment variables that its key refers to; `slot` is the worker whose share
    of the places it gets."""
    api_key = running.api_key or (settings.api_key.get_secret_value() if settings.api_key else None)
    local = vendor.local if settings.local is None else settings.local
    url = running.base_url or settings.base_url or vendor.base_url or ""
    url = ollama_url(url) if settings.vendor == "ollama" else vendor.address(clean_url(url))
    given = settings.timeouts.model_dump(exclude_none=True)
    names = settings.models if isinstance(settings.models, tuple) else ()
    off = _why_off(settings, vendor, local, api_key, url, running.base_url is not None, own_listeners, variables)
    if off is None and running.off is not None:
        off = _Off("misconfigured", running.off)
    return Provider(
        name=name,
        vendor=vendor,
        base_url=url,
        api_key=api_key,
        headers={key.lower(): value.get_secret_value() for key, value in settings.headers.items()},
        timeouts=Timeouts(**({"first_content": LOCAL_FIRST_CONTENT} if local else {}) | given),
        local=local,
        max_concurrency=slot.share(settings.max_concurrency) if settings.max_concurrency is not None else None,
        queue=slot.share(settings.queue) if settings.queue else 0,
        limits=_limits(settings),
        proxy=settings.proxy.get_secret_value() if settings.proxy else None,
        ca_bundle=settings.ca_bundle,
        off=off.text if off is not None else None,
        off_word=off.word if off is not None else None,
        discover=settings.models == "discover" or (settings.models is None and settings.vendor == "ollama"),
        names=names,
        settings=settings,
    )


def _limits(settings: ProviderConfig) -> tuple[Limit, ...]:
    rows: list[tuple[str, ProviderLimits]] = [("", settings.limits), *settings.model_limits.items()]
    found = []
    for models, row in rows:
        if row.rpm is not None:
            found.append(Limit(measure="requests", window="minute", amount=row.rpm, models=models))
        if row.tpm is not None:
            found.append(Limit(measure="tokens", window="minute", amount=row.tpm, models=models))
        if row.concurrency is not None:
            found.append(Limit(measure="running", window="now", amount=row.concurrency, models=models))
    return tuple(found)


def _why_off(
    settings: ProviderConfig,
    vendor: Vendor,
    local: bool,
    api_key: str | None,
    url: str,
    ours: bool,
    own_listeners: Sequence[tuple[str, int]],
    variables: Sequence[str],
) -> _Off | None:
    if not settings.enabled:
        return _Off("disabled", "enabled is false")
    # A row that names a variable waits for it, also where its vendor could do without (litellm); on a local server a
    # key is optional, so an empty one says nothing.
    if not api_key and not local and (vendor.needs_key or variables):
        if variables:
            return _Off("no_key", f"{' and '.join(variables)} {'is' if len(variables) == 1 else 'are'} not set")
        example = f"${{{vendor.key_env}:-}}" if vendor.key_env else "${NAME:-}"
        return _Off("no_key", f'it has no api_key; write for example api_key: "{example}"')
    if not url and vendor.transport == "http" and vendor.name != "demo":
        return _Off("misconfigured", "it has no base_url")
    if url and not ours and is_own(url, own_listeners):
        return _Off("misconfigured", f"{url} points at this router itself")
    return None
