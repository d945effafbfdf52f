"""The rest of the Ollama API, beside the four inference routes: who is there, what is listed, what is loaded, and
model management.

Functions of values: nothing here opens a socket. `find` says which operation a request is; the list routes give an
`Answer`; management gives an `Answer` or a `Forward`, a request that the caller sends to the local Ollama and whose
answer it streams back as it comes.

Lists come from the snapshot in memory. What is not known of a model is left out or empty, but for its context:
editors assume a tiny window without it, so there a cautious number stands.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Final, Literal

import orjson

from providers.errors import InvalidRequest, ModelNotFound, NotAllowed, SwitchyardError
from providers.framing import line_safe
from providers.vendor import Capabilities, ModelFacts, UpstreamRequest
from providers.wires.ollama import WIRE
from providers.wires.ollama.fields import go_type
from router.lists import find_entry
from router.provider import Provider
from router.routing import Rights
from router.snapshot import Entry, Snapshot, base_name

API_VERSION: Final = "0.33.3"
"""The level of the Ollama API that this door speaks. Clients compare it as dotted integers with what they need."""
ALIVE: Final = b"Ollama is running"
TEXT: Final = "text/plain; charset=utf-8"
JSON: Final = "application/json; charset=utf-8"
NDJSON: Final = "application/x-ndjson"

MAX_MANAGEMENT_BODY: Final = 1024 * 1024
"""Bytes of a pull, push, create, copy or delete request."""
MAX_BLOB: Final = 256 * 1024**3
"""Bytes of an uploaded blob. They are never held: the body is passed on as it comes."""
ASSUMED_CONTEXT: Final = 32768
ASSUMED_LOCAL_CONTEXT: Final = 4096
"""Tokens, for models of which nobody said. 4096 is what an Ollama itself gives a model on a small GPU."""

Op = Literal[
    "root",
    "version",
    "tags",
    "show",
    "ps",
    "chat",
    "generate",
    "embed",
    "embeddings",
    "pull",
    "push",
    "create",
    "copy",
    "delete",
    "blob",
    "status",
]


@dataclass(frozen=True, slots=True)
class Answer:
    """What to send. A HEAD request gets the headers of the body and no body; `length` is the body's."""

    status: int
    content_type: str
    body: bytes
    headers: Mapping[str, str] = field(default_factory=dict)
    length: int = -1

    def __post_init__(self) -> None:
        if self.length < 0:
            object.__setattr__(self, "length", len(self.body))


@dataclass(frozen=True, slots=True)
class Found:
    """A request of this door. `digest` is a blob's, `sha256:` and 64 hex digits."""

    op: Op
    method: str
    digest: str = ""


@dataclass(frozen=True, slots=True)
class Forward:
    """Send `request` to `provider` and give its status, content type and body back as they come."""

    provider: Provider
    request: UpstreamRequest
    stream_body: bool = False
    """The client's body goes up piece by piece, at most `max_body` bytes, in place of `request.body`."""
    max_body: int = MAX_MANAGEMENT_BODY


INFERENCE: Final[frozenset[Op]] = frozenset({"chat", "generate", "embed", "embeddings"})
PUBLIC: Final[frozenset[Op]] = frozenset({"root", "version"})
"""Answered without a key: clients probe these before they know of one. They say nothing of models or keys."""
MANAGEMENT: Final[frozenset[Op]] = frozenset({"pull", "push", "create", "copy", "delete", "blob"})

ROUTES: Final[Mapping[str, Mapping[str, Op]]] = {
    "/": {"GET": "root", "HEAD": "root"},
    "/api/version": {"GET": "version", "HEAD": "version"},
    "/api/tags": {"GET": "tags", "HEAD": "tags"},
    "/api/ps": {"GET": "ps"},
    "/api/status": {"GET": "status"},
    "/api/show": {"POST": "show"},
    "/api/chat": {"POST": "chat"},
    "/api/generate": {"POST": "generate"},
    "/api/embed": {"POST": "embed"},
    "/api/embeddings": {"POST": "embeddings"},
    "/api/pull": {"POST": "pull"},
    "/api/push": {"POST": "push"},
    "/api/create": {"POST": "create"},
    "/api/copy": {"POST": "copy"},
    "/api/delete": {"DELETE": "delete"},
}
_BLOBS: Final = "/api/blobs/"
_BLOB_METHODS: Final[Mapping[str, Op]] = {"HEAD": "blob", "POST": "blob"}
_DIGEST: Final = re.compile(r"sha256[:-][0-9a-fA-F]{64}")


