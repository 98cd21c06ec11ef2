"""For whoever runs the service: which language models there are and are in memory, and which one answers."""

from __future__ import annotations

import asyncio

import msgspec
from litestar import Controller, get, post

from rag import models
from rag.catalogue import key
from server.app import ReadingRoom
from server.scopes import Caller


class Listed(msgspec.Struct):
    """A model that can be asked for. `bytes` on disk; `memory_bytes`, by estimate, while it is in memory, else None."""

    name: str
    default: bool
    loaded: bool
    bytes: int
    memory_bytes: int | None
    parameters: str
    quantization: str
    context_tokens: int
    licence: str
    commercial: str
    conditions: str


class ModelList(msgspec.Struct):
    """`memory_budget_bytes`: what all that are in memory may take together."""

    items: list[Listed]
    memory_budget_bytes: int


class UseBody(msgspec.Struct, forbid_unknown_fields=True):
    """The name of an installed model."""

    name: str


class Used(msgspec.Struct):
    """The model that answers now."""

    model: str


class ModelsController(Controller):
    """`/rag/models`."""

    path = "/rag/models"
    tags = ("Models",)

    @get("", summary="List the language models")
    async def listed(self, room: ReadingRoom) -> ModelList:
        """Those of this machine, the default one first."""
        return await asyncio.to_thread(_listed, room)

    @post("/use", status_code=200, summary="Change the default model")
    async def use(self, room: ReadingRoom, caller: Caller, data: UseBody) -> Used:
        """Loads it beside the present one, which ends its answers and goes. At the next start `engine.model` counts again."""
        before = room.engine.model
        used = (await room.use_model(data.name)).model
        await asyncio.to_thread(room.note, caller, "model.use", used, before=before)
        return Used(used)


def _listed(room: ReadingRoom) -> ModelList:
    memory = {key(name): (name, size) for name, size in room.engines.memory().items()}
    default = key(room.engine.model)
    items = []
    for model in models.installed(room.settings.data_dir):
        wanted, card = key(model.name), model.card
        assert card is not None  # the installed ones have one
        _, size = memory.pop(wanted, (model.name, None))
        items.append(
            Listed(
                name=model.name,
                default=wanted == default,
                loaded=size is not None,
                bytes=model.bytes,
                memory_bytes=size,
                parameters=card.parameters,
                quantization=card.quantization,
                context_tokens=card.context_tokens,
                licence=card.licence,
                commercial=card.commercial,
                conditions=card.conditions,
            )
        )
    # One that is set by its path, or is a server's, has no card.
    items += [Listed(name, key(name) == default, True, 0, size, "", "", 0, "unknown", "unknown", "") for name, size in memory.values()]
    items.sort(key=lambda item: not item.default)
    return ModelList(items, room.engines.budget)
