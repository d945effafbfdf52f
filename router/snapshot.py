"""The config compiled for calls: providers, routes and model lists, immutable and looked up by name.

A reload or a new discovery compiles a new snapshot and swaps one reference; calls that run keep the one they began
with. Everything that depends on the config alone is worked out here, so that `plan` only compares.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Final, Literal

from providers.errors import ModelNotFound
from providers.registry import vendor as get_vendor
from providers.vendor import Capabilities, ModelFacts, Vendor
from router.config import Config, ConfigErrors, Facts, ModelConfig, Problem
from router.config_check import fallback_row
from router.health import Block
from router.patterns import Pattern, fill, nearest
from router.provider import Provider, Running, compile_provider, vendor_options
from router.slots import ALONE, Slot

__all__ = [
    "Attempt",
    "Candidate",
    "Entry",
    "Provider",
    "Role",
    "Route",
    "Running",
    "Skipped",
    "Snapshot",
    "Target",
    "base_name",
    "compile_snapshot",
]

BYTES_PER_TOKEN: Final = 8
"""More bytes than this per token do not occur in real text, so a prompt with more than context x 8 bytes cannot fit.
A smaller figure would refuse prompts that do fit; the provider refuses the rest by itself."""
ROUTE_CACHE: Final = 4096
"""Names come from callers, so the number of remembered ones is bounded."""
MAX_MODEL_NAME: Final = 512

Role = Literal["target", "fallback"]


@dataclass(frozen=True, slots=True)
class Target:
    """A model at a provider, by the name that is sent there."""

    provider: Provider
    model: str

    def __str__(self) -> str:
        return f"{self.provider.name}/{self.model}"


@dataclass(frozen=True, slots=True)
class Attempt:
    """One step of a plan."""

    target: Target
    role: Role
    context: int | None = field(default=None, compare=False)
    """Tokens of prompt and answer together, where known."""
    max_output: int | None = field(default=None, compare=False)
    """Most tokens of one answer, where known."""

    def __str__(self) -> str:
        return str(self.target)


@dataclass(frozen=True, slots=True)
class Skipped:
    """A target that is left out. `reason` is a stable code, `detail` a sentence. `block`: of one that is unhealthy, as
    it was when the plan was made; it may be over before the plan is carried out."""

    target: str
    reason: str
    detail: str
    role: Role = "target"
    block: Block | None = None


# What a call may need, as bits. The order of the table is the order in which a lack is reported.
NEEDS: Final[Mapping[str, str]] = {
    "chat": "chat",
    "text": "plain completion",
    "embeddings": "embeddings",
    "vision": "images",
    "audio": "audio",
    "files": "files",
    "tools": "tools",
    "schema": "JSON schema output",
    "reasoning": "reasoning",
    "image_urls": "images given by URL",
    "token_inputs": "inputs given as token ids",
    "choices": "more than one choice",
    "logprobs": "log probabilities",
}
BIT: Final[Mapping[str, int]] = {name: 1 << index for index, name in enumerate(NEEDS)}


@dataclass(frozen=True, slots=True, eq=False)
class Candidate:
    """A target with all that can be said about it before a call comes."""

    attempt: Attempt
    name: str
    weight: float
    cannot: int
    """Bits of `BIT` for what the model is known to be unable to do."""
    max_prompt_bytes: int
    context: int | None
    off: Skipped | None
    same_vectors: bool
    """Its embeddings are comparable with those of the asked model."""


@dataclass(frozen=True, slots=True, eq=False)
class Route:
    """Where one asked name leads."""

    matched: str
    tiers: tuple[tuple[Candidate, ...], ...]
    """By priority, the first one first."""
    fallback: tuple[Candidate, ...]


@dataclass(frozen=True, slots=True)
class Entry:
    """One line of the model lists."""

    id: str
    providers: tuple[str, ...]
    capabilities: Capabilities
    local: bool
    """All its targets are local."""
    on: bool
    """At least one of its targets takes calls. Lists for clients show only these."""
    kind: Literal["configured", "discovered"]
    facts: ModelFacts | None = None
    """What the provider's own list said, where one provider serves it."""

    @property
    def context_length(self) -> int | None:
        return self.capabilities.context


