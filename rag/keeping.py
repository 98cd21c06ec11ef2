"""An answer on its way into its conversation: the events go through, and what they say is kept (`rag/conversations.py`)."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import logging
import sqlite3
from collections.abc import AsyncGenerator

from rag.conversations import Conversations, Draft
from rag.exchange import Json
from rag.records import Citation, Done, Event, PassagesFound, Token, Withdrawn

log = logging.getLogger(__name__)


async def keeping(events: AsyncGenerator[Event, None], draft: Draft, conversations: Conversations) -> AsyncGenerator[Event, None]:
    """An answer's events, with the turn kept before `Done` is given on; who leaves earlier keeps what was said until then.

    `Done` carries the conversation's id, or none if the turn could not be kept: an answer is not lost for its record.
    """
    kept = False
    try:
        async with contextlib.aclosing(events):
            async for event in events:
                if isinstance(event, PassagesFound):
                    draft.found = dataclasses.asdict(event)
                elif isinstance(event, Token):
                    draft.said.append(event.text)
                elif isinstance(event, Citation):
                    draft.citations.append(dataclasses.asdict(event))
                elif isinstance(event, Withdrawn):
                    draft.said, draft.citations = [], []
                elif isinstance(event, Done):
                    kept = True
                    done = dataclasses.asdict(dataclasses.replace(event, conversation_id=None))
                    is_there = await _keep(conversations, draft, done)
                    event = dataclasses.replace(event, conversation_id=draft.conversation_id if is_there else None)
                yield event
    except (asyncio.CancelledError, GeneratorExit):
        if not kept:
            stopped = {"answer": "".join(draft.said), "refused": False, "citations": draft.citations, "finish_reason": "stopped"}
            await _keep(conversations, draft, stopped)
        raise


async def _keep(conversations: Conversations, draft: Draft, done: Json) -> bool:
    try:
        # Shielded: who leaves while it is written leaves a whole turn.
        return await asyncio.shield(asyncio.to_thread(conversations.keep, draft, done))
    except sqlite3.Error:
        log.exception("a turn could not be kept")
        return False
