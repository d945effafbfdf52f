"""/admin/api/teams"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Request, Response

from providers.errors import InvalidRequest
from router.admin.bodies import TeamBody, TeamCreateBody, TeamsBody, TeamSetBody
from router.admin.common import IfMatch, Limit, Search, TeamRef, Version, acting, expected, sent
from router.changes import TeamChange, team_change_of
from router.descriptions import describe_team
from router.keys import Keys
from router.records import TeamRecord, is_team_id


def team_routes(keys: Keys) -> APIRouter:
    """Teams: make, list, show, change."""
    routes = APIRouter(prefix="/admin/api/teams", tags=["teams"])

    @routes.post("", status_code=201, response_model=TeamBody, response_model_exclude_unset=True)
    async def create(request: Request, response: Response, body: TeamCreateBody) -> Any:
        """Make a team."""
        return _told(response, await acting(request, keys).teams.create(team_change_of(sent(body))))

    @routes.get("", response_model=TeamsBody, response_model_exclude_unset=True)
    async def listing(
        state: Literal["", "active", "disabled", "revoked"] = "",
        q: Search = "",
        limit: Limit = 100,
        cursor: Annotated[str, Query(max_length=40, description="`next` of the page before.")] = "",
    ) -> Any:
        """Teams in the order of their ids. `q` looks at ids, names, owners and tags."""
        if cursor and not is_team_id(cursor):
            raise InvalidRequest("cursor is the `next` of the page before", param="cursor")
        found = sorted((team for team in await keys.teams.list() if team.id > cursor), key=lambda team: team.id)
        wanted = [team for team in found if (not state or team.state == state) and _fits(team, q.casefold())]
        more = wanted[limit - 1].id if len(wanted) > limit else None
        return {"data": [describe_team(team) for team in wanted[:limit]], "next": more}

    @routes.get("/{ref}", response_model=TeamBody, response_model_exclude_unset=True)
    async def show(response: Response, ref: TeamRef) -> Any:
        """One team."""
        return _told(response, await keys.teams.get(ref))

    @routes.patch("/{ref}", response_model=TeamBody, response_model_exclude_unset=True)
    async def change(
        request: Request, response: Response, ref: TeamRef, body: TeamSetBody, if_match: IfMatch = None
    ) -> Any:
        """Change a team; effective on the next call with any of its keys."""
        teams = acting(request, keys).teams
        change = team_change_of(sent(body))
        found = await teams.change(ref, change, expected=expected(if_match), expected_version=body.version)
        return _told(response, found)

    @routes.delete("/{ref}", response_model=TeamBody, response_model_exclude_unset=True)
    async def revoke(
        request: Request, response: Response, ref: TeamRef, version: Version = None, if_match: IfMatch = None
    ) -> Any:
        """Revoke a team for good: all of its keys are refused from the next call on; its records stay."""
        change, teams = TeamChange(state="revoked"), acting(request, keys).teams
        found = await teams.change(ref, change, expected=expected(if_match), expected_version=version)
        return _told(response, found)

    return routes


def _told(response: Response, team: TeamRecord) -> dict[str, Any]:
    response.headers["etag"] = f'"{team.etag}"'
    return describe_team(team)


def _fits(team: TeamRecord, wanted: str) -> bool:
    return not wanted or any(wanted in one.casefold() for one in (team.id, team.name, team.owner, *team.tags))
