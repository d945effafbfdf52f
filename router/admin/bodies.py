"""The JSON of the admin API. Amounts of limits are read by `router.limit_text`, which names what is wrong with them."""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, StrictBool, WithJsonSchema, model_validator
from pydantic_core import PydanticCustomError

from router.admin.common import no_such

_COUNT: dict[str, Any] = {"anyOf": [{"type": "integer", "minimum": 0}, {"type": "string"}, {"type": "null"}]}
_MONEY: dict[str, Any] = {"anyOf": [{"type": "string", "examples": ["5usd", "30cny"]}, {"type": "null"}]}


def _windows(amount: dict[str, Any]) -> dict[str, Any]:
    return {"type": "object", "properties": dict.fromkeys(("day", "week", "month", "total"), amount)}


Count = Annotated[Any, WithJsonSchema(_COUNT)]
Counts = Annotated[Any, WithJsonSchema({"anyOf": [*_COUNT["anyOf"], _windows(_COUNT)]})]
Budget = Annotated[Any, WithJsonSchema({"anyOf": [_windows(_MONEY), {"type": "null"}]})]


class LimitsBody(BaseModel):
    """Limits. In a change what is left out stays, null lifts, 0 refuses everything. Calendar windows are those of the
    team's time zone; weeks begin on Monday."""

    model_config = ConfigDict(extra="allow")  # unknown names are told by who reads the amounts

    rpm: Count = Field(None, description="Requests in any 60 seconds.")
    tpm: Count = Field(None, description="Tokens in any 60 seconds, prompts and answers together. Text such as `100k`.")
    concurrency: Count = Field(None, description="Calls at the same time.")
    budget: Budget = Field(None, description="Money by window, with its currency: `5usd`, `1.5usd`, `30cny`.")
    max_requests: Counts = Field(None, description="Calls by window; a bare number is the total.")
    max_tokens: Counts = Field(None, description="Tokens by window; a bare number is the total. Text such as `2m`.")
    models: Any = Field(
        None, description="The same limits by pattern of asked model names: `{'gpt-4*': {'rpm': 5}}`. Null lifts one."
    )


UNKNOWN: Final = "unknown_field"


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid")

    @model_validator(mode="before")
    @classmethod
    def _known(cls, value: Any) -> Any:
        """What there is not is told with what there is."""
        for name in value if isinstance(value, dict) else ():
            if name not in cls.model_fields:
                told = {"name": name[:50], "what": no_such("field", name, cls.model_fields)}
                raise PydanticCustomError(UNKNOWN, "{what}", told)
        return value


class RightsBody(_Body):
    """What the key may do beyond calling models."""

    allow_fallback: StrictBool | None = Field(
        None, description="May the local model answer when the chosen one cannot?"
    )
    local_only: StrictBool | None = Field(None, description="Only local providers.")
    manage_local: StrictBool | None = Field(None, description="Pull and delete models of the local Ollama.")
    admin: StrictBool | None = Field(None, description="Use this API.")


_VERSION = "Refuse with 409 when it is not at this version any more. The header If-Match with an ETag does the same."


class _Common(_Body):
    name: str | None = None
    owner: str | None = Field(None, description="Who answers for it.")
    tags: list[str] | None = None
    models: list[str] | None = Field(None, description="Patterns of model names; empty allows all.")
    deny: list[str] | None = Field(None, description="Patterns of model names that are refused.")
    limits: LimitsBody | None = None


class KeyChangeBody(_Common):
    """What to set; what is left out stays."""

    team: str | None = Field(None, description="The team's name or id.")
    expires: str | None = Field(None, description="`30d`, `12h`, `2027-01-31` or `never`.")
    networks: list[str] | None = Field(None, description="CIDR networks that calls may come from; empty for all.")
    rights: RightsBody | None = None


class CreateBody(KeyChangeBody):
    """A new key. Its team is made when there is none of that name."""

    name: str


class SetBody(KeyChangeBody):
    """With another team the key moves there: what it spent stays with the old one, and it starts from nothing."""

    state: Literal["active", "disabled"] | None = None
    version: int | None = Field(None, description=_VERSION)


class RotateBody(_Body):
    overlap: str = Field("24h", description="How long the old secret goes on to work: `24h`, `7d`, or `0` for not.")
    version: int | None = Field(None, description=_VERSION)


class IssueRow(KeyChangeBody):
    """One key. What it does not say is as for all."""

    name: str | None = None
    team: None = Field(None, exclude=True)
    line: int | None = Field(None, description="Where it stands in the caller's list; problems are told with it.")


