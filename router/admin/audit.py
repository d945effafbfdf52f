"""/admin/api/audit"""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Query

from router.admin.bodies import AuditBody, VerdictBody
from router.admin.common import Limit, Search
from router.keys import Keys


def audit_routes(keys: Keys) -> APIRouter:
    """The audit log, read and examined."""
    routes = APIRouter(prefix="/admin/api/audit", tags=["audit"])

    @routes.get("", response_model=AuditBody, response_model_exclude_unset=True)
    async def listing(
        q: Search = "",
        limit: Limit = 100,
        cursor: Annotated[int | None, Query(ge=0, description="`next` of the page before.")] = None,
    ) -> Any:
        """Changes, the newest first. `q` looks at who, action, target, its name, result and the fields that changed."""
        entries, more = await keys.audit.entries(limit=limit, before=cursor, q=q)
        return {"data": entries, "next": more}

    @routes.get("/verify", response_model=VerdictBody)
    async def verify(
        expect: Annotated[
            str | None, Query(max_length=200, description="A `head` that was noted earlier: it must still be there.")
        ] = None,
    ) -> Any:
        """Read the whole log and say whether an entry was edited, removed or moved."""
        verdict = await keys.audit.verify(expect)
        return {
            "ok": verdict.ok,
            "entries": verdict.entries,
            "head": verdict.head,
            "problems": list(verdict.problems),
        }

    return routes
