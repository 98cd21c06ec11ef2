"""What keys have used and what is left to them, and for the administrator the audit log. Counted in `server/quotas.py`."""

from __future__ import annotations

import asyncio
import time
from typing import Annotated, Any

import msgspec
from litestar import Controller, get
from litestar.params import Parameter

from server.app import ReadingRoom
from server.limits import Policy
from server.scopes import COMMAND, LOCAL, SERVER, Caller


class Day(msgspec.Struct):
    """A day of UTC, as `2026-11-26`. `refused`: calls over a limit; tokens are those of prompts and of answers."""

    day: str
    requests: int
    refused: int
    answers: int
    prompt_tokens: int
    completion_tokens: int
    upload_bytes: int


class Left(msgspec.Struct):
    """A limit: `left` of `quota` in `window_s` seconds (0: at a time), anew in `reset_s`. As in the `RateLimit` headers."""

    name: str
    unit: str
    quota: int
    left: int
    window_s: int
    reset_s: int


class KeyUsage(msgspec.Struct):
    """A key's days, newest first. `key` is its id; `local` for whoever needs none, `server` for `server.key`, `command` for commands."""

    key: str
    name: str
    kind: str
    state: str
    plan: str
    days: list[Day]


class UsageReport(msgspec.Struct):
    """`limits`: of the caller, now. `items`: the caller's usage, for an administrator everybody's; a key that is gone has no name."""

    caller: str
    limits: list[Left]
    items: list[KeyUsage]


class AuditEntry(msgspec.Struct):
    """An act: `at` in seconds since the epoch, `actor` a key's id or who else may act, `target` what it was done to."""

    id: int
    at: float
    actor: str
    actor_name: str
    address: str
    act: str
    target: str
    details: dict[str, Any]


class AuditPage(msgspec.Struct):
    """Newest first; go on with `before` the last one's id."""

    items: list[AuditEntry]


class UsageController(Controller):
    """`/rag/usage` and `/rag/audit`"""

    path = "/rag"
    tags = ("Operations",)

    @get("/usage", summary="Usage and limits")
    async def usage(self, room: ReadingRoom, caller: Caller, days: Annotated[int, Parameter(ge=1, le=1000)] = 30) -> UsageReport:
        """Of your key, by day; for an administrator of all keys. What is counted now is in it."""
        access = room.access
        if access is None:
            return UsageReport(caller.id, [], [])
        rows = await asyncio.to_thread(access.meter.report, days)
        keys = {key.id: key for key in await asyncio.to_thread(lambda: access.keys.all(revoked=True))}
        now = time.time()
        items: dict[str, KeyUsage] = {}
        for id in [*keys, *(row["key"] for row in rows)]:
            if id in items or not (caller.admin or id == caller.id):
                continue
            if (key := keys.get(id)) is not None:
                items[id] = KeyUsage(id, key.name, key.kind, key.state(now), key.plan, [])
            else:
                name = next((known.name for known in (LOCAL, SERVER, COMMAND) if known.id == id), "")
                items[id] = KeyUsage(id, name, "", "active", "unlimited", [])
        for row in rows:
            if (item := items.get(row.pop("key"))) is not None:
                item.days.append(msgspec.convert(row, Day))
        return UsageReport(caller.id, [_left(policy) for policy in access.meter.policies(caller)], list(items.values()))

    @get("/audit", summary="The audit log")
    async def audit(
        self,
        room: ReadingRoom,
        act: Annotated[str | None, Parameter(description="acts of this name only, such as `key.create`")] = None,
        before: int | None = None,
        limit: Annotated[int, Parameter(ge=1, le=1000)] = 100,
    ) -> AuditPage:
        """What administrators did: keys, models, deleted documents, new domains, the settings at each start."""
        access = room.access
        entries = await asyncio.to_thread(access.audit.entries, limit=limit, before=before, act=act) if access is not None else []
        return AuditPage(msgspec.convert(entries, list[AuditEntry]))


def _left(policy: Policy) -> Left:
    return Left(policy.name, policy.unit, policy.quota, policy.left, policy.window, policy.reset)
