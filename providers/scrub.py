"""Cleaning of provider texts before a caller sees them: no secrets, no markup, no control characters, one bounded
line."""

from __future__ import annotations

import re

LIMIT = 500
"""Characters of a provider's message that are passed on."""

_SECRETS = re.compile(
    r"""(?ix)
    \b(?:bearer|basic)\s+[a-z0-9._~+/=-]{8,}            # an echoed authorization header
    | \b(?:sk|rk|pk|ak|org|proj)-[a-z0-9_*-]{8,}         # OpenAI-like keys and organisation ids, also half masked
    | \bAIza[0-9a-z_-]{10,}                              # Google API keys
    | \bgsk_[a-z0-9]{10,} | \bxai-[a-z0-9]{10,} | \bAKIA[0-9A-Z]{12,}
    | ([?&](?:key|api_key|api-key|access_token|token)=)[^&\s"']+
    | \b[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}\b   # Ark keys are UUIDs; so are account ids
    | \beyJ[\w-]{10,}\.[\w-]{5,}\.[\w-]*                  # JSON web tokens
    """
)
_TAGS = re.compile(r"<[^<>]{0,200}>")
_CONTROL = re.compile(r"[\x00-\x1f\x7f\x85\u2028\u2029]+")


def clean(text: str) -> str:
    """A message fit for a caller: secrets masked, tags and control characters out, at most LIMIT characters."""
    text = _SECRETS.sub("[redacted]", text[: LIMIT * 8])
    text = _CONTROL.sub(" ", _TAGS.sub("", text)).strip()
    return text if len(text) <= LIMIT else text[: LIMIT - 1] + "…"