def find(method: str, path: str) -> Found | Answer:
    """Which operation a request is; else the 404 or 405 that an Ollama gives (plain text). A trailing slash is
    forgiven."""
    blob = path.startswith(_BLOBS) and len(path) > len(_BLOBS)
    known = _BLOB_METHODS if blob else ROUTES.get(path if path == "/" else path.rstrip("/"))
    if known is None:
        return Answer(404, TEXT, b"404 page not found")
    op = known.get(method)
    if op is None:
        return Answer(405, TEXT, b"405 method not allowed", {"allow": ", ".join(known)})
    return Found(op, method, path.removeprefix(_BLOBS) if blob else "")


def is_ours(path: str) -> bool:
    """Whether a path belongs to the Ollama API, known or not."""
    return path == "/" or path == "/api" or (path.startswith("/api/") and not path.startswith("/api/v3/"))


def failure(error: SwitchyardError, request_id: str = "") -> Answer:
    """An error as this door says it."""
    return Answer(error.status, JSON, WIRE.write_error(error, request_id))


def _json(value: object, status: int = 200) -> Answer:
    return Answer(status, JSON, line_safe(orjson.dumps(value)))


def headless(found: Found, answer: Answer) -> Answer:
    """The answer as HEAD wants it: without its body."""
    if found.method != "HEAD":
        return answer
    return Answer(answer.status, answer.content_type, b"", answer.headers, length=len(answer.body))


# --- who is there ----------------------------------------------------------------------------------------------------


def root() -> Answer:
    return Answer(200, TEXT, ALIVE)


def version() -> Answer:
    return _json({"version": API_VERSION})


def status() -> Answer:
    """The switch for Ollama's own cloud, which has no part in this door."""
    return _json({"cloud": {"disabled": True, "source": "none"}})


# --- lists -----------------------------------------------------------------------------------------------------------


def tags(entries: Iterable[Entry], since: float) -> Answer:
    """`entries` are those that the key may see (`routing.visible`); `since` stands in for a date nobody knows (Unix
    seconds).

    Digests are unique, because clients take models that share one for aliases of each other.
    """
    seen: set[str] = set()
    models = []
    for entry in entries:
        known = _known(entry.facts)
        digest = _digest(entry)
        if digest in seen:
            digest = _made_digest(entry)
        seen.add(digest)
        size = known.get("size")
        models.append(
            {
                "name": entry.id,
                "model": entry.id,
                "modified_at": _date(known.get("modified_at"), since),
                "size": size if isinstance(size, int) else 0,
                "digest": digest,
                "details": _details(entry, known),
                "capabilities": capability_words(entry.capabilities),
            }
        )
    models.sort(key=lambda model: _instant(str(model["modified_at"])), reverse=True)
    return _json({"models": models})


def show(snapshot: Snapshot, entries: Iterable[Entry], body: Mapping[str, Any], since: float, rights: Rights) -> Answer:
    """One model's details. Raises InvalidRequest without a name and ModelNotFound for one that the key may not see.

    `entries` as in `tags`. A name that only a pattern or `provider/model` resolves is shown too, if `snapshot` knows
    its way.
    """
    asked = _name(body)
    entry = find_entry(snapshot, entries, asked, rights)
    known = _known(entry.facts)
    details = _details(entry, known)
    info = dict(known["model_info"]) if isinstance(known.get("model_info"), dict) else {}
    kind = info.setdefault("general.architecture", details["family"] or "unknown")
    info.setdefault("general.basename", entry.id)
    if not any(key.endswith(".context_length") for key in info):
        assumed = ASSUMED_LOCAL_CONTEXT if entry.local else ASSUMED_CONTEXT
        info[f"{kind}.context_length"] = entry.context_length or assumed
    if not body.get("verbose"):
        info = {key: [] if isinstance(value, list) and len(value) > 5 else value for key, value in info.items()}
    return _json(
        {
            "license": "",
            "modelfile": f"FROM {entry.id}\n",
            "parameters": "",
            "template": "",
            "system": "",
            "details": details,
            "model_info": info,
            "capabilities": capability_words(entry.capabilities),
            "modified_at": _date(known.get("modified_at"), since),
        }
    )


