"""Model lists for clients, made from the snapshot in memory: never by asking providers while a client waits."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from providers.errors import ModelNotFound
from router.routing import Entry, Rights, Snapshot, may
from router.snapshot import base_name

CREATED = 1_700_000_000
"""Clients want a time for each model; the config has none. A constant keeps lists comparable."""
_CREATED_TEXT = datetime.fromtimestamp(CREATED, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


_CHAT = ("generateContent", "streamGenerateContent")
_EMBEDDING = ("embedContent", "batchEmbedContents")


def model_entry(entry: Entry) -> dict[str, Any]:
    """One model for OpenAI, Anthropic and Gemini clients at once; each ignores what it does not know."""
    can = entry.capabilities
    found: dict[str, Any] = {
        "id": entry.id,
        "object": "model",
        "created": CREATED,
        "owned_by": entry.providers[0] if entry.providers else "switchyard",
        "type": "model",
        "display_name": entry.id,
        "created_at": _CREATED_TEXT,
        "name": f"models/{entry.id}",
        "capabilities": {
            "vision": can.vision,
            "tools": can.tools,
            "json_schema": can.schema,
            "reasoning": can.reasoning,
            "embeddings": can.embeddings,
        },
    }
    if can.context is not None:
        found["context_length"] = can.context
    return found


def model_list(entries: Sequence[Entry]) -> Mapping[str, Any]:
    """The superset body of `GET /v1/models`: OpenAI's `data`, Anthropic's paging fields, Gemini's `models`."""
    data = [model_entry(entry) for entry in entries]
    return {
        "object": "list",
        "data": data,
        "has_more": False,
        "first_id": data[0]["id"] if data else None,
        "last_id": data[-1]["id"] if data else None,
        "models": [
            {
                "name": item["name"],
                "displayName": item["id"],
                "supportedGenerationMethods": _EMBEDDING if entry.capabilities.chat is False else _CHAT,
                **({"inputTokenLimit": item["context_length"]} if "context_length" in item else {}),
            }
            for entry, item in zip(entries, data, strict=True)
        ],
    }


def find_entry(snapshot: Snapshot, entries: Iterable[Entry], asked: str, rights: Rights) -> Entry:
    """One model by name. `entries` are those that the caller's key may see (`routing.visible`).

    A name that no list shows is found too when a call to it would be answered: one that only a pattern or
    `provider/model` resolves, or one whose fallback answers while its own targets are off; then it is described by who
    answers. Raises ModelNotFound with near names that the key may see.
    """
    entries = tuple(entries)
    wanted = base_name(asked)
    for entry in entries:
        if base_name(entry.id) == wanted:
            return entry
    if may(snapshot, rights, asked):
        try:
            route = snapshot.route(asked)
        except ModelNotFound:
            route = None
        listed = snapshot.entry(asked) is not None  # but not shown: off, or not for this key
        tiers = (*route.tiers, route.fallback if rights.allow_fallback else ()) if route is not None else ()
        for candidate in (candidate for tier in tiers for candidate in tier):
            target = candidate.attempt.target
            if (rights.local_only and not target.provider.local) or (listed and candidate.off is not None):
                continue
            if rights.payable is not None and not rights.payable(target):
                continue
            return Entry(
                id=asked,
                providers=(target.provider.name,),
                capabilities=snapshot.capabilities(target),
                local=target.provider.local,
                on=candidate.off is None,
                kind="discovered",
                facts=snapshot.facts(target.provider.name, target.model),
            )
    seen = {entry.id for entry in entries}
    raise ModelNotFound(asked[:200], [name for name in snapshot.near(asked) if name in seen])