def _row(value: Any) -> Any:
    return {"name": value} if isinstance(value, str) else value


class IssueBody(KeyChangeBody):
    """Keys for a whole team. Everything beside `team` and `keys` holds for each key that does not say otherwise."""

    name: None = Field(None, exclude=True)
    team: str | None = Field(None, description="The team's name or id. It is made when there is none of that name.")
    keys: list[Annotated[IssueRow, BeforeValidator(_row)]] = Field(
        description="At most 1000: names, or objects with a name and more."
    )


class TeamChangeBody(_Common):
    """What to set; what is left out stays."""

    timezone: str | None = Field(None, description="IANA name; calendar windows of limits begin at its midnight.")


class TeamCreateBody(TeamChangeBody):
    name: str = Field(description="No other team has it, whatever the case of its letters.")


class TeamSetBody(TeamChangeBody):
    state: Literal["active", "disabled", "revoked"] | None = Field(
        None, description="Keys of a team that is not active are refused. Revoked is for good."
    )
    version: int | None = Field(None, description=_VERSION)


# --- answers


class ErrorDetail(BaseModel):
    message: str
    type: str
    code: str = Field(description="Stable: decide by it.")
    param: str | None = Field(description="The field or parameter that is wrong.")


class ErrorBody(BaseModel):
    """Every answer that is no success."""

    error: ErrorDetail


class KeyBody(BaseModel):
    """A key, without its secret. Times are ISO 8601 in UTC."""

    id: str
    name: str
    owner: str
    team: str = Field(description="The team's name.")
    team_id: str
    tags: list[str]
    state: str = Field(description="active, disabled, revoked or expired.")
    created: str
    expires_at: str | None
    last_used: str | None = Field(description="To the minute.")
    old_key_until: str | None = Field(description="Until when the secret before the last rotation works.")
    models: list[str]
    deny: list[str]
    networks: list[str]
    limits: LimitsBody
    rights: dict[str, bool]
    anonymous: bool
    version: int
    etag: str


class CreatedBody(KeyBody):
    key: str = Field(description="The credential. It is shown in this answer only.")
    team_created: bool = Field(description="Whether there was no team of that name, so that it was made.")


class RotatedBody(KeyBody):
    key: str = Field(description="The new credential. It is shown in this answer only.")
    ended_earlier: bool = Field(
        description="Whether the rotation before this one was not over yet, so that its old secret ended now."
    )


class KeysBody(BaseModel):
    data: list[KeyBody]
    unreadable: list[str] = Field([], description="Ids of keys whose records cannot be read; they are not in `data`.")
    next: str | None = Field(description="The `cursor` of the next page; null on the last one.")


class IssuedKey(BaseModel):
    id: str
    name: str
    owner: str
    expires_at: str | None
    key: str = Field(description="The credential. It is shown in this answer only.")


class IssuedBody(BaseModel):
    team: str
    team_id: str
    team_created: bool
    data: list[IssuedKey]


class TeamBody(BaseModel):
    """A team. Its limits count all of its keys together."""

    id: str
    name: str
    state: str = Field(description="active, disabled or revoked.")
    timezone: str
    owner: str
    tags: list[str]
    created: str
    models: list[str]
    deny: list[str]
    limits: LimitsBody
    version: int
    etag: str


class TeamsBody(BaseModel):
    data: list[TeamBody]
    next: str | None = Field(description="The `cursor` of the next page; null on the last one.")


class AuditEntry(BaseModel):
    """One change. `before` and `after` name only what changed; no secret is in them."""

    model_config = ConfigDict(extra="allow")

    n: int | None = Field(None, description="Number, from 1.")
    time: str | None = Field(None, description="ISO 8601 in UTC, to the millisecond, by the clock of the router.")
    actor: str | None = Field(None, description="`admin token`, `key <id>`, `command line <user>` or `router`.")
    address: str | None = None
    action: str | None = None
    target: str | None = None
    name: str | None = Field(None, description="The target's name at that time.")
    before: dict[str, Any] | None = None
    after: dict[str, Any] | None = None
    result: str | None = Field(None, description="accepted; or failed, with the reason, for the entry in `of`.")
    of: int | None = None
    prev: str | None = None
    hash: str | None = None


class AuditBody(BaseModel):
    data: list[AuditEntry]
    next: int | None = Field(description="The `cursor` of older entries; null when there are none.")


class VerdictBody(BaseModel):
    ok: bool
    entries: int
    head: str = Field(description="Number and hash of the last entry: note it elsewhere and give it as `expect` later.")
    problems: list[str]