def capability_words(known: Capabilities) -> list[str]:
    """Ollama's words. Chat and tools count as there unless known to be missing: clients hide what is not in this
    list, while the provider can still refuse; vision, thinking and audio only when known."""
    embeds_only = known.embeddings is True and not known.chat
    words = {
        "completion": known.chat is not False and not embeds_only,
        "tools": known.tools is not False and known.chat is not False and not embeds_only,
        "vision": known.vision is True,
        "audio": known.audio is True,
        "embedding": known.embeddings is True,
        "thinking": known.reasoning is True,
    }
    return [word for word, has in words.items() if has]


@dataclass(frozen=True, slots=True)
class Loaded:
    """A model in memory of a local server. `until`: Unix seconds when it may be unloaded, None for never."""

    name: str
    size: int = 0
    size_vram: int = 0
    until: float | None = None
    context: int = 0


_NEVER: Final = "2318-01-01T00:00:00Z"
"""Ollama writes a date some centuries ahead for a model that stays."""


def ps(entries: Iterable[Entry], loaded: Sequence[Loaded]) -> Answer:
    """What is loaded, of the models that the key may see, longest-lived first."""
    shown = {base_name(entry.id): entry for entry in entries}
    models = []
    for item in sorted(loaded, key=lambda item: float("inf") if item.until is None else item.until, reverse=True):
        entry = shown.get(base_name(item.name))
        if entry is None:
            continue
        known = _known(entry.facts)
        models.append(
            {
                "name": entry.id,
                "model": entry.id,
                "size": item.size,
                "digest": _digest(entry),
                "details": _details(entry, known),
                "expires_at": _NEVER if item.until is None else _date(None, item.until),
                "size_vram": item.size_vram,
                "context_length": item.context or entry.context_length or ASSUMED_LOCAL_CONTEXT,
            }
        )
    return _json({"models": models})


def read_ps(body: bytes) -> tuple[Loaded, ...]:
    """The local Ollama's own `GET /api/ps`; empty when it cannot be understood, since a list is not worth an error."""
    try:
        given = orjson.loads(body)
    except orjson.JSONDecodeError:
        return ()
    models = given.get("models") if isinstance(given, dict) else None
    found = []
    for item in models if isinstance(models, list) else ():
        name = (item.get("model") or item.get("name")) if isinstance(item, dict) else None
        if not isinstance(name, str):
            continue
        until = _instant(str(item.get("expires_at") or ""))
        counts = (item.get(key) for key in ("size", "size_vram", "context_length"))
        size, vram, context = (count if isinstance(count, int) else 0 for count in counts)
        found.append(Loaded(name, size, vram, until or None, context))
    return tuple(found)


def _digest(entry: Entry) -> str:
    """The server's own, under the server's own name; another name for the same model has one of its own."""
    facts = entry.facts
    if facts is not None and base_name(facts.name) == base_name(entry.id):
        given = facts.details.get("digest")
        if isinstance(given, str) and re.fullmatch(r"[0-9a-f]{64}", given):
            return given
    return _made_digest(entry)


def _made_digest(entry: Entry) -> str:
    return hashlib.sha256(f"switchyard/{entry.id}".encode()).hexdigest()


def _known(facts: ModelFacts | None) -> Mapping[str, Any]:
    return facts.details if facts is not None else {}


def _details(entry: Entry, known: Mapping[str, Any]) -> dict[str, Any]:
    given = known.get("details")
    held = given if isinstance(given, dict) else {}
    family = held.get("family") or (entry.providers[0] if entry.providers else "")
    families = held.get("families")
    details: dict[str, Any] = {
        "parent_model": "",
        "format": str(held.get("format") or ""),
        "family": str(family),
        "families": families if isinstance(families, list) else [str(family)],
        "parameter_size": str(held.get("parameter_size") or ""),
        "quantization_level": str(held.get("quantization_level") or ""),
    }
    if entry.context_length:
        details["context_length"] = entry.context_length
    return details