def base_name(name: str) -> str:
    """The form under which Ollama's names are compared: no `:latest`, no case."""
    return name.removesuffix(":latest").lower()


def merge(*layers: Capabilities) -> Capabilities:
    """Field by field what the first layer that knows says."""
    out: dict[str, object] = {}
    for name in Capabilities.__struct_fields__:
        for layer in layers:
            value = getattr(layer, name)
            if value is not None:
                out[name] = value
                break
    return Capabilities(**out)  # type: ignore[arg-type]  # each value comes from the field of the same name


def from_facts(facts: Facts) -> Capabilities:
    """A config row's facts as capabilities."""
    known = facts.model_dump(by_alias=True, exclude_none=True)
    return Capabilities(**known)


class Snapshot:
    """Everything that `plan` and the model lists look up. Immutable but for a cache of names already resolved."""

    def __init__(
        self, config: Config, providers: Mapping[str, Provider], discovered: Mapping[str, Sequence[ModelFacts]]
    ) -> None:
        self.config = config
        self.providers = providers
        self._heads = frozenset(name.lower() for name in providers)
        self._rows: Mapping[str, ModelConfig] = config.models
        self.patterns = tuple(Pattern(name) for name in config.models if "*" in name)
        """The names of `models` that are patterns."""
        self._provider_patterns = {
            name: tuple(Pattern(pattern) for pattern in provider.settings.capabilities)
            for name, provider in providers.items()
        }
        self._facts: dict[str, dict[str, ModelFacts]] = {}
        self._servers: dict[str, list[tuple[Provider, str]]] = {}
        for name, provider in providers.items():
            self._add_served(provider, discovered.get(name))
        self._routes: dict[str, Route] = {}
        self._allowed: dict[tuple[tuple[str, ...], tuple[str, ...], str], bool] = {}
        self.models: tuple[Entry, ...] = tuple(self._entries())
        """All names that can be asked for, patterns left out; also those whose providers are off."""
        self.listed: tuple[Entry, ...] = tuple(entry for entry in self.models if entry.on)
        """The names that a client is shown."""
        self._by_id = {entry.id: entry for entry in self.models}
        self._known = tuple(dict.fromkeys([*self._rows, *(entry.id for entry in self.models)]))

    # -- served names ---------------------------------------------------------------------------------------------

    def _add_served(self, provider: Provider, found: Sequence[ModelFacts] | None) -> None:
        facts = {name: ModelFacts(name) for name in provider.names}
        if found is not None:
            wanted = {base_name(name) for name in provider.names}
            facts |= {fact.name: fact for fact in found if not wanted or base_name(fact.name) in wanted}
            # Known for sure only where the server was asked: a declared list may be ahead of what is installed.
            self._facts[provider.name] = {base_name(fact.name): fact for fact in found}
        for name in facts:
            servers = self._servers.setdefault(base_name(name), [])
            if all(server is not provider for server, _ in servers):
                servers.append((provider, name))

    def serving(self, name: str) -> list[tuple[Provider, str]]:
        """The providers that serve a bare name, with the name as they spell it; those that are on, if any is."""
        servers = self._servers.get(base_name(name), [])
        return [server for server in servers if server[0].off is None] or servers

    def named(self) -> Iterable[tuple[str, str]]:
        """Providers and models that the config names, patterns left out."""
        written = [target.to for row in self._rows.values() for target in row.targets]
        for entry in (
            *written,
            *self.config.fallback,
            *(to for row in self._rows.values() for to in row.fallback or ()),
        ):
            head, slash, model = entry.partition("/")
            if slash and head in self.providers and "*" not in model:
                yield head, model
        for name, provider in self.providers.items():
            settings = provider.settings
            for model in (*provider.names, *settings.capabilities, *settings.model_limits):
                if "*" not in model:
                    yield name, model

    def told(self) -> Iterable[tuple[str, str]]:
        """Providers and models of their model lists."""
        return ((name, fact.name) for name, facts in self._facts.items() for fact in facts.values())

    def facts(self, provider: str, model: str) -> ModelFacts | None:
        """What the provider's own list says of a model."""
        return self._facts.get(provider, {}).get(base_name(model))

    def capabilities(self, target: Target, row: Facts | None = None) -> Capabilities:
        """What is known of a target: the model's row, the provider's row, the vendor, the server's own list."""
        layers: list[Capabilities] = []
        if row is not None:
            layers.append(from_facts(row))
        found = nearest(target.model, self._provider_patterns[target.provider.name])
        if found is not None:
            layers.append(from_facts(target.provider.settings.capabilities[found[0].text]))
        layers.append(target.provider.vendor.capabilities(target.model))
        facts = self.facts(target.provider.name, target.model)
        if facts is not None:
            layers.append(facts.capabilities)
        return merge(*layers)

    # -- routes ---------------------------------------------------------------------------------------------------

    def route(self, asked: str) -> Route:
        """Where `asked` leads. Raises ModelNotFound with near names."""
        route = self._routes.get(asked)
        if route is None:
            route = self._resolve(asked)
            if len(self._routes) >= ROUTE_CACHE:
                self._routes.clear()
            self._routes[asked] = route
        return route

    def _resolve(self, asked: str) -> Route:
        if not asked or len(asked) > MAX_MODEL_NAME:
            raise ModelNotFound(asked[:64])
        for name in (asked, asked.removesuffix(":latest"), f"{asked}:latest"):
            if name in self._rows and "*" not in name:
                return self._row_route("exact", name, name, ())
        found = nearest(asked, self.patterns)
        if found is not None:
            return self._row_route(f"pattern:{found[0].text}", found[0].text, asked, found[1])
        head, slash, model = asked.partition("/")
        provider = self.providers.get(head)
        if slash and provider is not None and model:
            return self._written_route(provider, model, asked)
        servers = self.serving(asked)
        if len(servers) == 1:
            return self._plain_route("discovered", Target(*servers[0]))
        if servers:
            written = [f"{server.name}/{name}" for server, name in servers]
            message = f"model '{asked}' is served by {len(servers)} providers: write {' or '.join(written)}."
            raise ModelNotFound(asked, written, message)
        raise ModelNotFound(asked, self.near(asked))

    def _written_route(self, provider: Provider, model: str, asked: str) -> Route:
        if provider.names and not provider.discover:
            names = {base_name(name): name for name in provider.names}
            if base_name(model) not in names:
                near = get_close_matches(model, provider.names, n=3, cutoff=0.4) or provider.names[:3]
                raise ModelNotFound(asked, [f"{provider.name}/{name}" for name in near])
            model = names[base_name(model)]
        return self._plain_route("written", Target(provider, model))

    def _plain_route(self, matched: str, target: Target) -> Route:
        return self._make_route(matched, [(target, 1.0, 1)], None, self.config.fallback)

    def _row_route(self, matched: str, row_name: str, asked: str, found: tuple[str, ...]) -> Route:
        row = self._rows[row_name]
        chain = self.config.fallback if row.fallback is None else row.fallback
        return self._make_route(matched, self._row_targets(row, asked, found), row.capabilities, chain, row_name)

    def _row_targets(self, row: ModelConfig, asked: str, found: tuple[str, ...]) -> list[tuple[Target, float, int]]:
        out = []
        for target in row.targets:
            head, _, model = target.to.partition("/")
            out.append((Target(self.providers[head], fill(model, asked, found)), target.weight, target.priority))
        return out

    def _make_route(
        self,
        matched: str,
        targets: Sequence[tuple[Target, float, int]],
        facts: Facts | None,
        chain: Iterable[str],
        row: str | None = None,
    ) -> Route:
        seen: set[tuple[str, str]] = set()
        models = frozenset(base_name(target.model) for target, _, _ in targets)
        tiers: dict[int, list[Candidate]] = {}
        for target, weight, priority in targets:
            if _first_time(target, seen):
                candidate = self._candidate(target, "target", weight, self.capabilities(target, facts), models)
                tiers.setdefault(priority, []).append(candidate)
        fallback = [
            self._candidate(target, "fallback", 1.0, self.capabilities(target, its_facts), models)
            for target, its_facts in self._chain(chain, {row} if row else set())
            if _first_time(target, seen)
        ]
        return Route(matched, tuple(tuple(tiers[priority]) for priority in sorted(tiers)), tuple(fallback))

    def _chain(self, entries: Iterable[str], seen: set[str]) -> Iterable[tuple[Target, Facts | None]]:
        """A fallback chain with the model names in it replaced by their targets and their own chains."""
        for entry in entries:
            name = fallback_row(entry, self._rows, self.providers)
            if name is None:
                head, _, model = entry.partition("/")
                yield Target(self.providers[head], model), None
            elif name not in seen:
                seen.add(name)
                row = self._rows[name]
                found = Pattern(name).match(entry) if "*" in name and name != entry else None
                for target, weight, _ in sorted(self._row_targets(row, entry, found or ()), key=lambda item: item[2]):
                    if weight > 0:
                        yield target, row.capabilities
                yield from self._chain(row.fallback or (), seen)

    def _candidate(
        self, target: Target, role: Role, weight: float, known: Capabilities, models: frozenset[str]
    ) -> Candidate:
        name = str(target)
        off: Skipped | None = None
        if target.provider.off is not None:
            off = Skipped(name, "provider_off", f"provider {target.provider.name} is off: {target.provider.off}", role)
        elif weight <= 0:
            off = Skipped(name, "weight_zero", "its weight is 0", role)
        elif role == "fallback" and self._is_missing(target):
            detail = f"provider {target.provider.name} does not have {target.model}"
            off = Skipped(name, "not_installed", detail, role)
        return Candidate(
            attempt=Attempt(target, role, known.context, known.max_output),
            name=name,
            weight=weight,
            cannot=sum(bit for need, bit in BIT.items() if getattr(known, need) is False),
            max_prompt_bytes=known.context * BYTES_PER_TOKEN if known.context else 1 << 62,
            context=known.context,
            off=off,
            same_vectors=base_name(target.model) in models,
        )

    def _is_missing(self, target: Target) -> bool:
        """A local server that was asked for its list and does not name the model. Lists of clouds are not complete."""
        found = self._facts.get(target.provider.name)
        return found is not None and target.provider.local and base_name(target.model) not in found

    # -- names ----------------------------------------------------------------------------------------------------

    def near(self, asked: str) -> list[str]:
        """Up to three known names that look like `asked`."""
        asked = asked[:100]
        near = get_close_matches(asked, self._known, n=3, cutoff=0.6)
        if near:
            return near
        stem = asked.rpartition("/")[2].partition(":")[0].lower()
        return [name for name in self._known if stem and stem in name.lower()][:3]

    def entry(self, name: str) -> Entry | None:
        """The line of the model list for a name; `foo` and `foo:latest` are one."""
        for form in (name, name.removesuffix(":latest"), f"{name}:latest"):
            if form in self._by_id:
                return self._by_id[form]
        return None

    def _entries(self) -> Iterable[Entry]:
        taken: set[str] = set()
        for name, row in self._rows.items():
            if "*" in name:
                continue
            taken.add(base_name(name))
            targets = [target for target, _, _ in self._row_targets(row, name, ())]
            yield self._entry(name, targets, row.capabilities, "configured")
        for key, servers in self._servers.items():
            if key in taken:
                continue
            serving = [server for server in servers if server[0].off is None] or servers
            for provider, name in serving:
                shown = name if len(serving) == 1 else f"{provider.name}/{name}"
                yield self._entry(shown, [Target(provider, name)], None, "discovered")

    def _entry(
        self, name: str, targets: Sequence[Target], row: Facts | None, kind: Literal["configured", "discovered"]
    ) -> Entry:
        on = [target for target in targets if target.provider.off is None and not self._is_missing(target)]
        shown = on or targets
        first = shown[0]
        return Entry(
            id=name,
            providers=tuple(dict.fromkeys(target.provider.name for target in shown)),
            capabilities=self.capabilities(first, row),
            local=all(target.provider.local for target in shown),
            on=bool(on),
            kind=kind,
            facts=self.facts(first.provider.name, first.model),
        )

    # -- rights ---------------------------------------------------------------------------------------------------

    def allows(self, models: tuple[str, ...], deny: tuple[str, ...], name: str) -> bool:
        """Whether patterns of a key let it use `name`: none of `deny`, and one of `models` unless that is empty.

        `name` may be `provider/model`. `models` is compared with the name as it is; `deny` also with everything after
        each `/` of it, since providers take longer spellings of one model (`models/gemini-2.5-pro` at Gemini,
        `registry.ollama.ai/library/llama3.2:latest` at Ollama).
        """
        if len(name) > MAX_MODEL_NAME:
            return False  # no model has such a name, and it must not be remembered
        key = (models, deny, name)
        allowed = self._allowed.get(key)
        if allowed is None:
            allowed = not (deny and _any_match(deny, self._spellings(name))) and (
                not models or _any_match(models, {name.lower(), base_name(name)})
            )
            if len(self._allowed) >= ROUTE_CACHE:
                self._allowed.clear()
            self._allowed[key] = allowed
        return allowed

    def _spellings(self, name: str) -> set[str]:
        """Every name under which a provider may know `name`: in any case, with or without `:latest`, without the
        spaces and empty segments that some overlook, and what follows each `/`, also with the provider in front."""
        found = {name.lower()}
        segments = [segment for segment in "".join(name.lower().split()).split("/") if segment]
        for start in range(len(segments)):
            rest = "/".join(segments[start:])
            found |= {rest, f"{segments[0]}/{rest}"} if segments[0] in self._heads else {rest}
        return found | {form.removesuffix(":latest") for form in found}


