"""Model lists for clients, made from the snapshot in memory: never by asking providers while a client waits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from router.routing import Entry

CREATED = 1_700_000_000
"""Clients want a time for each model; the config has none. A constant keeps lists comparable."""
_CREATED_TEXT = datetime.fromtimestamp(CREATED, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


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
                "supportedGenerationMethods": ["generateContent", "streamGenerateContent"],
                **({"inputTokenLimit": item["context_length"]} if "context_length" in item else {}),
            }
            for item in data
        ],
    }