def _instant(text: str) -> float:
    """Unix seconds of an RFC 3339 date; 0 for what is none. Go writes nine fractional digits, Python reads six."""
    cut = re.sub(r"(\.\d{6})\d+", r"\1", text)
    try:
        found = datetime.fromisoformat(cut)
    except ValueError:
        return 0.0
    return (found if found.tzinfo else found.replace(tzinfo=UTC)).timestamp()


def _date(given: object, otherwise: float) -> str:
    """A date that every client can parse: the given one if it is one."""
    if isinstance(given, str) and _instant(given) > 0:
        return given
    return f"{datetime.fromtimestamp(int(otherwise), UTC):%Y-%m-%dT%H:%M:%SZ}"


def _name(body: Mapping[str, Any]) -> str:
    """`model`, or its older spelling `name`, in any case of letters."""
    low = {key.lower(): value for key, value in body.items()}
    for key in ("model", "name"):
        value = low.get(key)
        if value is not None and not isinstance(value, str):
            raise InvalidRequest(f"json: cannot unmarshal {go_type(value)} into Go struct field .{key} of type string")
        if value:
            return value
    raise InvalidRequest("model is required", param="model")


# --- management ------------------------------------------------------------------------------------------------------


def manage(
    found: Found, body: Mapping[str, Any], snapshot: Snapshot, entries: Iterable[Entry], rights: Rights
) -> Answer | Forward:
    """What to do with pull, push, create, copy, delete and blobs. `body` is the parsed request, empty for blobs.

    Keys with the right `manage_local` reach the local Ollama. Everyone may `pull` a name that is served: several front
    ends do so before first use, and it answers `success`. Raises NotAllowed, InvalidRequest, or NotSupported when there
    is no Ollama to manage.
    """
    if found.op == "pull":
        asked = _name(body)
        served = _served(snapshot, entries, asked, rights)
        if served is not None and not (rights.manage_local and served.local and local_ollama(snapshot) is not None):
            return _pulled(stream=body.get("stream") is not False)
    if not rights.manage_local:
        raise NotAllowed(f"this key may not {_VERBS[found.op]}: it lacks the right manage_local")
    provider = local_ollama(snapshot)
    if provider is None:
        raise NotSupported(f"there is no local Ollama here to {_VERBS[found.op]}")
    if found.op == "blob":
        if not _DIGEST.fullmatch(found.digest):
            raise InvalidRequest("invalid digest format")
        request = _request(provider, found.method, f"{_BLOBS}{found.digest}", None)
        return Forward(provider, request, stream_body=found.method == "POST", max_body=MAX_BLOB)
    return Forward(provider, _request(provider, found.method, f"/api/{found.op}", body))


class NotSupported(SwitchyardError):
    """This router has nothing that could do what was asked."""

    status = 501
    code = "not_supported"
    type = "invalid_request_error"


_VERBS: Final[Mapping[str, str]] = {
    "pull": "pull models",
    "push": "push models",
    "create": "create models",
    "copy": "copy models",
    "delete": "delete models",
    "blob": "handle blobs",
}


def local_ollama(snapshot: Snapshot) -> Provider | None:
    """The Ollama that management goes to: the first local one that is on."""
    for provider in snapshot.providers.values():
        if provider.vendor.name == "ollama" and provider.local and provider.off is None:
            return provider
    return None


def _served(snapshot: Snapshot, entries: Iterable[Entry], asked: str, rights: Rights) -> Entry | None:
    """The entry of a name that is served already. A pattern alone does not make a local model installed."""
    try:
        found = find_entry(snapshot, entries, asked, rights)
    except ModelNotFound:
        return None
    return None if found.local and snapshot.entry(asked) is None else found


def _pulled(*, stream: bool) -> Answer:
    last = b'{"status":"success"}'
    return Answer(200, NDJSON, b'{"status":"pulling manifest"}\n' + last + b"\n") if stream else Answer(200, JSON, last)


def _request(provider: Provider, method: str, path: str, body: Mapping[str, Any] | None) -> UpstreamRequest:
    headers = {"content-type": "application/json" if body is not None else "application/octet-stream"}
    if provider.api_key:
        headers["authorization"] = f"Bearer {provider.api_key}"
    return UpstreamRequest(method, path, headers, b"" if body is None else orjson.dumps(body))