def _first_time(target: Target, seen: set[tuple[str, str]]) -> bool:
    key = (target.provider.name, target.model)
    if key in seen:
        return False
    seen.add(key)
    return True


def _any_match(patterns: Iterable[str], names: Iterable[str]) -> bool:
    names = tuple(names)
    for pattern in patterns:
        compiled = Pattern(pattern.lower() if "*" in pattern else base_name(pattern))
        if any(compiled.match(name) is not None for name in names):
            return True
    return False


# -- compiling ----------------------------------------------------------------------------------------------------


def compile_snapshot(
    config: Config,
    *,
    discovered: Mapping[str, Sequence[ModelFacts]] | None = None,
    own_listeners: Sequence[tuple[str, int]] | None = None,
    running: Mapping[str, Running] | None = None,
    vendor: Callable[[str, Mapping[str, object]], Vendor] = get_vendor,
    slot: Slot = ALONE,
) -> Snapshot:
    """The config compiled. By provider name: `discovered` holds the model lists that servers gave,
    `running` the state of servers that we run ourselves. `slot` is the worker that it is for.

    `own_listeners` are (host, port) pairs that this router serves on, by default those of the config: a provider that
    leads back there is off. `vendor` finds a vendor by name and options, and its ValueError about the options becomes
    ConfigErrors.
    """
    if own_listeners is None:
        own_listeners = [(listen.host, listen.port) for listen in config.server.listen]
    providers = {}
    problems: list[Problem] = []
    for name, settings in config.providers.items():
        try:
            made = vendor(settings.vendor, vendor_options(settings))
        except ValueError as error:
            problems.append(config.problem(f"providers.{name}.options: {error}", "providers", name, "options"))
            continue
        providers[name] = compile_provider(
            name,
            settings,
            vendor=made,
            own_listeners=own_listeners,
            variables=config.variables("providers", name, "api_key"),
            running=(running or {}).get(name, Running()),
            slot=slot,
        )
    if problems:
        raise ConfigErrors(problems)
    return Snapshot(config, providers, discovered or {})
