"""Which LoRA adapters a question can be answered with. Installing them is `readingroom adapters`; what they are, `rag/adapters.py`."""

from __future__ import annotations

import msgspec
from litestar import Controller, get

from server.app import ReadingRoom


class ListedAdapter(msgspec.Struct):
    """An adapter for the default model: what `adapter` of a question may name."""

    name: str
    description: str
    licence: str
    base: str


class AdapterList(msgspec.Struct):
    """Sorted by name."""

    items: list[ListedAdapter]


class AdaptersController(Controller):
    """`/rag/adapters`"""

    path = "/rag/adapters"
    tags = ("Models",)

    @get("", summary="List the adapters")
    async def listed(self, room: ReadingRoom) -> AdapterList:
        """Those that fit the default model, which is the one they are loaded beside; none while it still loads."""
        loaded = getattr(room.engine, "packages", {})  # a server at `engine.url` has its own, and does not tell
        packages = sorted(loaded.values(), key=lambda package: package.name)
        return AdapterList([ListedAdapter(one.name, one.description, one.licence, one.base) for one in packages])
